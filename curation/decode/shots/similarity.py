"""Our own detector: a small network judges how alike the frames around each moment are (see `likeness`).

It costs a small part of a decode, and finds gradual transitions with their first and last frames.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf
from typing import Any

import numpy as np

from curation.decode.likeness.compare import stride_of
from curation.decode.likeness.decide import LONGEST, Change, Decider
from curation.decode.likeness.describe import LENGTH, describe, shrink
from curation.decode.likeness.network import Stream
from curation.decode.pixels.frame import Frame
from curation.decode.shots.base import Cut

GRADUAL_THRESHOLD = 0.8  # probability that a frame is of a gradual transition


class Similarity:
    """Judges each frame by how alike the frames around it are. Every cut counts, however near to another."""

    value_type = np.dtype((np.uint8, LENGTH))

    def __init__(self, threshold: float, fps: float):
        self._stream = Stream(stride_of(fps))
        self._decider = Decider(threshold, GRADUAL_THRESHOLD)
        self._times: list[float] = []  # of the frames that are not decided yet, and of some before
        self._first = 0  # the number of the first of them
        self._last_small: tuple[np.ndarray, ...] = ()
        self._last_vector: np.ndarray | None = None
        self.lag_s = 0.0
        self.lag_frames = self._stream.lag_frames + LONGEST

    def push(self, frame: Frame) -> list[Cut]:
        return self.decide(frame.time_s, 0, Fraction(1), self.value(frame))

    def value(self, frame: Frame) -> np.ndarray:
        """The first step: the vector (488,) uint8 that describes the frame."""
        y, u, v = planes = shrink(*frame.planes(), full_range=frame.full_range)
        if self._last_vector is None or not all(map(np.array_equal, planes, self._last_small)):
            self._last_vector = describe(y, u, v)
        self._last_small = planes
        return self._last_vector

    def decide(self, time_s: float, pts: int, time_base: Fraction, value: Any) -> list[Cut]:
        """The second step: the changes that are certain after the next frame with this vector."""
        self._times.append(time_s)
        found = self._stream.push(value)
        return self._cuts(self._decider.push(found)) if len(found) else []

    def finish(self) -> list[Cut]:
        last = self._decider.push(self._stream.finish())
        return self._cuts([*last, *self._decider.finish()])

    def _cuts(self, changes: list[Change]) -> list[Cut]:
        cuts = [self._cut(change) for change in changes]
        done = self._decider.first - self._first
        self._times, self._first = self._times[done:], self._first + done
        return cuts

    def _cut(self, change: Change) -> Cut:
        time_s = self._times[change.first - self._first]
        frames = change.last - change.first + 1
        if not frames:
            return Cut(change.first, time_s)
        after = change.last + 1 - self._first
        resumes_s = self._times[after] if after < len(self._times) else inf
        return Cut(change.first, time_s, frames, resumes_s)
