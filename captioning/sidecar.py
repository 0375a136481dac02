"""`sidecar`: existing captions by people, in files beside the source or in a column of the source list.

In order of preference: the list's caption column; `NAME.vtt` or `NAME.srt`, matched by time span; `NAME.json`
(`captioning.texts` has its forms); `NAME.txt`. `captioning.beside` has the other names that such files have.
The times of clips are seconds since the file begins, and so are those in the files.

A caption file that is a link out of the video's own folder is left alone. Otherwise the maker of a folder
could have any file of this machine published as a caption.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import fsspec

from captioning.base import Caption, CaptionRequest, Pictures
from captioning.beside import USUAL, Folders, preference, suffix_of
from captioning.formats import TIMED_SUFFIXES, cues_of
from captioning.subtitles import Cue, spoken_between
from captioning.texts import NOTHING, SPANS, Content, caption_in, cues_in, from_json, text_of, values_in

_MAX_BYTES = 16 << 20
# A row of a Parquet file (`curation.store.table_row`). Files beside the table are about all rows, or none.
_IN_TABLE = re.compile(r"\.parquet#[^#=/]+=[0-9]+$", re.IGNORECASE)
_MAX_KEPT = 64  # files


def _chained(address: str) -> str | None:
    return "a chain of protocols is never opened" if "://" in address and "::" in address else None


@dataclass(frozen=True)
class Sidecar:
    """Captions from files beside the source, or from `caption_column` of the source list.

    by_row: each clip is the span of a row of the list, and has the caption of that row alone.
    refused: why nothing beside a source is to be opened, by the source's address; None where it may be.
    left_alone: caption files that were not used, and why: of refused addresses, links out of the folder, and
        files without a caption.
    """

    caption_column: str = "caption"
    refused: Callable[[str], str | None] = field(default=_chained, repr=False, compare=False)
    by_row: bool = False
    left_alone: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    name: ClassVar[str] = "sidecar"
    pictures: ClassVar[Pictures | None] = None
    # The clips of a source come in sequence, so each of its files is read once.
    _kept: dict[str, Content | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _folders: Folders = field(default_factory=Folders, init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        return f"sidecar-1-{self.caption_column}{'-by-row' if self.by_row else ''}"

    def check(self) -> None:
        """This captioner needs nothing. A clip without a sidecar gets no caption."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]:
        found = []
        for clip in clips:
            text = self._text(clip)
            if text:
                found.append(Caption(clip.clip_id, self.name, "sidecar", text))
        return found

    def _text(self, clip: CaptionRequest) -> str | None:
        if text := self._of_list(clip):
            return text
        if _IN_TABLE.search(clip.uri):
            return None
        stem = _stem(clip.uri)
        if reason := self.refused(clip.uri):
            self.left_alone[f"{stem}.txt"] = reason
            return None
        without: list[str] = []
        names = [stem + suffix for suffix in USUAL]
        for path in sorted({*names, *self._folders.others(clip.uri, stem)}, key=preference(clip.uri, stem)):
            found = self._content(path)
            if found == NOTHING:
                without.append(path)
            elif found is not None:
                whole, cues = found
                text = whole if cues is None else spoken_between(cues, clip.start_s, clip.end_s)
                if text:
                    return text
        self.left_alone.update(dict.fromkeys(without, "it holds no caption"))
        return None

    def _of_list(self, clip: CaptionRequest) -> str | None:
        """The caption in the columns of the list, or in those of its rows that are about this clip."""
        column = None if self.caption_column == "caption" else self.caption_column
        rows = clip.extra.get(SPANS)
        try:
            cues = cues_in(rows if isinstance(rows, list) else [clip.extra], column)
        except ValueError:  # columns of these names may hold something else, such as dates
            cues = []
        if cues and self.by_row:
            return _best(cues, clip)
        if cues and (text := spoken_between(cues, clip.start_s, clip.end_s)):
            return text
        return None if cues and rows is None else caption_in(clip.extra, column)

    def _content(self, path: str) -> Content | None:
        if path not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            reason = _leads_out(path)
            if reason:
                self.left_alone[path] = reason
            self._kept[path] = None if reason else _read(path)
        return self._kept[path]


_SAME_SECONDS = 0.1  # a clip begins and ends at the frames nearest to its span


def _best(cues: Sequence[Cue], clip: CaptionRequest) -> str | None:
    """The text of the span that the clip is of. Of equal spans, that of the first row.

    A span may go on after the end of the file, and a clip may not go on after its span.
    """
    within = [cue for cue in cues if min(cue.end_s, clip.end_s) > max(cue.start_s, clip.start_s)]

    def apart(cue: Cue) -> tuple[int, float]:
        outside_s = abs(cue.start_s - clip.start_s) + max(0.0, clip.end_s - cue.end_s)
        return round(outside_s / _SAME_SECONDS), abs(cue.end_s - clip.end_s)

    return min(within, key=apart).text if within else None


def _leads_out(path: str) -> str | None:
    """Of a local link whose target is not in the link's folder, or below: where it leads."""
    local = path.removeprefix("file://")
    if "://" in local or not os.path.islink(local):
        return None
    folder, target = os.path.realpath(os.path.dirname(local) or "."), os.path.realpath(local)
    if target.startswith(os.path.join(folder, "")):
        return None
    return f"a link out of the video's folder, to {target}; put a file in its place to have it read"


def _read(path: str) -> Content | None:
    """The content of a caption file; None if the file does not exist. Otherwise raises `ValueError`."""
    try:
        if "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would not end
            raise ValueError(f"{path}: not a regular file")
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError as error:
        # If the name is too long with this suffix, the file cannot exist.
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
            return None
        raise ValueError(f"{path}: the caption file cannot be read: {error.strerror or error}") from error
    text = _decoded(path, data)
    suffix = suffix_of(path)
    if suffix in TIMED_SUFFIXES:
        cues = cues_of(text, suffix)
        return (None, cues) if cues or not text.strip() else NOTHING
    if suffix == ".txt":
        return text_of(text), None
    try:
        return from_json(values_in(text), os.path.basename(path)[: -len(suffix)])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a caption file ({error}): a text, an object with `caption` or `text`, or a list of "
            "objects that also have `start` and `end` in seconds"
        ) from error


def _decoded(path: str, data: bytes) -> str:
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        # A file that is too long may be cut within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=len(data) < _MAX_BYTES)
        text = text.rstrip("\0")  # some programs fill files up with them
        if "\0" in text:  # UTF-16 without a byte order mark, or no text
            raise ValueError("zero bytes")
    except ValueError as error:
        raise ValueError(
            f"{path}: not a caption file: it is not in UTF-8 (or UTF-16 with a byte order mark); save it "
            f"as UTF-8 ({error})"
        ) from error
    return text


def _stem(uri: str) -> str:
    folder, slash, name = uri.rpartition("/")
    return folder + slash + name.rpartition(".")[0] if "." in name else uri
