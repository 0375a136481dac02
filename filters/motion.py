"""`motion`: the speed of the picture, in frame widths per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from filters.base import VIDEO, Column, Frames, Media, Sampling, Scorer, pairs


@dataclass(frozen=True)
class Motion(Scorer):
    """Length of the optical flow over a clip's pairs of frames, divided by frame width and time.

    `motion.speed` = sum over pairs of (mean flow length in pixels / width) / sum over pairs of dt. The
    result is the mean of the pairs' speeds, weighted by the time between the frames of each pair. With ten
    pairs a second and a step of 0.1 s, each pair starts at the end of the previous pair. So all motion of the
    clip is counted once, and the number does not depend on the frame rate. With two pairs a second, a clip
    with doubled or dropped frames scores up to 23 % differently: other moments are sampled, and a doubled
    frame is not where its timestamp says. On a regular grid of two pairs a second, an 8 fps clip that is
    stored at 24 fps by repetition scores zero.

    Flow: Farneback (2003), first at 64 and then at `analysis_width` pixels. The flow starts from the shift of
    the whole picture (phase correlation) if this shift explains the change. A start from zero loses pans
    faster than 0.5 widths/s. A surface without texture has no flow, even with grain. DIS flow (Kroeger et al.
    2016) is faster but gives 0.25 widths/s for grain on a still wall. Twice the width takes four times as
    long and lets more of the codec's noise through.

    The codec's noise matters below about 0.01: the score of a nearly static scene varies by up to 0.001.
    """

    per_second: float = 10.0
    step_s: float = 0.1
    width: int = 256  # pixels, as sampled
    analysis_width: int = 128  # pixels; the sampled frames are reduced to this width by averaging

    version: ClassVar[str] = "2"
    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("motion.speed", "frame widths/s", (0, float("inf")), "mean speed of the picture's points"),
    )
    cost_ms: ClassVar[float] = 65  # 13 ms per second of clip

    @property
    def sampling(self) -> Sampling:
        return pairs(self.per_second, self.step_s, self.width)

    def measure(self, frames: Frames) -> float | None:
        seconds = sum(p.dt_s for p in frames.pairs)
        if seconds <= 0:
            return None
        return sum(mean_length(flow) for flow in flows(frames, self.analysis_width)) / seconds


def flows(frames: Frames, analysis_width: int) -> list[np.ndarray]:
    """The flow of each pair, as `flow` returns it. Scorers of the same clip that ask for the same pairs and
    width share it: it is computed once, and kept in `frames.shared`."""
    made = frames.shared
    found = []
    for pair in frames.pairs:
        key = ("flow", id(pair), analysis_width)
        if key not in made:
            made[key] = pair, flow(pair.first, pair.second, analysis_width)  # the pair keeps its id
        found.append(made[key][1])
    return found


def mean_shift(first: np.ndarray, second: np.ndarray, analysis_width: int) -> float:
    """Mean length of the optical flow between two (H, W) uint8 frames, in frame widths."""
    return mean_length(flow(first, second, analysis_width))


def mean_length(flow: np.ndarray) -> float:
    """Mean length of a flow (H, W, 2) in pixels, in frame widths."""
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) / flow.shape[1]


def flow(first: np.ndarray, second: np.ndarray, analysis_width: int) -> np.ndarray:
    """Optical flow between two (H, W) uint8 frames that are reduced to `analysis_width`: (h, w, 2) float32,
    in pixels of that size. A point at x of the first frame is at x + flow in the second one."""
    if np.array_equal(first, second):
        return np.zeros((*at_width(first, analysis_width).shape, 2), np.float32)
    half = analysis_width // 2
    a, b = at_width(first, half), at_width(second, half)
    flow = np.zeros((*a.shape, 2), np.float32)
    flow[:] = _global_shift(a, b)
    flow = _farneback(a, b, flow, iterations=3)
    a, b = at_width(first, analysis_width), at_width(second, analysis_width)
    height, width = a.shape
    flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * (width / half)
    return _farneback(a, b, flow, iterations=2)


def at_width(image: np.ndarray, width: int) -> np.ndarray:
    """(H, W) uint8 reduced to `width` pixels. The height is at least 8 pixels, at most 4 times the width."""
    height = min(max(8, round(image.shape[0] * width / image.shape[1])), 4 * width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _global_shift(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """(dx, dy) in pixels: the shift of `a` that matches `b` best. Zero if the shift explains less than a
    tenth of the difference."""
    height, width = a.shape
    fa, fb = a.astype(np.float32), b.astype(np.float32)
    change = float(np.abs(fa - fb).mean())
    if change < 0.5:  # of 255: nothing to explain
        return 0.0, 0.0
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    # Copies: for some sizes phaseCorrelate multiplies its input arrays by the window in place.
    (dx, dy), _ = cv2.phaseCorrelate(fa.copy(), fb.copy(), window)
    if not np.isfinite([dx, dy]).all():
        return 0.0, 0.0
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    moved = cv2.warpAffine(fa, move, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return (dx, dy) if float(np.abs(moved - fb).mean()) < 0.9 * change else (0.0, 0.0)


def _farneback(a: np.ndarray, b: np.ndarray, start: np.ndarray, *, iterations: int) -> np.ndarray:
    """Flow (H, W, 2) in pixels at one scale, starting from `start`: window 15, polynomials over 5 pixels,
    sigma 1.2."""
    flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    return cv2.calcOpticalFlowFarneback(a, b, start, 0.5, 0, 15, iterations, 5, 1.2, flags)
