"""`quality`: sharpness, brightness and contrast of the picture, and its overexposed and dark parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from filters.base import Column, Frames, Sampling, Scorer, uniform

BLOWN = 250  # luma of 255: overexposed pixels have at least this
DARK = 20  # luma of 255: dark pixels have at most this
# Squared levels of 255: the mean square error of rounding luma to the 219 levels of video, minus the part
# that a blur of 1 pixel keeps.
ROUNDING = (255 / 219) ** 2 / 12 * 0.76


@dataclass(frozen=True)
class Quality(Scorer):
    """Means over `frames` grey frames whose long side is at most `long_side` pixels.

    - `quality.sharpness` (0 and up): the strength of detail finer than 1 pixel, divided by the strength of
      detail from 1 to 4 pixels: sqrt((ms(I - G_1 I) - r) / (ms(G_1 I - G_4 I) + 1)). G_s is a Gaussian blur
      of s pixels, ms a mean square, and r the mean square of the rounding error. Contrast and brightness do
      not change this number (they change the variance of the Laplacian). Each further Gaussian blur lowers
      it and noise raises it. A blur that is too small to see at this size is not measured.
    - `quality.brightness` (0 to 1): mean luma over 255.
    - `quality.contrast` (0 to 0.5): standard deviation of luma over 255; a low number means a flat picture.
    - `quality.blown` (0 to 1): part of the pixels with luma 250 or more.
    - `quality.dark` (0 to 1): part of the pixels with luma 20 or less.
    - `quality.combing` (0 to 1): part of the frames, at their full size, whose two fields show two moments,
      as those of interlaced video do. 10 pairs of neighbouring frames per second are looked at. Of telecined
      film it is 0.2. Where nothing moves there are no combs. It is 0 for still images.
    """

    frames: int = 4
    long_side: int = 320

    version: ClassVar[str] = "3"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("quality.sharpness", "ratio", (0, float("inf")), "fine detail over medium detail"),
        Column("quality.brightness", "of full scale", (0, 1), "mean luma"),
        Column("quality.contrast", "of full scale", (0, 0.5), "standard deviation of luma"),
        Column("quality.blown", "part of the pixels", (0, 1), f"luma {BLOWN} or more, of 255"),
        Column("quality.dark", "part of the pixels", (0, 1), f"luma {DARK} or less, of 255"),
        Column("quality.combing", "part of the frames", (0, 1), "both fields of two moments: interlaced"),
    )
    later: ClassVar[tuple[str, ...]] = ("quality.combing",)
    cost_ms: ClassVar[float] = 3  # 3 ms per clip

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, long_side=self.long_side, color="gray", combing=True)

    def measure(self, frames: Frames) -> dict[str, float | None]:
        measured = [
            {
                "quality.sharpness": sharpness(g),
                "quality.brightness": float(g.mean()) / 255,
                "quality.contrast": float(g.std()) / 255,
                "quality.blown": float((g >= BLOWN).mean()),
                "quality.dark": float((g <= DARK).mean()),
            }
            for g in frames.images
        ]
        means: dict[str, float | None] = {
            name: float(np.mean([m[name] for m in measured])) for name in measured[0]
        }
        return means | {"quality.combing": frames.clip.combing}


def sharpness(image: np.ndarray) -> float:
    """Fine detail over medium detail of an (H, W) uint8 frame: see `Quality`."""
    sharp = image.astype(np.float32)
    fine, middling = cv2.GaussianBlur(sharp, (0, 0), 1.0), cv2.GaussianBlur(sharp, (0, 0), 4.0)
    # The rounding error is not detail, but it is the only fine structure in a pale, blurred picture. The
    # added 1 (of 255 squared) keeps the remaining noise of a flat frame from counting as detail.
    detail = max(float(np.square(sharp - fine).mean()) - ROUNDING, 0.0)
    return float(np.sqrt(detail / (np.square(fine - middling).mean() + 1.0)))
