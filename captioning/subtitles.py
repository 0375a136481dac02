"""WebVTT and SubRip: cues from a text, and what is said during a clip. Times are seconds from the start."""

from __future__ import annotations

import html
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from captioning.prompts import tidy

_TIME = r"(-?)(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?"
_TIMING = re.compile(rf"^\s*{_TIME}\s*-{{1,2}}>\s*{_TIME}(?!\S)")
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:[bicu]|v|c|lang|ruby|rt|font)(?:[.\s][^>]*)?>|<\d[\d:.]*>|\{\\[^}]*\}", re.IGNORECASE
)
_WORD_TIME = re.compile(r"<\d[\d:.]*><c>")  # in automatic captions
_TOUCHING_SECONDS = 0.1  # between cues of captions that roll
_FEWEST_REPEATS = 2  # of lines by the next cue: one alone may have been said twice


def is_seen(text: str) -> bool:
    """Is there a sign that can be seen? Not of spaces without width and marks of direction alone."""
    return any(unicodedata.category(sign) not in ("Cf", "Zs") for sign in text)


@dataclass(frozen=True)
class Cue:
    """A text, and the times in seconds between which it is shown."""

    start_s: float
    end_s: float
    text: str


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
    """The cues of a WebVTT or SubRip text. Markup is removed, and blocks without a cue are skipped.

    Captions that roll, as automatic ones of YouTube do, repeat the line before: it is said once.
    """
    shown = [
        cue
        for cue in _shown(text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n"))
        if cue.lines
    ]
    if _rolls(shown, is_timed_by_words=bool(_WORD_TIME.search(text))):
        return _each_once(shown)
    return [Cue(cue.start_s, cue.end_s, " ".join(cue.lines)) for cue in shown]


@dataclass(frozen=True)
class _Shown:
    """A cue by the lines that are on the screen."""

    start_s: float
    end_s: float
    lines: list[str]


def _shown(text: str) -> Iterator[_Shown]:
    """A line with two times begins a cue; an empty line, or the next such line, ends it."""
    times: tuple[float, float] | None = None
    is_numbered, lines, before = False, list[str](), ""
    for line in [*text.split("\n"), ""]:
        match = _TIMING.match(line)
        # A cue of automatic captions may begin with a line that holds a blank.
        ends = match or line == "" or (not line.strip() and any(said.strip() for said in lines))
        if ends and times is not None:
            if match and is_numbered and lines and lines[-1].strip().isdigit():
                before = lines.pop()  # it is the number of the cue that begins here
            yield from _cue(times, lines)
            times = None
        if match:
            groups = match.groups()
            times, lines = (_seconds(*groups[:5]), _seconds(*groups[5:])), []
            is_numbered = before.strip().isdigit()
        elif times is not None:
            lines.append(line)
        before = line


def _cue(times: tuple[float, float], lines: Sequence[str]) -> Iterator[_Shown]:
    said = [tidy(html.unescape(_TAG.sub("", _BREAK.sub(" ", line)))) for line in lines]
    if times[1] > times[0]:
        yield _Shown(*times, [line for line in said if is_seen(line)])


def _seconds(sign: str, hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    part = int(fraction) / 10 ** len(fraction) if fraction else 0.0
    total = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + part
    return -total if sign else total


def _repeated(before: _Shown, cue: _Shown) -> int:
    """With how many words does the cue begin that are the last whole lines of the cue before it?"""
    if not -_TOUCHING_SECONDS <= cue.start_s - before.end_s <= _TOUCHING_SECONDS:
        return 0
    words = " ".join(cue.lines).split()
    for first in range(len(before.lines)):
        of_lines = " ".join(before.lines[first:]).split()
        if words[: len(of_lines)] == of_lines:
            return len(of_lines)
    return 0


def _rolls(cues: Sequence[_Shown], *, is_timed_by_words: bool) -> bool:
    """Do cues repeat the one before them, and go on?"""
    repeats = 0
    for before, cue in itertools.pairwise(cues):
        repeats += 0 < _repeated(before, cue) < len(" ".join(cue.lines).split())
    fewest = 1 if is_timed_by_words else _FEWEST_REPEATS
    return repeats >= max(fewest, len(cues) / 5)


def _each_once(cues: Sequence[_Shown]) -> list[Cue]:
    found: list[Cue] = []
    before: _Shown | None = None
    for cue in cues:
        known = _repeated(before, cue) if before is not None else 0
        new = " ".join(cue.lines).split()[known:]
        if new:
            found.append(Cue(cue.start_s, cue.end_s, " ".join(new)))
        elif found:  # the same text is shown for longer
            found[-1] = replace(found[-1], end_s=max(found[-1].end_s, cue.end_s))
        before = cue
    return found
