"""What a shot detector is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Protocol

import numpy as np

from curation.decode.pixels.frame import Frame

FAST_LONG_SIDE = 128  # pixels


@dataclass(frozen=True)
class Cut:
    """Where a shot ends: the frame `index` is the first one that does not belong to it.

    After a hard cut the next shot begins with this frame. A gradual transition has `frames` that show both
    shots and belong to none, and the next shot begins at `resumes_s`.
    """

    index: int  # the number of the frame, from 0
    time_s: float
    frames: int = 0  # of a gradual transition; 0: a hard cut
    resumes_s: float | None = None  # of a gradual transition; infinite: the source ends with it


class ShotDetector(Protocol):
    """Takes frames and returns cuts in order, at most `lag_s` seconds and `lag_frames` frames late."""

    lag_s: float
    lag_frames: int

    def push(self, frame: Frame) -> list[Cut]: ...

    def finish(self) -> list[Cut]: ...


class OwnDetector:
    """The base of a shot detector of your own, one object for each source.

    A subclass is a dataclass. Its fields are the parameters that a configuration can set (`shots.own`).

    Set `lag_s` and `lag_frames` to how late `push` tells of a cut. 0: it tells with the cut's first frame.
    """

    lag_s = 0.0
    lag_frames = 0

    def push(self, frame: Frame) -> list[Cut]:
        """Take the next frame. `frame.rgb(width, height)` gives a picture, `frame.time_s` its time."""
        raise NotImplementedError(f"{type(self).__name__} has no method push")

    def finish(self) -> list[Cut]:
        """The last cuts, after the last frame."""
        return []


class ValueDetector(ShotDetector, Protocol):
    """A detector that decides from a value per frame. The two steps of `push` may run in two processes."""

    value_type: ClassVar[np.dtype[Any]]  # of a value: a number, or a vector of numbers

    def value(self, frame: Frame) -> Any: ...

    def decide(self, time_s: float, pts: int, time_base: Fraction, value: Any) -> list[Cut]: ...


class NoCuts:
    value_type = np.dtype(float)
    lag_s = 0.0
    lag_frames = 0

    def push(self, frame: Frame) -> list[Cut]:
        return []

    def value(self, frame: Frame) -> float:
        return 0.0

    def decide(self, time_s: float, pts: int, time_base: Fraction, value: float) -> list[Cut]:
        return []

    def finish(self) -> list[Cut]:
        return []
