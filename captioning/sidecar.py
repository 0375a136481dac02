"""`sidecar`: captions that people already have, beside the source or in a column of the source list.

In order of preference: the list's caption column; `NAME.vtt` or `NAME.srt`, matched by time span;
`NAME.json`; `NAME.txt`. A JSON file holds a text, an object with `caption` or `text`, or a list of objects
that also have `start` and `end` in seconds, matched by time span.
"""

from __future__ import annotations

import codecs
import errno
import html
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec

from captioning.base import Caption, CaptionRequest, Pictures

_MAX_BYTES = 16 << 20
_MAX_KEPT = 64  # files
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff]")
_TAG = re.compile(
    r"</?(?:[bicu]|v|c|lang|ruby|rt|font)(?:[.\s][^>]*)?>|<\d[\d:.]*>|\{\\[^}]*\}", re.IGNORECASE
)


@dataclass(frozen=True)
class Cue:
    """A text and when it is shown, in seconds."""

    start_s: float
    end_s: float
    text: str


# (text for the whole source, None), or (None, cues)
Content = tuple[str | None, list[Cue] | None]


@dataclass(frozen=True)
class Sidecar:
    """Captions from files beside the source, or from `caption_column` of the source list."""

    caption_column: str = "caption"
    name: ClassVar[str] = "sidecar"
    pictures: ClassVar[Pictures | None] = None
    # The clips of one source come one after another: its files are read once.
    _kept: dict[str, Content | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def key(self) -> str:
        return f"sidecar-1-{self.caption_column}"

    def check(self) -> None:
        """Nothing can be missing: a clip without a sidecar has no caption."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]:
        found = []
        for clip in clips:
            text = self._text(clip)
            if text:
                found.append(Caption(clip.clip_id, self.name, "sidecar", text))
        return found

    def _text(self, clip: CaptionRequest) -> str | None:
        column = _tidy(str(clip.extra.get(self.caption_column) or ""))
        if column:
            return column
        stem = _stem(clip.uri)
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
            self._kept[path] = _read(path)
        return self._kept[path]


def spoken_between(cues: Sequence[Cue], start_s: float, end_s: float) -> str | None:
    """The texts shown for at least half of their time, or half of the clip's, within the span; no repeats."""
    texts: list[str] = []
    for cue in cues:
        overlap = min(cue.end_s, end_s) - max(cue.start_s, start_s)
        needed = 0.5 * min(cue.end_s - cue.start_s, end_s - start_s)
        if overlap > 0 and overlap >= needed and cue.text not in texts[-1:]:
            texts.append(cue.text)
    return " ".join(texts) or None


def parse_subtitles(text: str) -> list[Cue]:
    """Cues of WebVTT or SubRip text; markup is dropped, blocks that are no cues are passed over."""
    cues = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        for i, line in enumerate(lines):
            match = _TIMING.match(line)
            if match:
                times = match.groups()
                said = _tidy(html.unescape(_TAG.sub("", " ".join(lines[i + 1 :]))))
                start_s, end_s = _seconds(*times[:4]), _seconds(*times[4:])
                if said and end_s > start_s:
                    cues.append(Cue(start_s, end_s, said))
                break
    return cues


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction) / 10 ** len(fraction)


def _read(path: str) -> Content | None:
    """None when there is no such file."""
    try:
        if "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would not end
            raise ValueError(f"{path}: not a regular file")
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError as error:
        # A name that is too long for one more suffix has no such neighbour.
        if isinstance(error, FileNotFoundError) or error.errno == errno.ENAMETOOLONG:
            return None
        raise ValueError(f"{path}: the caption file cannot be read: {error.strerror or error}") from error
    text = _decoded(path, data)
    if path.endswith((".vtt", ".srt")):
        return None, parse_subtitles(text)
    if path.endswith(".txt"):
        return _tidy(text), None
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
        # What is read of a file that is too long may end within a character.
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=len(data) < _MAX_BYTES)
        if "\0" in text:  # UTF-16 without its mark, or no text at all
            raise ValueError("zero bytes")
    except ValueError as error:
        raise ValueError(
            f"{path}: not a caption file: it is not in UTF-8 (nor in UTF-16 with its mark); save it as UTF-8 "
            f"({error})"
        ) from error
    return text


def _from_json(value: Any) -> Content:
    if isinstance(value, str):
        return _tidy(value), None
    if isinstance(value, list):
        return None, [Cue(float(v["start"]), float(v["end"]), _tidy(_caption_of(v))) for v in value]
    return _tidy(_caption_of(value)), None


def _caption_of(value: Any) -> str:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} where an object should be")
    text = value.get("caption", value.get("text"))
    if not isinstance(text, str):
        raise ValueError("no `caption` or `text`")
    return text


def _tidy(text: str) -> str:
    # JSON can escape half a character, which no table can hold, and what moves a terminal's cursor.
    return " ".join(_CONTROL.sub(" ", text.encode("utf-8", "replace").decode()).split())


def _stem(uri: str) -> str:
    folder, slash, name = uri.rpartition("/")
    return folder + slash + name.rpartition(".")[0] if "." in name else uri
