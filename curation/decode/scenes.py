"""From the times of frames and the cuts between them to the spans of candidate clips. Sees no picture."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence

from curation.config.schema import Config
from curation.decode.shots import Cut, ShotDetector, make_detector
from curation.decode.spans import Span, divide

_RATE_TOLERANCE = 1e-3  # less than a third of a frame in 10 s at 30 frames per second
_VFR_SHARE = 0.02  # of frame gaps that may stray from the usual one by a quarter of it


def detector_of(config: Config, fps: float | None) -> ShotDetector:
    """The configuration's detector, fresh, for a source of about `fps` frames per second."""
    shots = config.shots
    return make_detector(
        shots.detector, shots.threshold, shots.min_scene_seconds, exact=shots.exact, fps=fps or 25.0
    )


class Scenes:
    """Divides a source as its frames go by. A scene is closed by a cut, or as a block of
    `shots.max_scene_seconds`: no later cut can then fall into it, and what is left of it can make a clip."""

    def __init__(self, config: Config, lag_s: float, lag_frames: int):
        self._spans = config.spans
        self._block_s = config.shots.max_scene_seconds
        self._hold_s = max(lag_s, config.spans.min_seconds)
        self._lag_frames = lag_frames
        self._times: list[float] = []  # of the frames since the open scene's start
        self._starts_at_cut = True

    @property
    def open_s(self) -> float | None:
        """Where the open scene starts: nothing before it will be asked for."""
        return self._times[0] if self._times else None

    def push(self, time_s: float, cuts: Sequence[Cut]) -> list[Span]:
        """A frame, and the cuts that it made known. Returns the spans of what it closed."""
        self._times.append(time_s)
        found = [span for cut in cuts for span in self._close(cut.time_s, at_cut=True)]
        block_end_s = self._times[0] + self._block_s
        if time_s >= block_end_s + self._hold_s:
            behind = len(self._times) - _count_before(self._times, block_end_s)
            if behind > self._lag_frames:
                found += self._close(block_end_s, at_cut=False)
        return found

    def finish(self, end_s: float, cuts: Sequence[Cut]) -> list[Span]:
        """The last cuts, and when the last frame ends. Returns the spans of all that is left."""
        found = [span for cut in cuts for span in self._close(cut.time_s, at_cut=True)]
        return found + (self._divided(self._times, end_s, at_cut=True) if self._times else [])

    def _close(self, end_s: float, *, at_cut: bool) -> list[Span]:
        """Close the open scene before `end_s`; what comes after it stays open."""
        n = _count_before(self._times, end_s)
        if n == 0:  # a cut where a block was closed already
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


def usual_rate(measured: float, declared: float | None) -> float:
    """The declared rate, where the measured one agrees with it: 29.97 rather than 29.93."""
    return declared if declared and abs(measured / declared - 1) < _RATE_TOLERANCE else measured


def frame_rate(first_s: float, last_s: float, frames: int, declared: float | None) -> float:
    """Frames per second of a source, from the times of its first and last frame."""
    if frames < 2:
        return declared or 25.0
    return usual_rate((frames - 1) / (last_s - first_s), declared)


def shown_s(declared_s: float | None, fps: float, gaps_ms: Counter[int]) -> float:
    """How long the last frame is shown: as declared, but no longer than any before it (or a second).
    A broken header can declare days."""
    longest_s = max(gaps_ms, default=0) / 1000
    return min(declared_s or 1 / fps, max(1.0, longest_s))


def is_vfr(gaps_ms: Counter[int]) -> bool:
    """Do the gaps between frames vary?"""
    total = sum(gaps_ms.values())
    if total == 0:
        return False
    usual = gaps_ms.most_common(1)[0][0]
    stray = sum(n for ms, n in gaps_ms.items() if abs(ms - usual) > max(2, usual / 4))
    return stray > _VFR_SHARE * total
