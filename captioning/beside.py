"""The names of caption files beside a source: `NAME.srt`, `NAME.SRT`, `NAME.mp4.srt`, `NAME.en.srt`.

Of several files of one kind the plain name comes first, then `NAME.mp4.srt`, then English, then the other
languages by name, and last what is only for some of the words (`forced`).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import fsspec

from captioning.formats import TIMED_SUFFIXES

USUAL = (".vtt", ".srt", ".json", ".txt")
SUFFIXES = (*TIMED_SUFFIXES, ".json3", ".json", ".txt")  # in order of preference
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*", re.IGNORECASE)  # en, eng, pt-BR, zh_Hans, en-orig
_NAMED = frozenset({"english", "german", "french", "spanish", "italian", "portuguese", "dutch", "russian"})
_OF_KIND = frozenset({"forced", "sdh", "cc", "hi", "default", "auto", "orig"})


def suffix_of(path: str) -> str:
    return os.path.splitext(path)[1].lower()


@dataclass
class Folders:
    """The names in one folder at a time: sources come in sequence."""

    _folder: str | None = field(default=None, init=False)
    _captions: dict[str, list[str]] = field(default_factory=dict, init=False)  # first part of a name -> names
    _stems: set[str] = field(default_factory=set, init=False)  # of files that hold no captions

    def others(self, uri: str, stem: str) -> Iterator[str]:
        """Caption files of the source under other names than `stem` and one of `USUAL` in lower case."""
        folder, slash, name = uri.rpartition("/")
        if folder + slash != self._folder:
            self._list(folder + slash)
        of_stem = stem[len(folder + slash) :]
        for file in self._captions.get(_first(of_stem), ()):
            suffix = suffix_of(file)
            if file == of_stem + suffix and suffix in USUAL:
                continue
            before = file[: -len(suffix)]
            if before in (of_stem, name) or self._is_in_a_language(before, of_stem, suffix):
                yield folder + slash + file

    def _is_in_a_language(self, before: str, of_stem: str, suffix: str) -> bool:
        if suffix not in (*TIMED_SUFFIXES, ".json3") or not before.startswith(of_stem + "."):
            return False
        # Where `NAME.en.mp4` is there, too, `NAME.en.srt` is about that file.
        return before not in self._stems and _language(before[len(of_stem) + 1 :]) is not None

    def _list(self, folder: str) -> None:
        self._folder, self._captions, self._stems = folder, {}, set()
        for file in _names(folder):
            if suffix_of(file) in SUFFIXES:
                self._captions.setdefault(_first(file), []).append(file)
            else:
                self._stems.add(os.path.splitext(file)[0])


def preference(uri: str, stem: str) -> Callable[[str], tuple[object, ...]]:
    """The key by which the caption files of a source are sorted: the first with a caption is taken."""

    def key(path: str) -> tuple[object, ...]:
        suffix = suffix_of(path)
        before = path[: -len(suffix)]
        place = SUFFIXES.index(suffix)
        if before == stem:
            return place, 0, path[-len(suffix) :] != suffix, path
        if before == uri:
            return place, 1, False, path
        language = _language(before[len(stem) + 1 :]) or ""
        is_english = re.split(r"[-_.]", language.lower())[0] in ("en", "eng", "english")
        return place, 2 + ("forced" in language.lower().split(".")), not is_english, language

    return key


def _language(text: str) -> str | None:
    """`text` where it is the name of a language, perhaps with words such as `forced`."""
    first, *others = text.lower().split(".")
    is_language = _LANGUAGE.fullmatch(first) is not None or first in _NAMED
    return text if is_language and all(word in _OF_KIND for word in others) else None


def _first(name: str) -> str:
    return name.partition(".")[0]


def _names(folder: str) -> list[str]:
    """The names in a folder; none where it cannot be listed."""
    local = folder.removeprefix("file://")
    try:
        if "://" not in local:
            return os.listdir(local or ".")
        fs, path = fsspec.url_to_fs(folder)
        return [posixpath.basename(p.rstrip("/")) for p in fs.ls(path, detail=False)]
    except Exception:  # each file system has errors of its own; the usual names are tried without a listing
        return []
