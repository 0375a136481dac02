"""A filter of your own: how colourful a clip is, as Hasler and Süsstrunk (2003) measure it."""

from dataclasses import dataclass

import numpy as np

from filters.base import Frames, Scorer


@dataclass(frozen=True)
class Colourfulness(Scorer):
    def measure(self, frames: Frames) -> float:
        red, green, blue = np.stack(frames.images).astype(float).transpose(3, 0, 1, 2)
        rg, yb = red - green, (red + green) / 2 - blue
        return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))
