"""Clips whose spans a list gives: each row's span is a clip, and no shots are detected.

A span begins and ends at the frames that are nearest to its times. Spans may overlap.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from curation.decode.pixels.frame import Frame
from curation.decode.shots.spans import Span

LONGEST_SECONDS = 600.0  # the pictures of an open span are kept in memory
_FEW_SECONDS = 0.5  # that a span may reach over the ends of its source without a word
_MOST_SAID = 3
_Times = tuple[float, float]


class ListedSpans:
    """The spans of one source, closed while its frames are decoded.

    wanted: (start, end) in seconds since the file begins, which is at `file_start_s`.
    """

    def __init__(self, wanted: Iterable[_Times], file_start_s: float):
        self._file_start_s = file_start_s
        self._left_out: list[tuple[_Times, str]] = []
        self._shortened = 0
        self._waiting: list[_Times] = []
        self._open: list[_Times] = []  # that have begun
        self._times: list[float] = []  # of the frames since the start of the first open span
        self._first_s: float | None = None  # of this part of the source
        self._made: set[Span] = set()
        for start_s, end_s in sorted((a + file_start_s, b + file_start_s) for a, b in wanted):
            if not end_s > start_s:
                self._leave_out((start_s, end_s), "it is empty")
            else:
                self._waiting.append((start_s, end_s))

    @property
    def open_s(self) -> float | None:
        """Frames before this time are no longer needed."""
        return self._times[0] if self._times else None

    def push(self, frame: Frame) -> list[Span]:
        """Add a frame. Returns the spans that end at it, or before it."""
        time_s = frame.time_s
        self._first_s = time_s if self._first_s is None else self._first_s
        self._times.append(time_s)
        while self._waiting and self._waiting[0][0] <= time_s:
            self._open.append(self._waiting.pop(0))
        for span in [s for s in self._open if time_s - s[0] > LONGEST_SECONDS and s[1] > time_s]:
            self._open.remove(span)
            self._leave_out(span, f"it is longer than {LONGEST_SECONDS:g} s")
        ended = [s for s in self._open if s[1] <= time_s]
        self._open = [s for s in self._open if s[1] > time_s]
        found = self._spans(ended, self._times)
        begins_s = min((s[0] for s in self._open), default=time_s)
        # The frame before a start may be nearer to it than the one behind it.
        del self._times[: max(0, bisect.bisect_right(self._times, begins_s) - 1)]
        return found

    def finish(self, end_s: float, *, is_last: bool) -> list[Span]:
        """The spans that end with the source, or with a part of it that has one size. `end_s`: its end."""
        edges = [*self._times, end_s]
        crossing = [s for s in self._open if s[1] > end_s]
        found = self._spans([s for s in self._open if s[1] <= end_s], edges)
        for span in crossing:
            nearer = end_s - span[0] > span[1] - end_s and span[1] - end_s <= _FEW_SECONDS
            if is_last or nearer:
                self._shortened += span[1] - end_s > _FEW_SECONDS and span[1] != float("inf")
                found += self._spans([(span[0], end_s)], edges)
            else:
                self._leave_out(
                    span, f"the size changes, or another recording begins, at {self._shown(end_s)} s"
                )
        self._open, self._times, self._first_s = [], [], None
        if is_last:
            for span in self._waiting:
                self._leave_out(span, f"the source ends at {self._shown(end_s)} s")
            self._waiting = []
        return found

    def _spans(self, wanted: Sequence[_Times], edges_s: Sequence[float]) -> list[Span]:
        found = []
        for times in wanted:
            first, last = (_nearest(edges_s, t) for t in times)
            span = Span(edges_s[first], edges_s[last], last - first)
            early_s = (self._first_s or 0.0) - times[0]
            if span.frames < 1:
                self._leave_out(times, "no frame is in it")
            elif span in self._made:
                self._leave_out(times, "it has the same frames as another one")
            else:
                self._shortened += early_s > _FEW_SECONDS
                self._made.add(span)
                found.append(span)
        return found

    def _leave_out(self, times: _Times, why: str) -> None:
        self._left_out.append((times, why))

    def _shown(self, time_s: float) -> str:
        """As a time of the list."""
        return f"{round(time_s - self._file_start_s, 3):.10g}"

    def notes(self) -> str | None:
        """What became no clip, and what was shortened, in words. Times are those of the list."""
        notes = []
        if self._left_out:
            said = [
                f"{self._shown(a)} to {self._shown(b)} s, {why}"
                for (a, b), why in self._left_out[:_MOST_SAID]
            ]
            more = len(self._left_out) - _MOST_SAID
            several = f", and {more} more" if more > 0 else ""
            notes.append(
                f"spans of the list that are no clips: {len(self._left_out)} ({'; '.join(said)}{several})"
            )
        if self._shortened:
            notes.append(
                f"spans of the list that reach over an end of the source, and are shorter: {self._shortened}"
            )
        return "; ".join(notes) or None


def _nearest(edges_s: Sequence[float], time_s: float) -> int:
    """The index of the edge that is nearest to `time_s`; of two that are equally near the later one."""
    i = bisect.bisect_left(edges_s, time_s)
    if i == 0 or i == len(edges_s):
        return min(i, len(edges_s) - 1)
    return i if edges_s[i] - time_s <= time_s - edges_s[i - 1] + 1e-6 else i - 1
