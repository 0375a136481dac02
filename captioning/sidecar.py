"""`sidecar`: existing captions by people, in files beside the source or in a column of the source list.

In order of preference: the list's caption column; `NAME.vtt` or `NAME.srt`, matched by time span;
`NAME.json`; `NAME.txt`. A JSON file contains a text, an object with `caption` or `text`, or a list of
objects that also have `start` and `end` in seconds and are matched by time span.

A caption file that is a link out of the video's own folder is left alone. Otherwise the maker of a folder
could have any file of this machine published as a caption.
"""

from __future__ import annotations

import codecs
import errno
import html
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec

from captioning.base import Caption, CaptionRequest, Pictures
from captioning.prompts import tidy

_MAX_BYTES = 16 << 20
_MAX_KEPT = 64  # files
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(
    r"</?(?:[bicu]|v|c|lang|ruby|rt|font)(?:[.\s][^>]*)?>|<\d[\d:.]*>|\{\\[^}]*\}", re.IGNORECASE
)


@dataclass(frozen=True)
class Cue:
    """A text, and the times in seconds between which it is shown."""

    start_s: float
    end_s: float
    text: str


# (text for the whole source, None), or (None, cues)
Content = tuple[str | None, list[Cue] | None]


def _chained(address: str) -> str | None:
    return "a chain of protocols is never opened" if "://" in address and "::" in address else None


@dataclass(frozen=True)
class Sidecar:
    """Captions from files beside the source, or from `caption_column` of the source list.

    refused: why nothing beside a source is to be opened, by the source's address; None where it may be.
    left_alone: caption files that were not read, and why: of refused addresses, and links out of the folder.
    """

    caption_column: str = "caption"
    refused: Callable[[str], str | None] = field(default=_chained, repr=False, compare=False)
    left_alone: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    name: ClassVar[str] = "sidecar"
    pictures: ClassVar[Pictures | None] = None
    # The clips of a source come in sequence, so each of its files is read once.
    _kept: dict[str, Content | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        return f"sidecar-1-{self.caption_column}"

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
        column = tidy(str(clip.extra.get(self.caption_column) or ""))
        if column:
            return column
        stem = _stem(clip.uri)
        if reason := self.refused(clip.uri):
            self.left_alone[f"{stem}.txt"] = reason
            return None
        for suffix in (".vtt", ".srt", ".json", ".txt"):
            found = self._content(stem + suffix)
            if found is None:
                continue
            whole, cues = found
            text = whole if cues is None else spoken_between(cues, clip.start_s, clip.end_s)
            if text:
                return text
        return None

    def _content(self, path: str) -> Content | None:
        if path not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            reason = _leads_out(path)
            if reason:
                self.left_alone[path] = reason
            self._kept[path] = None if reason else _read(path)
        return self._kept[path]


def spoken_between(cues: Sequence[Cue], start_s: float, end_s: float) -> str | None:
    """The joined texts of cues that overlap the span by half of the cue's time, or half of the span's.

    Immediate repeats are dropped. None if there is no such cue."""
    texts: list[str] = []
    for cue in cues:
        overlap = min(cue.end_s, end_s) - max(cue.start_s, start_s)
        needed = 0.5 * min(cue.end_s - cue.start_s, end_s - start_s)
        if overlap > 0 and overlap >= needed and cue.text not in texts[-1:]:
            texts.append(cue.text)
    return " ".join(texts) or None


def parse_subtitles(text: str) -> list[Cue]:
    """The cues of a WebVTT or SubRip text. Markup is removed, and blocks without a cue are skipped."""
    cues = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        for i, line in enumerate(lines):
            match = _TIMING.match(line)
            if match:
                times = match.groups()
                said = tidy(html.unescape(_TAG.sub("", " ".join(lines[i + 1 :]))))
                start_s, end_s = _seconds(*times[:4]), _seconds(*times[4:])
                if said and end_s > start_s:
                    cues.append(Cue(start_s, end_s, said))
                break
    return cues


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


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
    if path.endswith((".vtt", ".srt")):
        return None, parse_subtitles(text)
    if path.endswith(".txt"):
        return tidy(text), None
    try:
        return _from_json(json.loads(text))
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
        if "\0" in text:  # UTF-16 without a byte order mark, or no text
            raise ValueError("zero bytes")
    except ValueError as error:
        raise ValueError(
            f"{path}: not a caption file: it is not in UTF-8 (or UTF-16 with a byte order mark); save it "
            f"as UTF-8 ({error})"
        ) from error
    return text


def _from_json(value: Any) -> Content:
    if isinstance(value, str):
        return tidy(value), None
    if isinstance(value, list):
        return None, [Cue(float(v["start"]), float(v["end"]), tidy(_caption_of(v))) for v in value]
    return tidy(_caption_of(value)), None


def _caption_of(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} where an object should be")
    text = value.get("caption", value.get("text"))
    if not isinstance(text, str):
        raise ValueError("no `caption` or `text`")
    return text


def _stem(uri: str) -> str:
    folder, slash, name = uri.rpartition("/")
    return folder + slash + name.rpartition(".")[0] if "." in name else uri
