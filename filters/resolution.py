"""`resolution`: the displayed size of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from filters.base import IMAGE_AND_VIDEO, NONE, Column, Frames, Media, Sampling, Scores


@dataclass(frozen=True)
class Resolution:
    """Short side in pixels and width over height, after rotation and pixel aspect are applied."""

    name: ClassVar[str] = "resolution"
    version: ClassVar[str] = "1"
    applies_to: ClassVar[frozenset[Media]] = IMAGE_AND_VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("resolution.short_side", "px", (1, float("inf")), "the smaller of width and height"),
        Column("resolution.aspect", "ratio", (0, float("inf")), "width over height"),
    )
    cost: ClassVar[str] = "none"
    uses_model: ClassVar[bool] = False

    @property
    def sampling(self) -> Sampling:
        return NONE

    def check(self) -> None:
        """Needs no model."""

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        return [
            Scores(
                {
                    "resolution.short_side": float(min(c.clip.width, c.clip.height)),
                    "resolution.aspect": c.clip.width / c.clip.height,
                }
            )
            for c in clips
        ]
