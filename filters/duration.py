"""`duration`: the length of a clip in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filters.base import NONE, VIDEO, Column, Frames, Media, Sampling, Scorer

# The difference of two times is not exact. A clip that was cut to be as long as the rule allows must not be
# rejected for 3.0000000001 s.
_DIGITS = 5


@dataclass(frozen=True)
class Duration(Scorer):
    """Seconds between the start of the first frame and the end of the last one, to 10 microseconds."""

    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("duration.seconds", "s", (0, float("inf")), "length of the clip"),
    )
    cost_ms: ClassVar[float] = 0

    @property
    def sampling(self) -> Sampling:
        return NONE

    def measure(self, frames: Frames) -> float:
        return round(frames.clip.duration_s, _DIGITS)
