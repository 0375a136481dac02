"""Makes the spans of candidate clips from the times of frames and the cuts. No pictures are needed."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import cast

from curation.config.own import own_detector
from curation.config.schema import Config, DetectorName
from curation.decode.container.rates import usual_rate
from curation.decode.shots.base import Cut, OwnDetector, ShotDetector
from curation.decode.shots.choice import make_detector
from curation.decode.shots.spans import Span, divide
from filters.find import is_import_path

_VFR_SHARE = 0.02  # the share of frame gaps that may differ from the usual gap by more than a quarter


def detector_of(config: Config, fps: float | None) -> ShotDetector:
    """A new detector of the configured kind, for a source of about `fps` frames per second."""
    shots = config.shots
    if is_import_path(shots.detector):
        own: ShotDetector = own_detector(shots.detector, shots.own, OwnDetector)
        return own
    name = cast(DetectorName, shots.detector)
    return make_detector(name, shots.threshold, shots.min_scene_seconds, exact=shots.exact, fps=fps or 25.0)


class Scenes:
    """Divides a source into scenes while its frames are decoded.

    A cut closes a scene. The frames of a gradual transition belong to no scene. A long scene without a cut is
    closed as a block of `shots.max_scene_seconds`. The block is closed only when no later cut can fall into
    the block and enough frames follow for another clip.
    """

    def __init__(self, config: Config, lag_s: float, lag_frames: int):
        self._spans = config.spans
        self._block_s = config.shots.max_scene_seconds
        self._hold_s = max(lag_s, config.spans.min_seconds)
        self._lag_frames = lag_frames
        self._times: list[float] = []  # the times of the frames since the start of the open scene
        self._starts_at_cut = True

    @property
    def open_s(self) -> float | None:
        """The start of the open scene. Frames before this time are no longer needed."""
        return self._times[0] if self._times else None

    def push(self, time_s: float, cuts: Sequence[Cut]) -> list[Span]:
        """Add a frame and the cuts that the detector found with it. Returns the spans of closed scenes."""
        self._times.append(time_s)
        found = [span for cut in cuts for span in self._cut(cut)]
        block_end_s = self._times[0] + self._block_s
        if time_s >= block_end_s + self._hold_s:
            behind = len(self._times) - _count_before(self._times, block_end_s)
            if behind > self._lag_frames:
                found += self._close(block_end_s, at_cut=False)
        return found

    def finish(self, end_s: float, cuts: Sequence[Cut]) -> list[Span]:
        """Add the last cuts and the end of the last frame. Returns the spans of all remaining scenes."""
        found = [span for cut in cuts for span in self._cut(cut)]
        return found + (self._divided(self._times, end_s, at_cut=True) if self._times else [])

    def _cut(self, cut: Cut) -> list[Span]:
        found = self._close(cut.time_s, at_cut=True)
        if cut.resumes_s is not None:
            self._times = self._times[_count_before(self._times, cut.resumes_s) :]
        return found

    def _close(self, end_s: float, *, at_cut: bool) -> list[Span]:
        """Close the open scene at `end_s`. The frames from `end_s` on stay in the next open scene."""
        n = _count_before(self._times, end_s)
        if n == 0:  # a cut at the place where a block was already closed
            self._starts_at_cut |= at_cut
            return []
        scene, self._times = self._times[:n], self._times[n:]
        found = self._divided(scene, self._times[0] if self._times else end_s, at_cut=at_cut)
        self._starts_at_cut = at_cut
        return found

    def _divided(self, times_s: list[float], end_s: float, *, at_cut: bool) -> list[Span]:
        return divide(
            times_s,
            end_s,
            max_seconds=self._spans.max_seconds,
            trim_seconds=self._spans.trim_seconds,
            trim_start=self._starts_at_cut,
            trim_end=at_cut,
        )


def _count_before(times_s: list[float], limit_s: float) -> int:
    return bisect.bisect_left(times_s, limit_s - 1e-6)


def frame_rate(first_s: float, last_s: float, frames: int, declared: float | None) -> float:
    """Frames per second of a source, from the times of its first and last frame."""
    if frames < 2:
        return declared or 25.0
    return usual_rate((frames - 1) / (last_s - first_s), declared)


def shown_s(declared_s: float | None, fps: float, gaps_ms: Counter[int]) -> float:
    """How many seconds the last frame is shown: as declared, but at most as long as the longest frame before.

    A broken header can declare days. The limit is at least one second.
    """
    longest_s = max(gaps_ms, default=0) / 1000
    return min(declared_s or 1 / fps, max(1.0, longest_s))


def is_vfr(gaps_ms: Counter[int]) -> bool:
    """Do the gaps between frames vary? gaps_ms: the gap in milliseconds -> the number of such gaps."""
    total = sum(gaps_ms.values())
    if total == 0:
        return False
    usual = gaps_ms.most_common(1)[0][0]
    stray = sum(n for ms, n in gaps_ms.items() if abs(ms - usual) > max(2, usual / 4))
    return stray > _VFR_SHARE * total
