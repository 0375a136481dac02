"""Captions in values of JSON and of lists: which text is one, and the forms of metadata that others write.

Read are texts; objects with `caption`, `text`, `prompt`, `cap` or `captions` (img2dataset, video2dataset,
LTX-2, EasyAnimate, Open-Sora, DiffSynth, FastVideo); lists of such objects, matched by `start` and `end` or
by the file that they name; and what speech recognisers write (`segments`, `chunks`, `transcription`).
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from captioning.prompts import tidy
from captioning.subtitles import Cue

# (text for the whole source, None), or (None, cues)
Content = tuple[str | None, list[Cue] | None]
NOTHING: Content = (None, None)

CAPTION_KEYS = ("caption", "text", "prompt", "cap", "captions")
SPANS = "spans"  # in `extra`: the rows of a list that name one file, each with its start and end
_TIMED_LISTS = ("segments", "chunks", "transcription")
_FILE_KEYS = ("file_path", "path", "video", "video_path", "media_path", "file_name", "filename", "file")
_STARTS = ("start", "start_s", "start_time", "start_timestamp")
_ENDS = ("end", "end_s", "end_time", "end_timestamp")
TIME_KEYS = frozenset({*_STARTS, *_ENDS, "timestamp"})
_NO_TEXT = frozenset({"nan", "none", "null", "n/a", "<na>", "#n/a"})
_NUMBERS = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?%?", re.IGNORECASE)
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d+)?)")


def text_of(value: Any) -> str | None:
    """The caption that a value holds, or None. Of a list of texts, also one that is written as a text, it is
    the first. NaN, words for a missing value, and numbers are no caption."""
    if isinstance(value, str):
        written = value.strip()
        if written.startswith("[") and written.endswith("]") and (items := _list_in(written)) is not None:
            return text_of(items)
        tidied = tidy(value)
        is_none = tidied.lower() in _NO_TEXT or all(map(_NUMBERS.fullmatch, re.split(r"[\s;]+", tidied)))
        return None if is_none or not tidied else tidied
    if isinstance(value, list | tuple):
        return next((text for v in value if isinstance(v, str) and (text := text_of(v))), None)
    return None


def _list_in(text: str) -> list[Any] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def caption_in(row: Mapping[str, Any], column: str | None = None) -> str | None:
    """The caption of an object or a row. Names count in any case; None: under any name of a caption."""
    by_name = {str(key).strip().lower(): value for key, value in row.items()}
    names = CAPTION_KEYS if column is None else (column.strip().lower(),)
    return next((text for name in names if (text := text_of(by_name.get(name)))), None)


def seconds_of(value: Any) -> float | None:
    """Seconds of a number or of a text such as `12.5` or `0:01:02.500`. Raises `ValueError`."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _CLOCK.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{str(value)[:40]!r} is no time in seconds, and none such as 0:01:02.500")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds.replace(",", "."))


def span_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The start and the end in seconds of an object or a row; None without both. Raises `ValueError`."""
    by_name = {str(key).strip().lower(): value for key, value in row.items()}
    pair = by_name.get("timestamp")
    if isinstance(pair, list | tuple) and len(pair) == 2 and not isinstance(pair[0], list):
        start, end = pair
        end = math.inf if end is None else end  # the last chunk of a recogniser may be open
    elif isinstance(offsets := by_name.get("offsets"), Mapping):  # whisper.cpp, in milliseconds
        start, end = (float(offsets[key]) / 1000 for key in ("from", "to"))
    else:
        start = next((by_name[n] for n in _STARTS if n in by_name), None)
        end = next((by_name[n] for n in _ENDS if n in by_name), None)
    start_s, end_s = seconds_of(start), seconds_of(end)
    return None if start_s is None or end_s is None else (start_s, end_s)


def cues_in(rows: Sequence[Any], column: str | None = None) -> list[Cue]:
    """The rows that have both times and a caption. Raises `ValueError`."""
    cues = []
    for row in rows:
        if isinstance(row, Mapping) and (text := caption_in(row, column)) and (span := span_of(row)):
            cues.append(Cue(*span, text))
    return cues


def from_json(value: Any, name: str) -> Content:
    """What a JSON file beside a source says of it. `NOTHING`: it holds no caption.

    name: the name of the JSON file without its suffix, for lists that name several files.

    Raises `ValueError`.
    """
    if isinstance(value, Mapping):
        for key in _TIMED_LISTS:
            if isinstance(rows := value.get(key), list) and (cues := cues_in(rows)):
                return None, cues
        return caption_in(value), None
    if not isinstance(value, list):
        return text_of(value), None
    rows = [row for row in value if isinstance(row, Mapping)]
    if any(span_of(row) is not None for row in rows):
        return None, cues_in(rows)
    if not rows:
        return text_of(value), None
    files = [next((str(row[k]) for k in _FILE_KEYS if row.get(k)), None) for row in rows]
    mine = [row for row, file in zip(rows, files, strict=True) if file and name in _names(file)]
    if not mine and len(rows) == 1:
        mine = rows
    return next((text for row in mine if (text := caption_in(row))), None), None


def _names(path: str) -> tuple[str, str]:
    """The name of a file with its suffix and without."""
    base = re.split(r"[/\\]", path)[-1]
    return base, base.rpartition(".")[0]
