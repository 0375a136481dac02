"""`duration`: the length of a clip in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filters.base import NONE, VIDEO, Column, Frames, Media, Sampling, Scorer


@dataclass(frozen=True)
class Duration(Scorer):
    """Seconds between the start of the first frame and the end of the last one."""

    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("duration.seconds", "s", (0, float("inf")), "length of the clip"),
    )
    cost_ms: ClassVar[float] = 0

    @property
    def sampling(self) -> Sampling:
        return NONE

    def measure(self, frames: Frames) -> float:
        return frames.clip.duration_s
