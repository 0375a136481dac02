"""`motion`: how fast the picture moves, in frame widths per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from filters.base import VIDEO, Column, Frames, Media, Pair, Sampling, Scores, pairs


@dataclass(frozen=True)
class Motion:
    """Length of the optical flow over a clip's pairs of frames, divided by frame width and time.

    `motion.speed` = sum over pairs of (mean flow length in pixels / width) / sum over pairs of dt, which
    is the mean of the pairs' speeds, each weighted by the time it spans. At ten pairs a second with a
    step of 0.1 s each pair begins where the one before it ends, so that all of the clip's motion is
    counted once. That is what keeps the number when the frame rate changes: with two pairs a second a
    clip whose frames were doubled, or thinned out, scores up to 23 % differently, because other moments
    of it are looked at and because a doubled frame is not where its timestamp says; on a regular grid
    of two pairs a second an 8 fps clip stored at 24 fps by repetition scores zero.

    Flow: Farneback's (2003) at 64 and then at `analysis_width` pixels, begun from the shift of the whole
    picture (phase correlation) where that shift explains the change. From nothing it loses pans
    beyond 0.5 widths/s. A surface without texture has no flow, whatever the grain on it: DIS flow (Kroeger
    et al. 2016), though faster, gives 0.25 widths/s for grain on a still wall. Twice the width takes four
    times as long and lets more of the codec's noise through.

    Below about 0.01 the codec's noise shows: a near-static scene reads up to 0.001 more or less.
    """

    per_second: float = 10.0
    step_s: float = 0.1
    width: int = 256  # pixels, as sampled
    analysis_width: int = 128  # pixels; the sampled frames are averaged down to it

    name: ClassVar[str] = "motion"
    version: ClassVar[str] = "2"
    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("motion.speed", "frame widths/s", (0, float("inf")), "mean speed of the picture's points"),
    )
    cost: ClassVar[str] = "13 ms per second of clip"
    uses_model: ClassVar[bool] = False

    @property
    def sampling(self) -> Sampling:
        return pairs(self.per_second, self.step_s, self.width)

    def check(self) -> None:
        """Needs no model."""

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        return [Scores({"motion.speed": self._speed(c.pairs)}) for c in clips]

    def _speed(self, moments: Sequence[Pair]) -> float | None:
        seconds = sum(p.dt_s for p in moments)
        if seconds <= 0:
            return None
        return sum(mean_shift(p.first, p.second, self.analysis_width) for p in moments) / seconds


def mean_shift(first: np.ndarray, second: np.ndarray, analysis_width: int) -> float:
    """Mean length of the flow between two (H, W) uint8 frames, in frame widths."""
    if np.array_equal(first, second):
        return 0.0
    half = analysis_width // 2
    a, b = _at_width(first, half), _at_width(second, half)
    flow = np.zeros((*a.shape, 2), np.float32)
    flow[:] = _global_shift(a, b)
    flow = _farneback(a, b, flow, iterations=3)
    a, b = _at_width(first, analysis_width), _at_width(second, analysis_width)
    height, width = a.shape
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * (width / half)
    flow = _farneback(a, b, flow, iterations=2)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) / width


def _at_width(image: np.ndarray, width: int) -> np.ndarray:
    """(H, W) uint8 reduced to `width`, 8 pixels high at the least and 4 times its width at the most."""
    height = min(max(8, round(image.shape[0] * width / image.shape[1])), 4 * width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _global_shift(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(dx, dy) in pixels that turns `a` into `b` as a whole; zero if that explains less than a tenth."""
    height, width = a.shape
    fa, fb = a.astype(np.float32), b.astype(np.float32)
    change = float(np.abs(fa - fb).mean())
    if change < 0.5:  # of 255: nothing to explain
        return 0.0, 0.0
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    # Copies: at sizes that suit its transform it multiplies the pictures themselves by the window.
    (dx, dy), _ = cv2.phaseCorrelate(fa.copy(), fb.copy(), window)
    if not np.isfinite([dx, dy]).all():
        return 0.0, 0.0
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    moved = cv2.warpAffine(fa, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return (dx, dy) if float(np.abs(moved - fb).mean()) < 0.9 * change else (0.0, 0.0)


def _farneback(a: np.ndarray, b: np.ndarray, start: np.ndarray, *, iterations: int) -> np.ndarray:
    """Flow (H, W, 2) in pixels at one scale, from `start`: window 15, polynomials over 5, sigma 1.2."""
    flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    return cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 0, 15, iterations, 5, 1.2, flags)
