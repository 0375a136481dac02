"""Keeps the frames that scorers may ask for, while a source is decoded once.

The bounds of a clip are known only after its frames were decoded. So frames are kept on time grids, small or
compressed, until their scene is closed. `uniform(n)` then takes the nearest frames. Pairs are kept
unchanged. Only frames of the open scene are kept, and a scene is closed after at most `max_scene_seconds`.
So memory does not grow with the length of the source.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from curation.decode.pixels.combs import Combs
from curation.decode.pixels.frame import Frame, VideoInfo
from curation.decode.shots.spans import Span
from filters.base import Pair, Sampling

JPEG_QUALITY = 92
THUMBNAIL = Sampling("uniform", n=1, long_side=256)
THUMBNAIL_QUALITY = 80
_THUMBNAIL = "thumbnail"  # stands beside the names of scorers in one dict
T = TypeVar("T")
_MAX_PAIR_SECONDS = 1.0  # two frames with a longer gap do not show one motion


def grid_step_seconds(n: int, min_seconds: float) -> float:
    """The largest step, at most 1 s, with which a clip of `min_seconds` has `n` frames. At least 0.04 s."""
    return float(np.clip(min_seconds / max(n, 1), 0.04, 1.0))


def nearest(times_s: Sequence[float], span: Span, n: int) -> list[int]:
    """Indices of the kept frames inside `span` that are nearest to the middles of its `n` equal parts.

    Each index comes only once, so the list may be shorter than `n`.
    """
    lo = bisect.bisect_left(times_s, span.start_s)
    hi = bisect.bisect_left(times_s, span.end_s) if span.end_s > span.start_s else lo + 1
    picks: list[int] = []
    for k in range(n):
        wanted = span.start_s + span.duration_s * (k + 0.5) / n
        i = min(range(lo, min(hi, len(times_s))), key=lambda j: abs(times_s[j] - wanted), default=None)
        if i is not None and i not in picks:
            picks.append(i)
    return picks


class Ticks:
    """Points of a time grid that starts at the time of the first frame. The only state is `next_s`."""

    def __init__(self, step_s: float, next_s: float | None = None):
        self._step_s = step_s
        self.next_s = next_s

    def pass_by(self, time_s: float) -> bool:
        """Is this frame the first one at or after a point? A gap in the source skips its points."""
        if self.next_s is not None and time_s < self.next_s - 1e-6:
            return False
        begun = time_s if self.next_s is None else self.next_s
        self.next_s = begun + (int((time_s - begun + 1e-6) / self._step_s) + 1) * self._step_s
        return True


class PairTicks:
    """Points at which pairs of frames begin. After a gap the grid starts again at the next frame."""

    def __init__(self, per_second: float, next_s: float | None = None):
        self._period_s = 1 / per_second
        self.next_s = next_s

    def pass_by(self, time_s: float) -> list[float]:
        """The new points up to the time of this frame."""
        if self.next_s is None or time_s - self.next_s > _MAX_PAIR_SECONDS:
            self.next_s = time_s
        points = []
        while self.next_s <= time_s + 1e-6:
            points.append(self.next_s)
            self.next_s += self._period_s
        return points


def make_ticks(
    samplings: Mapping[str, Sampling], min_seconds: float, at: Mapping[str, float | None] | None = None
) -> dict[str, Ticks | PairTicks]:
    """The grid of each sampling by name. `at` (name -> `next_s`) continues grids of another process."""
    at = at or {}
    return {
        name: PairTicks(s.per_second, at.get(name))
        if s.kind == "pairs"
        else Ticks(grid_step_seconds(s.n, min_seconds), at.get(name))
        for name, s in samplings.items()
        if s.kind != "none"
    }


def samplings_of(local: Mapping[str, Sampling], remote: Mapping[str, Sampling]) -> dict[str, Sampling]:
    """The samplings of all scorers and of the thumbnail."""
    return {**local, **remote, _THUMBNAIL: THUMBNAIL}


class _Grid(Generic[T]):
    """Keeps one thing at each point of a time grid, from the first frame at or after the point."""

    def __init__(self, ticks: Ticks):
        self.ticks = ticks
        self.times: list[float] = []
        self.kept: list[T] = []

    def keep(self, time_s: float, thing: T) -> None:
        self.times.append(time_s)
        self.kept.append(thing)

    def pick(self, span: Span, n: int) -> list[T]:
        return [self.kept[i] for i in nearest(self.times, span, n)]

    def forget(self, before_s: float) -> None:
        n = bisect.bisect_left(self.times, before_s)
        del self.times[:n], self.kept[:n]


class _Pairs:
    """Pairs of grey frames: for each point t of a time grid, the frames nearest to t and t + `step_s`.

    If both are the same frame, no pair is kept, because the same picture twice would look like no motion.
    This happens when the source has fewer frames than the grid, or repeats frames.
    """

    def __init__(self, sampling: Sampling, size: tuple[int, int], ticks: PairTicks):
        self._step_s = sampling.step_s
        self._size = size
        self._ticks = ticks
        self._last: Frame | None = None
        self._image_at: tuple[float, np.ndarray] | None = None  # two pairs in a row may share a frame
        self._open: list[tuple[float, float, np.ndarray]] = []  # (when it should end, start, picture)
        self._kept: list[tuple[float, float, Pair]] = []

    def offer(self, frame: Frame) -> None:
        last = self._last or frame
        self._last = frame
        for point_s in self._ticks.pass_by(frame.time_s):
            start = _nearer(last, frame, point_s)
            self._open.append((point_s + self._step_s, start.time_s, self._image(start)))
        while self._open and self._open[0][0] <= frame.time_s + 1e-6:
            wanted_s, start_s, first = self._open.pop(0)
            end = _nearer(last, frame, wanted_s)
            dt_s = end.time_s - start_s
            if 0 < dt_s <= _MAX_PAIR_SECONDS:
                self._kept.append((start_s, end.time_s, Pair(first, self._image(end), dt_s)))

    def _image(self, frame: Frame) -> np.ndarray:
        if self._image_at is None or self._image_at[0] != frame.time_s:
            # `area=False` samples pixels instead of averaging, because this runs many times for each second
            # of video. The scorer itself averages the picture further.
            self._image_at = (frame.time_s, frame.gray(*self._size, area=False))
        return self._image_at[1]

    def inside(self, span: Span) -> list[Pair]:
        return [pair for a, b, pair in self._kept if a >= span.start_s and b < span.end_s]

    def forget(self, before_s: float) -> None:
        self._kept = [k for k in self._kept if k[0] >= before_s]


def _nearer(a: Frame, b: Frame, time_s: float) -> Frame:
    return a if abs(a.time_s - time_s) <= abs(b.time_s - time_s) else b


class Keeper:
    """Takes every decoded frame once (`offer`) and returns the pictures that scorers ask for.

    local: the samplings of scorers that run in this process. They get small raw pictures.
    remote: the samplings of model-backed scorers. They get JPEGs, because the model runs in another process.
    at: the position of each grid, if the first frame comes from the middle of a source (`make_ticks`).

    Each scorer has its own grid and its own pictures, which are made from the frame itself. So a scorer's
    numbers do not depend on the other configured scorers, and one scorer can be computed again alone. Scorers
    that ask for the same pairs get the same ones, so that they can share what they compute from a pair.
    """

    def __init__(
        self,
        info: VideoInfo,
        local: Mapping[str, Sampling],
        remote: Mapping[str, Sampling],
        min_seconds: float,
        *,
        thumbnails: bool = True,
        at: Mapping[str, float | None] | None = None,
    ):
        size = (info.width, info.height)
        ticks = make_ticks(samplings_of(local, remote), min_seconds, at)
        self._pairs: dict[str, _Pairs] = {}
        self._raw: dict[str, _Grid[np.ndarray]] = {}
        self._jpegs: dict[str, _Grid[bytes]] = {}
        self._wants: dict[str, tuple[str, tuple[int, int]]] = {}  # scorer -> colour and (width, height)
        alike: dict[tuple[Sampling, float | None], _Pairs] = {}
        for name, s in {**local, **remote}.items():
            tick = ticks.get(name)
            if isinstance(tick, PairTicks):
                assert name in local, "model-backed scorers get single frames"
                key = (s, tick.next_s)
                if key not in alike:
                    alike[key] = _Pairs(s, s.size(*size), tick)
                self._pairs[name] = alike[key]
            elif tick is not None:
                self._wants[name] = (s.color, s.size(*size))
                if name in local:
                    self._raw[name] = _Grid(tick)
                else:
                    self._jpegs[name] = _Grid(tick)
        self._distinct_pairs = list(alike.values())
        thumbnail = ticks[_THUMBNAIL]
        assert isinstance(thumbnail, Ticks)
        self._thumbnails: _Grid[bytes] | None = _Grid(thumbnail) if thumbnails else None
        self._thumbnail_size = THUMBNAIL.size(*size)
        wants = any(s.combing for s in local.values())
        self._combs = Combs(is_image=info.is_image) if wants else None
        self._doubtful: list[tuple[float, int]] = []  # a frame's time, and the doubtful frames up to it
        self._times: list[float] = []  # of all frames

    def offer(self, frame: Frame) -> None:
        time_s = frame.time_s
        self._times.append(time_s)
        if frame.doubtful:
            self._doubtful.append((time_s, frame.doubtful))
        if self._combs is not None:
            self._combs.offer(time_s, frame.av)
        for name, grid in self._raw.items():
            if grid.ticks.pass_by(time_s):
                color, size = self._wants[name]
                grid.keep(time_s, frame.gray(*size) if color == "gray" else frame.rgb(*size))
        for name, jpegs in self._jpegs.items():
            if jpegs.ticks.pass_by(time_s):
                jpegs.keep(time_s, frame.jpeg(*self._wants[name][1], JPEG_QUALITY))
        if self._thumbnails is not None and self._thumbnails.ticks.pass_by(time_s):
            self._thumbnails.keep(time_s, frame.jpeg(*self._thumbnail_size, THUMBNAIL_QUALITY))
        for pairs in self._distinct_pairs:
            pairs.offer(frame)

    def images(self, name: str, span: Span, n: int) -> list[np.ndarray]:
        """Up to `n` pictures of `span` for the local scorer `name`."""
        return self._raw[name].pick(span, n)

    def pairs(self, name: str, span: Span) -> list[Pair]:
        """The pairs for the local scorer `name` whose two frames are inside `span`."""
        return self._pairs[name].inside(span)

    def jpegs(self, name: str, span: Span, n: int) -> list[bytes]:
        """Up to `n` JPEGs of `span` for the model-backed scorer `name`."""
        return self._jpegs[name].pick(span, n)

    def thumbnail(self, span: Span) -> bytes | None:
        """A JPEG from the middle of `span`, or None if no frame of `span` was kept."""
        return next(iter(self._thumbnails.pick(span, 1)), None) if self._thumbnails else None

    def times(self, span: Span) -> list[float]:
        """The times of all frames of `span`."""
        first, last = (bisect.bisect_left(self._times, t - 1e-6) for t in (span.start_s, span.end_s))
        return self._times[first:last]

    def doubtful(self, span: Span) -> int:
        """The number of frames of `span` whose times are not known. Some of them were left out."""
        return sum(n for time_s, n in self._doubtful if span.start_s < time_s <= span.end_s)

    def combing(self, span: Span) -> float | None:
        """The part of the frames of `span` that show combs. None: no scorer wants to know."""
        return None if self._combs is None else self._combs.part(span.start_s, span.end_s)

    def forget(self, before_s: float) -> None:
        """Delete all pictures and pairs from before `before_s`, in seconds."""
        for images in self._raw.values():
            images.forget(before_s)
        for jpegs in (*self._jpegs.values(), *filter(None, [self._thumbnails])):
            jpegs.forget(before_s)
        for pairs in self._distinct_pairs:
            pairs.forget(before_s)
        self._doubtful = [d for d in self._doubtful if d[0] >= before_s]
        del self._times[: bisect.bisect_left(self._times, before_s - 1e-6)]
        if self._combs is not None:
            self._combs.forget(before_s)
