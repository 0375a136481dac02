"""Captions in values of JSON and of lists: which text is one, and the forms of metadata that others write.

Read are texts; objects with `caption`, `text`, `prompt`, `cap` or `captions` (img2dataset, video2dataset,
LTX-2, EasyAnimate, Open-Sora, DiffSynth, FastVideo); lists of such objects, matched by `start` and `end` or
by the file that they name; and what speech recognisers write (`segments`, `chunks`, `transcription`).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from captioning.formats import of_json3
from captioning.prompts import tidy
from captioning.subtitles import Cue, is_seen

# (text for the whole source, None), or (None, cues)
Content = tuple[str | None, list[Cue] | None]
NOTHING: Content = (None, None)

CAPTION_KEYS = (
    *("caption", "text", "prompt", "cap", "captions"),
    *("long_caption", "detailed_caption", "dense_caption", "short_caption"),
)
_WITHIN = (*CAPTION_KEYS, "long", "detailed", "dense", "short")  # of an object that is a caption
_OF_SPANS = (*CAPTION_KEYS, "content", "sentence")  # of an object with times
SPANS = "spans"  # in `extra`: the rows of a list that name one file, each with its start and end
_TIMED_LISTS = ("segments", "chunks", "transcription", "captions")
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
        if written.startswith("[") and written.endswith("]") and (items := list_in(written)) is not None:
            return text_of(items)
        if written.startswith(("{", "[{")) and (inner := _object_in(written)) is not None:
            return inner
        tidied = tidy(value)
        is_none = tidied.lower() in _NO_TEXT or all(map(_NUMBERS.fullmatch, re.split(r"[\s;]+", tidied)))
        return None if is_none or not tidied or not is_seen(tidied) else tidied
    if isinstance(value, list | tuple):
        return next((text for v in value if isinstance(v, str) and (text := text_of(v))), None)
    if isinstance(value, Mapping):
        return next(
            (text for k in _WITHIN if isinstance(value.get(k), str) and (text := text_of(value[k]))), None
        )
    return None


def list_in(text: str) -> list[Any] | None:
    """The list of texts that is written as a text, as tables without lists hold it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def _object_in(text: str) -> str | None:
    """The caption in an object, or the first of a list of objects, that is written as a text. None: it has
    none under a usual name."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and value:
        value = value[0]
    return text_of(value) if isinstance(value, dict) else None


def values_in(text: str) -> Any:
    """The value of a JSON text; of one with an object in each line (JSONL) the list of them.

    Raises `ValueError`.
    """
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        return [json.loads(line) for line in lines]


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
    start_s, end_s = times_of(row)
    return None if start_s is None or end_s is None else (start_s, end_s)


def times_of(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The start and the end in seconds of an object or a row, as far as it has them. Raises `ValueError`."""
    by_name = {str(key).strip().lower(): value for key, value in row.items()}
    pair = by_name.get("timestamp")
    if isinstance(pair, str) and pair.strip().startswith("["):  # Koala-36M, MiraData
        pair = list_in(pair.strip())
    if isinstance(pair, list | tuple) and len(pair) == 2 and not isinstance(pair[0], list):
        start, end = pair
        end = math.inf if end is None else end  # the last chunk of a recogniser may be open
    elif isinstance(offsets := by_name.get("offsets"), Mapping):  # whisper.cpp, in milliseconds
        start, end = (float(offsets[key]) / 1000 for key in ("from", "to"))
    else:
        start = next((by_name[n] for n in _STARTS if n in by_name), None)
        end = next((by_name[n] for n in _ENDS if n in by_name), None)
    return seconds_of(start), seconds_of(end)


def cues_in(rows: Sequence[Any], column: str | None = None) -> list[Cue]:
    """The rows that have both times and a caption. Raises `ValueError`."""
    cues = []
    for row in rows:
        if isinstance(row, Mapping) and (text := _of_span(row, column)) and (span := span_of(row)):
            cues.append(Cue(*span, text))
    return cues


def _of_span(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is not None:
        return caption_in(row, column)
    return next((text for name in _OF_SPANS if (text := caption_in(row, name))), None)


def cues_within(row: Mapping[str, Any]) -> tuple[list[Cue], tuple[str, ...]]:
    """The cues of an object that holds a list of objects with times and texts (Whisper, ShareGPT4Video), or a
    list of times and a list of as many texts (ActivityNet Captions); and the keys that hold them.

    Raises `ValueError`.
    """
    for key in _TIMED_LISTS:
        if isinstance(rows := row.get(key), list) and (cues := cues_in(rows)):
            return cues, (key,)
    if isinstance(events := row.get("events"), list) and (cues := of_json3(events)):
        return cues, ("events",)
    times = row.get("timestamps")
    for key in ("sentences", "captions"):
        texts = row.get(key)
        if isinstance(times, list) and isinstance(texts, list) and len(times) == len(texts):
            pairs = zip(times, texts, strict=True)
            return cues_in([{"timestamp": pair, "caption": text} for pair, text in pairs]), (
                "timestamps",
                key,
            )
    return [], ()


def from_json(value: Any, name: str) -> Content:
    """What a JSON file beside a source says of it. `NOTHING`: it holds no caption.

    name: the name of the JSON file without its suffix, for lists that name several files.

    Raises `ValueError`.
    """
    if isinstance(value, Mapping):
        return _of_object(value, name)
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


def _of_object(value: Mapping[str, Any], name: str) -> Content:
    cues, _ = cues_within(value)
    if cues:
        return None, cues
    if (text := caption_in(value)) is not None:
        return text, None
    named = next((v for k, v in value.items() if name in (k, *_names(str(k)))), None)
    return _of_object(named, name) if isinstance(named, Mapping) else NOTHING


def _names(path: str) -> tuple[str, str]:
    """The name of a file with its suffix and without."""
    base = re.split(r"[/\\]", path)[-1]
    return base, base.rpartition(".")[0]
