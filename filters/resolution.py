"""`resolution`: the displayed size of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from filters.base import NONE, Column, Frames, Sampling, Scorer


@dataclass(frozen=True)
class Resolution(Scorer):
    """Short side in pixels and width over height, after rotation and pixel aspect are applied."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("resolution.short_side", "px", (1, float("inf")), "the smaller of width and height"),
        Column("resolution.aspect", "ratio", (0, float("inf")), "width over height"),
    )
    cost_ms: ClassVar[float] = 0

    @property
    def sampling(self) -> Sampling:
        return NONE

    def measure(self, frames: Frames) -> dict[str, float | None]:
        width, height = frames.clip.width, frames.clip.height
        return {"resolution.short_side": min(width, height), "resolution.aspect": width / height}
