"""The rate at which a clip is stored: the mean rate of its frames, or the rate of its most frequent gap.

A clip has one constant rate, and its source may vary its own. At the mean rate a screen recording that stands
still most of the time would lose most frames of each burst. At the rate of the most frequent gap between its
frames the burst keeps them, and the frames that are shown for longer are repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RATE_TOLERANCE = 1e-3  # less than a third of a frame in 10 s at 30 frames per second
_LOST_SHARE = 0.02  # of a clip's frames that may be lost at the mean rate
_WORTH_IT = 0.75
_MOST_FPS = 60.0  # unless the mean rate is higher
_MOST_REPEATS = 20  # stored frames for each frame of the source, on average
_SNAP = 0.005
_USUAL = (12.0, 15.0, 24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 48.0, 50.0, 60000 / 1001, 60.0)


def usual_rate(measured: float, declared: float | None) -> float:
    """The declared rate if it nearly equals the measured rate, else the measured rate."""
    return declared if declared and abs(measured / declared - 1) < _RATE_TOLERANCE else measured


def clip_rate(times_s: Sequence[float], end_s: float, declared: float | None) -> float:
    """Frames per second of a clip. times_s: the time of each frame. end_s: the end of the last frame.

    It is the mean rate if no more than 2 % of the frames are lost with it. Otherwise it is the rate of the
    most frequent gap, if that loses at least a quarter fewer: at most 60 frames per second and 20 times
    the mean rate, so that no clip grows without bound by repeated frames.
    """
    edges = np.array([*times_s, end_s])
    frames = len(times_s)
    mean = usual_rate(frames / (edges[-1] - edges[0]), declared)
    lost = _lost(edges, mean)
    if lost <= _LOST_SHARE * frames:
        return mean
    rate = min(_of_most_frequent_gap(np.diff(edges)), max(_MOST_FPS, mean), _MOST_REPEATS * mean)
    return rate if _lost(edges, rate) <= _WORTH_IT * lost else mean


def stored_frames(duration_s: float, fps: float) -> int:
    """The number of frames of a stored clip."""
    return max(1, round(duration_s * fps))


def shown_before(time_s: float, start_s: float, fps: float) -> int:
    """The number of stored frames before `time_s`. Frame k shows the source at (k + 1/2) / fps."""
    return max(0, int(np.ceil((time_s - start_s) * fps - 0.5 - 1e-6)))


def _lost(edges_s: np.ndarray, fps: float) -> int:
    """How many frames are not stored at this rate. edges_s: the frames' times, and the end of the last."""
    count = stored_frames(edges_s[-1] - edges_s[0], fps)
    upto = [min(shown_before(t, edges_s[0], fps), count) for t in edges_s[1:-1]]
    return int((np.diff([0, *upto, count]) <= 0).sum())


def _of_most_frequent_gap(gaps_s: np.ndarray) -> float:
    """The rate of the largest group of gaps that are alike: within a quarter of one of them, or 2 ms."""
    rounded = np.rint(gaps_s * 1000) / 1000
    best = max(np.unique(rounded), key=lambda gap: (_alike(rounded, gap).sum(), (rounded == gap).sum()))
    rate = float(1 / gaps_s[_alike(rounded, best)].mean())
    nearest = min(_USUAL, key=lambda usual: abs(rate / usual - 1))
    return nearest if abs(rate / nearest - 1) < _SNAP else rate


def _alike(gaps_s: np.ndarray, gap_s: float) -> np.ndarray:
    return np.asarray(np.abs(gaps_s - gap_s) <= max(0.002, gap_s / 4) + 1e-9)
