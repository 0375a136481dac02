"""`quality`: sharpness, brightness and contrast of the picture, and how much of it is blown out or dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from filters.base import IMAGE_AND_VIDEO, Column, Frames, Media, Sampling, Scores, uniform

BLOWN = 250  # luma of 255; this and above
DARK = 20  # luma of 255; this and below
# Levels squared, of 255: rounding luma to the 219 levels of video, less its own blur by 1 pixel.
ROUNDING = (255 / 219) ** 2 / 12 * 0.76


@dataclass(frozen=True)
class Quality:
    """Means over `frames` grey frames whose long side is at most `long_side` pixels.

    - `quality.sharpness` (0 and up): strength of detail finer than 1 pixel over that of detail from 1 to
      4 pixels, with G_s a Gaussian blur of s pixels and r the mean square that rounding to levels leaves:
      sqrt((ms(I - G_1 I) - r) / (ms(G_1 I - G_4 I) + 1)). It does not change with contrast or brightness,
      as the variance of the Laplacian does, and any further Gaussian blur lowers it. Noise raises it; a
      blur that vanishes at this size is not seen.
    - `quality.brightness` (0 to 1): mean luma over 255.
    - `quality.contrast` (0 to 0.5): standard deviation of luma over 255; low means flat.
    - `quality.blown` (0 to 1): part of the pixels with luma 250 or more.
    - `quality.dark` (0 to 1): part of the pixels with luma 20 or less.
    """

    frames: int = 4
    long_side: int = 320

    name: ClassVar[str] = "quality"
    version: ClassVar[str] = "3"
    applies_to: ClassVar[frozenset[Media]] = IMAGE_AND_VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("quality.sharpness", "ratio", (0, float("inf")), "fine detail over middling detail"),
        Column("quality.brightness", "of full scale", (0, 1), "mean luma"),
        Column("quality.contrast", "of full scale", (0, 0.5), "standard deviation of luma"),
        Column("quality.blown", "part of the pixels", (0, 1), f"luma {BLOWN} or more, of 255"),
        Column("quality.dark", "part of the pixels", (0, 1), f"luma {DARK} or less, of 255"),
    )
    cost: ClassVar[str] = "3 ms per clip"
    uses_model: ClassVar[bool] = False

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, long_side=self.long_side, color="gray")

    def check(self) -> None:
        """Needs no model."""

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        return [self._score(c.images) for c in clips]

    def _score(self, images: Sequence[np.ndarray]) -> Scores:
        if not images:
            return Scores({c.name: None for c in self.columns})
        measured = [
            {
                "quality.sharpness": sharpness(g),
                "quality.brightness": float(g.mean()) / 255,
                "quality.contrast": float(g.std()) / 255,
                "quality.blown": float((g >= BLOWN).mean()),
                "quality.dark": float((g <= DARK).mean()),
            }
            for g in images
        ]
        return Scores({c.name: float(np.mean([m[c.name] for m in measured])) for c in self.columns})


def sharpness(image: np.ndarray) -> float:
    """Fine over middling detail of an (H, W) uint8 frame: see `Quality`."""
    sharp = image.astype(np.float32)
    fine, middling = cv2.GaussianBlur(sharp, (0, 0), 1.0), cv2.GaussianBlur(sharp, (0, 0), 4.0)
    # Rounding is no detail: it is all that is fine in a pale picture that is blurred. The 1 (of 255 squared)
    # keeps the rest of a flat frame's noise from reading as detail.
    detail = max(float(np.square(sharp - fine).mean()) - ROUNDING, 0.0)
    return float(np.sqrt(detail / (np.square(fine - middling).mean() + 1.0)))
