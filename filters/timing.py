"""`timing`: can the times of a clip's frames be trusted?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filters.base import VIDEO, Column, Frames, Media, Sampling, Scorer, uniform


@dataclass(frozen=True)
class Timing(Scorer):
    """The part of a clip's frames that were left out or timed by a guess, because timestamps are wrong."""

    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("timing.doubtful", "", (0, 1), "part of the frames whose timestamps are wrong"),
    )
    cost_ms: ClassVar[float] = 0

    @property
    def sampling(self) -> Sampling:
        return uniform(1, long_side=32, color="gray")  # only decoding tells which frames were left out

    def measure(self, frames: Frames) -> float:
        clip = frames.clip
        return min(1.0, clip.doubtful / (clip.frames + clip.doubtful))
