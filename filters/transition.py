"""`transition`: does the clip still contain two scenes, with a missed cut or a dissolve between them?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from filters.base import VIDEO, Column, Frames, Media, Sampling, Scorer, uniform

BINS = 6  # per channel of the colour histogram
GRID = (8, 6)  # cells across and down of the layout


@dataclass(frozen=True)
class Transition(Scorer):
    """The distance between the two sides of the clip's best split, compared with the spread within each side.

    The difference of two frames is a geometric mean of two distances, so both must be large: the Hellinger
    distance of the colour histograms (6 x 6 x 6 bins of RGB), and half the mean difference of the grey
    layouts (8 x 6 cells, normalised to mean 0 and deviation 1).

    The clip is split at each moment between two sampled frames. The score of a split is the mean difference
    between frames of different sides, minus the mean difference between frames of the same side: half the
    energy distance of the two sides (Szekely and Rizzo 2013). `transition.distance` is the largest score.
    Motion and pans increase the spread within each side, so they score low. A dissolve counts like a cut. A
    still clip scores 0.

    The tests check a bound of 0.16 on real single shots and real changes. All single shots are below the
    bound and all changes are above. Among splices of two such shots, at least 99 % of the cuts, 98 % of
    dissolves over an eighth of the clip and 97 % of dissolves over a quarter are above. Long moving shots of
    other kinds may score higher.

    A change of scene nearer to an end than 1 / (2 `frames`) of the clip is not detected. A fade to or from
    black that lasts for several sampled frames counts as a change.
    """

    frames: int = 16
    long_side: int = 96

    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("transition.distance", "none", (0, 1), "difference across the clip's strongest divide"),
    )
    cost_ms: ClassVar[float] = 2  # 2 ms per clip

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, long_side=self.long_side, color="rgb")

    def measure(self, frames: Frames) -> float | None:
        return divide(differences(frames.images)) if len(frames.images) > 1 else None


def differences(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pairwise differences, (n, n) from 0 to 1, of n RGB frames, (H, W, 3) uint8: see `Transition`."""
    colours = np.sqrt(np.stack([_histogram(f) for f in images]))
    layouts = np.stack([_layout(f) for f in images])
    colour = np.sqrt(np.square(colours[:, None] - colours[None]).sum(-1) / 2)
    layout = np.minimum(np.abs(layouts[:, None] - layouts[None]).mean(-1) / 2, 1.0)
    return np.sqrt(colour * layout)


def _histogram(image: np.ndarray) -> np.ndarray:
    counts = cv2.calcHist([image], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3).ravel()
    return counts / counts.sum()


def _layout(image: np.ndarray) -> np.ndarray:
    cells = cv2.resize(image.astype(np.float32), GRID, interpolation=cv2.INTER_AREA).mean(-1).ravel() / 255
    return (cells - cells.mean()) / (cells.std() + 0.05)  # 0.05: a flat frame has no layout


def divide(distances: np.ndarray) -> float:
    """Half the energy distance between the two sides of the best split. `distances` is (n, n) with n > 1."""
    n = len(distances)
    best = 0.0
    for k in range(1, n):
        across = float(distances[:k, k:].mean())
        spreads = [_spread(distances[:k, :k]), _spread(distances[k:, k:])]
        known = [s for s in spreads if s is not None]  # a single frame has no spread: use the other side's
        best = max(best, across - (sum(known) / len(known) if known else 0.0))
    return best


def _spread(distances: np.ndarray) -> float | None:
    m = len(distances)
    return float(distances.sum()) / (m * (m - 1)) if m > 1 else None
