"""`duration`: the length of a clip in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from filters.base import NONE, VIDEO, Column, Frames, Media, Sampling, Scores


@dataclass(frozen=True)
class Duration:
    """Seconds between the start of the first frame and the end of the last one."""

    name: ClassVar[str] = "duration"
    version: ClassVar[str] = "1"
    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("duration.seconds", "s", (0, float("inf")), "length of the clip"),
    )
    cost: ClassVar[str] = "none"
    uses_model: ClassVar[bool] = False

    @property
    def sampling(self) -> Sampling:
        return NONE

    def check(self) -> None:
        """Needs no model."""

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        return [Scores({"duration.seconds": c.clip.duration_s}) for c in clips]
