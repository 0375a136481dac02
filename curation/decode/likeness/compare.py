"""Vectors become distances between the frames of a window.

Two windows lie around each frame: a fine one of 16 frames, for cuts, and a coarse one of 17 frames that are
`stride` frames apart, for gradual transitions. Four distances are taken between each two frames of a window:

- of luma: the root of the mean square difference
- of chroma: the same
- of layout: half the squared distance of the luma after brightness and contrast are taken out, so that a
  flash or a fade of one scene is small here
- of colours: one minus the Bhattacharyya coefficient of the histograms, which movement leaves small
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.decode.likeness.describe import BINS, CHROMA, LUMA, ROOT_SCALE

KINDS = 4
FINE = np.arange(-8, 8)  # frames of the fine window, counted from the frame that is looked at
COARSE = np.arange(-8, 9)  # of the coarse window, in strides
_FEW_LEVELS = 3.0  # of contrast: noise on a flat ground has no layout


_FASTEST = 240.0  # frames per second; a stream that declares more does not know its rate
_USUAL = 25.0


def stride_of(fps: float) -> int:
    """The stride of the coarse window, in frames: it spans two seconds and a quarter."""
    return max(1, round(4 * (fps if fps <= _FASTEST else _USUAL) / 28))


@dataclass(frozen=True)
class Vectors:
    """The vectors of n frames, ready to be compared."""

    mean: np.ndarray  # (n,): brightness
    spread: np.ndarray  # (n,): contrast
    luma: np.ndarray  # (n, 144)
    chroma: np.ndarray  # (n, 144)
    roots: np.ndarray  # (n, 200): of the shares of the bins

    @classmethod
    def of(cls, vectors: np.ndarray) -> Vectors:
        """vectors: (n, 488) uint8."""
        floats = vectors.astype(np.float32)
        luma = floats[:, :LUMA]
        mean = luma.mean(1, dtype=np.float64)
        counts = np.square(floats[:, LUMA + CHROMA :] / ROOT_SCALE).reshape(-1, 8, BINS // 8)
        # A little of each bin of luma counts in its neighbours: a slight change of brightness is slight here.
        smooth = 0.5 * counts
        smooth[:, 1:] += 0.25 * counts[:, :-1]
        smooth[:, :-1] += 0.25 * counts[:, 1:]
        smooth /= smooth.sum((1, 2), keepdims=True)
        return cls(
            mean,
            luma.std(1, dtype=np.float64),
            luma,
            floats[:, LUMA : LUMA + CHROMA] - 128,
            np.sqrt(smooth).reshape(len(floats), -1),
        )

    def then(self, following: Vectors, keep: int) -> Vectors:
        """The last `keep` of these vectors, and those of the frames that follow."""
        pairs = zip(vars(self).values(), vars(following).values(), strict=True)
        return Vectors(*(np.concatenate([old[-keep:], new]) for old, new in pairs))

    def own(self, first: int) -> np.ndarray:
        """What each frame from `first` on is by itself, (n - first, 2): contrast and brightness."""
        found = np.stack([np.log1p(self.spread[first:]) / 4, self.mean[first:] / 255], 1)
        return found.astype(np.float32)

    def back(self, first: int, lags: np.ndarray) -> np.ndarray:
        """Distances of each frame from `first` on to the frames `lags` before it: (n - first, lags, 4).

        Before the first frame is the first frame.
        """
        new = np.arange(first, len(self.mean))
        old = np.maximum(new[:, None] - lags, 0)
        rows = (new - first)[:, None]
        products = {
            name: (of[first:] @ of.T)[rows, old]
            for name, of in (("luma", self.luma), ("chroma", self.chroma), ("roots", self.roots))
        }
        # Products of whole numbers are exact here (below 2 ** 24), so the distance of equal frames is zero.
        luma = (self._squares(self.luma, new, old) - 2 * products["luma"]) / LUMA
        chroma = (self._squares(self.chroma, new, old) - 2 * products["chroma"]) / CHROMA
        a, b = self.spread[new][:, None], self.spread[old]
        flat_a, flat_b = a + _FEW_LEVELS, b + _FEW_LEVELS
        layout = 0.5 * (np.square(a / flat_a) + np.square(b / flat_b))
        layout -= (products["luma"] / LUMA - self.mean[new][:, None] * self.mean[old]) / (flat_a * flat_b)
        found = np.stack([luma, chroma, layout, 1 - products["roots"]], -1)
        found = np.sqrt(np.maximum(found, 0)).astype(np.float32)
        found[..., 0] = np.log1p(found[..., 0]) / 3
        found[..., 1] = np.log1p(found[..., 1]) / 2
        return found

    @staticmethod
    def _squares(of: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
        squares = np.square(of).sum(1)
        return squares[new][:, None] + squares[old]


FINE_LAGS = np.arange(1, len(FINE))
COARSE_LAGS = np.arange(1, len(COARSE))


def rows(of: Vectors, first: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fine (n, 15 * 4), coarse (n, 16 * 4), own (n, 2)) of the n frames from `first` on, float32.

    of: from at least 16 strides before `first` on, or from the first frame on.
    """
    n = len(of.mean) - first
    distances = of.back(first, np.concatenate([FINE_LAGS, COARSE_LAGS * stride]))
    fine, coarse = distances[:, : len(FINE_LAGS)], distances[:, len(FINE_LAGS) :]
    return fine.reshape(n, -1), coarse.reshape(n, -1), of.own(first)


def windows(
    fine: np.ndarray, coarse: np.ndarray, own: np.ndarray, frames: np.ndarray, stride: int
) -> np.ndarray:
    """The inputs of the network for some frames, (frames, `INPUTS`). Each window must lie within the rows."""
    near, far = frames[:, None] + FINE, frames[:, None] + COARSE * stride
    n = len(frames)
    parts = (fine[near], coarse[far], own[near], own[far])
    return np.concatenate([part.reshape(n, -1) for part in parts], 1)[:, INSIDE]


def _inside(offsets: np.ndarray, lags: np.ndarray) -> np.ndarray:
    """Which distances of the rows of a window are between two frames of the window."""
    within = offsets[:, None] - lags >= offsets[0]
    return np.repeat(within[..., None], KINDS, -1).ravel()


INSIDE = np.concatenate(
    [
        _inside(FINE, FINE_LAGS),
        _inside(COARSE, COARSE_LAGS),
        np.ones(2 * (len(FINE) + len(COARSE)), bool),
    ]
)
INPUTS = int(INSIDE.sum())
