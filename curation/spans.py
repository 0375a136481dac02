"""From shots to candidate clips: spans of presentation time, aligned to frames."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Frames with `start_s` <= time < `end_s`: from the first one's timestamp to the end of the last one."""

    start_s: float
    end_s: float
    frames: int

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def divide(
    times_s: Sequence[float],
    end_s: float,
    *,
    max_seconds: float,
    trim_seconds: float,
    trim_start: bool = True,
    trim_end: bool = True,
) -> list[Span]:
    """Divide one scene into spans of at most `max_seconds`.

    `times_s` are the timestamps of the scene's frames, `end_s` is when the last one ends. Edges that are
    cuts are trimmed by `trim_seconds` first, so that the neighbour's frames (an inexact cut, a blended
    frame) stay out. What is left is divided into near-equal parts. A scene that the trim would use up
    gives one untrimmed span: too short for any sensible rule, but accounted for.
    """
    assert len(times_s) > 0
    first, last = 0, len(times_s)  # frames [first, last) remain
    if trim_start:
        first = bisect.bisect_left(times_s, times_s[0] + trim_seconds)
    if trim_end:
        last = _last_ending_by(times_s, end_s, end_s - trim_seconds)
    if first >= last:
        return [Span(times_s[0], end_s, len(times_s))]

    def end_of(index: int) -> float:
        return times_s[index] if index < len(times_s) else end_s

    start, stop = times_s[first], end_of(last)
    # The small allowance keeps a scene of exactly 20 s, as floats have it, in two parts of 10 s.
    parts = max(1, math.ceil((stop - start) / max_seconds - 1e-6))
    while True:
        bounds = [first]
        for k in range(1, parts):
            bounds.append(bisect.bisect_left(times_s, start + (stop - start) * k / parts - 1e-6))
        bounds.append(last)
        spans = [Span(times_s[a], end_of(b), b - a) for a, b in itertools.pairwise(bounds) if b > a]
        # Aligning to frames can make a part one frame too long.
        if all(s.duration_s <= max_seconds + 1e-6 or s.frames == 1 for s in spans):
            return spans
        parts += 1


def _last_ending_by(times_s: Sequence[float], end_s: float, limit_s: float) -> int:
    """How many leading frames end at or before `limit_s` (a frame ends where the next one begins)."""
    if end_s <= limit_s + 1e-6:
        return len(times_s)
    return max(0, bisect.bisect_right(times_s, limit_s + 1e-6) - 1)
