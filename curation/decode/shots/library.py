"""PySceneDetect's detectors with frames from our decoder.

A detector works in two steps. The first step computes a value for each frame: the mean
change in hue, saturation and lightness. The second step decides from these values where to cut. This module
computes the values in one of two ways:

- `exact`: frames are reduced in the same way as by PySceneDetect's own API. Values and cuts are the same.
- otherwise: small pictures are sampled from the decoded planes, which is much cheaper.

PySceneDetect always makes the decisions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, cast

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode
from scenedetect.common import Timecode
from scenedetect.scene_manager import compute_downscale_factor

from curation.decode.pixels.frame import Frame
from curation.decode.shots.base import FAST_LONG_SIDE, Cut


class _Stamp(FrameTimecode):
    """PySceneDetect's timecode, with the frame that it belongs to. PySceneDetect returns it for each cut."""

    def __init__(self, pts: int, time_base: Fraction, fps: float, cut: Cut):
        super().__init__(Timecode(pts, time_base), fps=fps)
        self.cut = cut


class _Values:
    """Replaces PySceneDetect's own frame score by a value that was computed before."""

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: Any) -> float:
        return cast(float, frame_img)


class _Content(_Values, ContentDetector):
    pass


class _Adaptive(_Values, AdaptiveDetector):
    pass


class SceneDetect:
    """PySceneDetect's content or adaptive detector over our frame values."""

    value_type = np.dtype(float)

    def __init__(
        self,
        name: Literal["content", "adaptive"],
        threshold: float,
        min_scene_seconds: float,
        *,
        exact: bool,
        fps: float,
    ):
        self._reduce = _reduce_exactly if exact else _reduce_fast
        self._fps = fps
        self._index = -1
        self._first_pts: int | None = None
        self._last_hsv: tuple[np.ndarray, ...] | None = None
        self._detector: Any
        if name == "content":
            self._detector = _Content(threshold=threshold, min_scene_len=float(min_scene_seconds))
        else:
            self._detector = _Adaptive(adaptive_threshold=threshold, min_scene_len=float(min_scene_seconds))
        # Content: flashes are merged, and the last flash is reported after `min_scene_seconds` without a
        # flash. Adaptive: the detector looks two frames ahead.
        self.lag_s = min_scene_seconds
        self.lag_frames = 3

    def push(self, frame: Frame) -> list[Cut]:
        pts, base = frame.av.pts, frame.av.time_base
        if pts is None or base is None:
            pts, base = round(frame.time_s * 1_000_000), Fraction(1, 1_000_000)
        return self.decide(frame.time_s, pts, Fraction(base), self.value(frame))

    def value(self, frame: Frame) -> float:
        """The first step: the change since the frame before, from 0 to 255. The first frame gives 0."""
        return self._change(self._reduce(frame))

    def decide(self, time_s: float, pts: int, time_base: Fraction, value: float) -> list[Cut]:
        """The second step: the cuts that are known after the next frame with this value."""
        self._index += 1
        if self._first_pts is None:
            self._first_pts = pts
        # Times are relative to the first frame, as in PySceneDetect's reader, which has no negative times.
        stamp = _Stamp(pts - self._first_pts, time_base, self._fps, Cut(self._index, time_s))
        return [t.cut for t in self._detector.process_frame(stamp, value)]

    def finish(self) -> list[Cut]:
        return []  # both detectors have already returned all cuts (`post_process` returns no cuts)

    def _change(self, bgr: np.ndarray) -> float:
        """Mean absolute change of hue, saturation and lightness (0..255) since the last frame."""
        hsv = tuple(cv2.split(cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)))
        last, self._last_hsv = self._last_hsv, hsv
        if last is None or last[0].shape != hsv[0].shape:
            return 0.0
        pixels = float(hsv[0].size)
        return sum(cv2.norm(a, b, cv2.NORM_L1) / pixels for a, b in zip(hsv, last, strict=True)) / 3


def _reduce_fast(frame: Frame) -> np.ndarray:
    return frame.bgr_small(FAST_LONG_SIDE)


def _reduce_exactly(frame: Frame) -> np.ndarray:
    bgr = frame.bgr_full()
    height, width = bgr.shape[:2]
    factor = compute_downscale_factor(max(width, height))
    if factor <= 1:
        return bgr
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(bgr, size, interpolation=cv2.INTER_LINEAR)
