"""Subtitles in other forms than WebVTT and SubRip: ASS and SSA, SBV, LRC, TTML, and YouTube's json3.

Each function gives the cues of a text; what cannot be read in it is no cue. Nothing raises.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from captioning.prompts import tidy
from captioning.subtitles import Cue, parse_subtitles

_ASS_CODES = re.compile(r"\{[^{}]*\}")
_ASS_BREAK = re.compile(r"\\[Nnh]")
_CLOCK = r"(\d+):(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)"
_ASS_CLOCK = re.compile(rf"\s*{_CLOCK}\s*")
_SBV_TIMES = re.compile(rf"^\s*{_CLOCK}\s*,\s*{_CLOCK}\s*$")
_LRC_TIME = re.compile(r"\[(\d+):(\d{1,2}(?:[.:]\d+)?)\]")
_LRC_WORD = re.compile(r"<\d+:\d{1,2}(?:[.:]\d+)?>")
_LRC_LAST_SECONDS = 5.0  # a line of LRC says when it begins, and not when it ends
_TTML_PARAGRAPH = re.compile(r"<(?:\w+:)?p(?=[\s>])")
_TTML_END = re.compile(r"</(?:\w+:)?p\s*>")
_TTML_BREAK = re.compile(r"<(?:\w+:)?br\b[^<>]*>")
_MARKUP = re.compile(r"<[^<>]*>")
_ATTRIBUTE = re.compile(r"""\b(?:\w+:)?(\w+)\s*=\s*["']([^"']*)["']""")
_TTML_CLOCK = re.compile(r"(\d+):(\d{2}):(\d{2}(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")
_TTML_OFFSET = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|f|t)")
_HEAD_CHARACTERS = 10_000

TIMED_SUFFIXES = (".vtt", ".srt", ".ass", ".ssa", ".ttml", ".dfxp", ".sbv", ".lrc")


def cues_of(text: str, suffix: str) -> list[Cue]:
    """The cues of a subtitle file. Its content counts where it is of another form than its suffix says."""
    head = text[:_HEAD_CHARACTERS].lstrip("\ufeff \r\n\t")
    if head.lower().startswith("[script info]") or suffix in (".ass", ".ssa"):
        return list(_of_ass(text))
    if suffix in (".ttml", ".dfxp") or (head.startswith("<") and re.search(r"<(?:\w+:)?tt[\s>]", head)):
        return list(_of_ttml(text))
    if suffix == ".lrc":
        return _of_lrc(text)
    return parse_subtitles(text) or (list(_of_sbv(text)) if suffix != ".vtt" else [])


def of_json3(events: Sequence[Any]) -> list[Cue]:
    """The cues of YouTube's json3: events with a start and a duration in milliseconds, and pieces of text."""
    cues = []
    for event in events:
        pieces = event.get("segs") if isinstance(event, Mapping) else None
        start, length = (event.get(k) for k in ("tStartMs", "dDurationMs")) if pieces else (None, None)
        if isinstance(pieces, list) and isinstance(start, int | float) and isinstance(length, int | float):
            text = tidy("".join(str(p.get("utf8") or "") for p in pieces if isinstance(p, Mapping)))
            if text and length > 0:
                cues.append((start / 1000, (start + length) / 1000, text))
    # Of captions that roll, an event stays on the screen while the next one begins.
    ends = [min(a[1], b[0]) if b[0] > a[0] else a[1] for a, b in itertools.pairwise([*cues, *cues[-1:]])]
    return [Cue(start, end, text) for (start, _, text), end in zip(cues, ends, strict=True)]


def _seconds(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def _of_ass(text: str) -> Iterator[Cue]:
    columns = ["layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text"]
    is_event = False
    for line in text.splitlines():
        key, colon, rest = line.strip().partition(":")
        if key.startswith("["):
            is_event = key.lower() == "[events]"
        elif is_event and colon and key.lower() == "format":
            columns = [name.strip().lower() for name in rest.split(",")]
        elif is_event and colon and key.lower() == "dialogue":
            cells = dict(zip(columns, rest.split(",", len(columns) - 1), strict=False))
            times = [_ASS_CLOCK.fullmatch(cells.get(name, "")) for name in ("start", "end")]
            said = tidy(_ASS_BREAK.sub(" ", _ASS_CODES.sub("", cells.get("text", ""))))
            if all(times) and said and r"\p1" not in cells["text"]:  # \p1: a drawing
                start_s, end_s = (_seconds(*match.groups()) for match in times if match)
                if end_s > start_s:
                    yield Cue(start_s, end_s, said)


def _of_sbv(text: str) -> Iterator[Cue]:
    times: tuple[float, float] | None = None
    said: list[str] = []
    for line in [*text.splitlines(), "0:00:00.000,0:00:00.000"]:
        if match := _SBV_TIMES.match(line):
            if times and times[1] > times[0] and (words := tidy(" ".join(said))):
                yield Cue(*times, words)
            groups = match.groups()
            times, said = (_seconds(*groups[:3]), _seconds(*groups[3:])), []
        else:
            said.append(line)


def _of_lrc(text: str) -> list[Cue]:
    lines: list[tuple[float, str]] = []
    for line in text.splitlines():
        times = _LRC_TIME.findall(line)
        said = tidy(_LRC_WORD.sub("", _LRC_TIME.sub("", line)))
        lines += [(int(m) * 60 + float(s.replace(":", ".")), said) for m, s in times]
    lines.sort(key=lambda item: item[0])
    ends = [*(start for start, _ in lines[1:]), *(start + _LRC_LAST_SECONDS for start, _ in lines[-1:])]
    return [Cue(a, b, said) for (a, said), b in zip(lines, ends, strict=True) if said and b > a]


def _of_ttml(text: str) -> Iterator[Cue]:
    rates = dict(_ATTRIBUTE.findall(text[:_HEAD_CHARACTERS]))
    for piece in _TTML_PARAGRAPH.split(text)[1:]:
        head, _, content = piece.partition(">")
        content = _TTML_END.split(content, maxsplit=1)[0]
        given = dict(_ATTRIBUTE.findall(head))
        begin_s, end_s, lasts_s = (_ttml_seconds(given.get(k), rates) for k in ("begin", "end", "dur"))
        if end_s is None and begin_s is not None and lasts_s is not None:
            end_s = begin_s + lasts_s
        said = tidy(html.unescape(_MARKUP.sub("", _TTML_BREAK.sub(" ", content))))
        if begin_s is not None and end_s is not None and end_s > begin_s and said:
            yield Cue(begin_s, end_s, said)


def _ttml_seconds(time: str | None, rates: Mapping[str, str]) -> float | None:
    if time is None:
        return None
    frames = _number(rates.get("frameRate"), 30)
    if match := _TTML_CLOCK.fullmatch(time.strip()):
        return _seconds(*match.groups()[:3]) + float(match[4] or 0) / frames
    if match := _TTML_OFFSET.fullmatch(time.strip()):
        per = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "f": 1 / frames}
        per["t"] = 1 / _number(rates.get("tickRate"), 1)
        return float(match[1]) * per[match[2]]
    return None


def _number(text: str | None, default: float) -> float:
    return float(text) if text and text.isdigit() and int(text) > 0 else default
