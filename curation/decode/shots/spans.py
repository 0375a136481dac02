"""Divides shots into candidate clips: spans of presentation time that are aligned to frames."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """The frames with `start_s` <= time < `end_s`: from the first frame's time to the last frame's end."""

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

    times_s: the timestamps of the scene's frames. end_s: the end of the last frame.

    First, edges that are cuts are trimmed by `trim_seconds`. So the frames of the neighbouring scene (after
    an inexact cut, or in a blended frame) are excluded. The rest is divided into nearly equal parts. A scene
    that is shorter than the trim gives one untrimmed span. That span is too short for any useful rule, but
    the scene is still counted.
    """
    assert len(times_s) > 0
    first, last = 0, len(times_s)  # frames [first, last) remain
    if trim_start:
        first = bisect.bisect_left(times_s, times_s[0] + trim_seconds)
    if trim_end:
        last = _last_ending_by(times_s, end_s, end_s - trim_seconds)
    if first >= last:
        return [Span(times_s[0], min(end_s, times_s[-1] + max_seconds), len(times_s))]

    def end_of(index: int) -> float:
        return times_s[index] if index < len(times_s) else end_s

    # A frame that lasts longer than `max_seconds` (a jump of the timestamps, a frozen picture) becomes its
    # own span. Otherwise the frame would force its neighbours into tiny parts, and a jump of a day would give
    # millions of parts.
    bounds = [first]
    for i in range(first, last):
        if end_of(i + 1) - times_s[i] > max_seconds:
            bounds += [i, i + 1]
    bounds.append(last)
    return [
        span
        for a, b in itertools.pairwise(bounds)
        if b > a
        for span in _near_equal([*times_s[a:b], end_of(b)], max_seconds)
    ]


def _near_equal(edges_s: Sequence[float], max_seconds: float) -> list[Span]:
    """Spans of at most `max_seconds`. `edges_s`: the start of each frame, and the end of the last frame."""
    start, stop, frames = edges_s[0], edges_s[-1], len(edges_s) - 1
    if frames == 1:
        return [Span(start, min(stop, start + max_seconds), 1)]
    # The small tolerance divides a scene of 20 s into two parts of 10 s in spite of rounding errors.
    parts = max(1, math.ceil((stop - start) / max_seconds - 1e-6))
    while True:
        bounds = [0]
        for k in range(1, parts):
            bounds.append(bisect.bisect_left(edges_s, start + (stop - start) * k / parts - 1e-6, 0, frames))
        bounds.append(frames)
        spans = [Span(edges_s[a], edges_s[b], b - a) for a, b in itertools.pairwise(bounds) if b > a]
        # Aligning to frames can make a part one frame too long.
        if all(s.duration_s <= max_seconds + 1e-6 or s.frames == 1 for s in spans):
            return spans
        parts += 1


def _last_ending_by(times_s: Sequence[float], end_s: float, limit_s: float) -> int:
    """The number of first frames that end by `limit_s`. A frame ends where the next frame begins."""
    if end_s <= limit_s + 1e-6:
        return len(times_s)
    return max(0, bisect.bisect_right(times_s, limit_s + 1e-6) - 1)
