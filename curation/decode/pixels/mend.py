"""Frames of interlaced and telecined sources, as the pictures of one moment each.

Interlaced: `bwdif` makes one picture of each frame, of the moment of its first field. Frames whose own fields
are of one moment stay as they are, so that the progressive parts of a source lose nothing.

Where the fields of a frame are of two progressive pictures (film at 25 pictures per second whose fields are
shifted), `fieldmatch` puts those of one picture together instead, and nothing is lost.

Telecined: `fieldmatch` puts the fields of each picture of the film together again, `bwdif` mends what it
could not, and of each five frames the one that repeats a picture is dropped. The other four are timed evenly.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import av
import av.filter
import cv2
import numpy as np

from curation.decode.pixels.fields import Field, Fields, Pair, compare, fields_of

_WINDOW = 8  # pairs on each side of a frame that say whether its part of the source is progressive
_CYCLE = 5  # frames of telecined film that hold four pictures
_STILL_LEVELS = 0.5  # mean change of a picture that does not move
_REPEAT = 0.6  # a repeated picture changes by less than this part of what the others do
_FINER = 16  # ticks of each tick of the source's time base, so that a fourth of five frames is a whole number


class Shown(Protocol):
    """A dataclass of a decoded frame and its time (`frame.Frame`)."""

    time_s: float
    duration_s: float | None
    av: av.VideoFrame
    begins: bool
    doubtful: int


F = TypeVar("F", bound=Shown)


def deinterlaced(frames: Iterable[F], first: Field) -> Iterator[F]:
    """The same frames at the same times, without combs. first: the field that comes first."""
    order = ("setparams", f"field_mode={_short(first)}")
    for head, part in _parts(frames):
        graph = _Graph(head.av, order, ("bwdif", "mode=send_frame:deint=all"))
        as_it_is: deque[bool] = deque()
        for frame, picture in graph.run(_noting(part, as_it_is)):
            yield frame if as_it_is.popleft() else _with(frame, av=picture)


def filmed(frames: Iterable[F], first: Field) -> Iterator[F]:
    """The pictures of telecined film: four of each five frames."""
    for part in _matched(frames, first):
        yield from _decimated(part)


def matched(frames: Iterable[F], first: Field) -> Iterator[F]:
    """The same frames at the same times, each with two fields of one picture."""
    return itertools.chain.from_iterable(_matched(frames, first))


def _matched(frames: Iterable[F], first: Field) -> Iterator[Iterator[F]]:
    for head, part in _parts(frames):
        graph = _Graph(
            head.av,
            ("setparams", f"field_mode={_short(first)}"),
            ("fieldmatch", f"order={_short(first)}:combmatch=full"),
            ("bwdif", "mode=send_frame:deint=interlaced"),
        )
        yield (_with(frame, av=picture) for frame, picture in graph.run(part))


def _short(first: Field) -> str:
    return "tff" if first == "top" else "bff"


def _with(frame: F, **changes: Any) -> F:
    return dataclasses.replace(frame, **changes)  # type: ignore[type-var]


def _parts(frames: Iterable[F]) -> Iterator[tuple[F, Iterator[F]]]:
    """Runs of frames of one size and format, which may look at each other, each with its first frame."""
    part, last = 0, None

    def number(frame: F) -> int:
        nonlocal part, last
        shape = (frame.av.width, frame.av.height, frame.av.format.name)
        part += last is not None and (frame.begins or shape != last)
        last = shape
        return part

    for _, group in itertools.groupby(frames, number):
        rest = iter(group)
        head = next(rest)
        yield head, itertools.chain([head], rest)


class _Graph:
    """Filters of ffmpeg that return one frame for each frame."""

    def __init__(self, like: av.VideoFrame, *filters: tuple[str, str]):
        self._graph = av.filter.Graph()
        last = self._graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=Fraction(1, 25)
        )
        for name, options in (*filters, ("buffersink", "")):
            added = self._graph.add(name, options or None)
            last.link_to(added)
            last = added
        self._graph.configure()

    def run(self, frames: Iterable[F]) -> Iterator[tuple[F, av.VideoFrame]]:
        """Each frame with its new picture, which has the same timestamp."""
        waiting: deque[F] = deque()
        for number, frame in enumerate(frames):
            stamp = frame.av.pts, frame.av.time_base
            frame.av.pts, frame.av.time_base = number, Fraction(1, 25)
            self._graph.push(frame.av)
            frame.av.pts, frame.av.time_base = stamp
            waiting.append(frame)
            yield from self._done(waiting)
        self._graph.push(None)
        yield from self._done(waiting)
        yield from ((frame, frame.av) for frame in waiting)

    def _done(self, waiting: deque[F]) -> Iterator[tuple[F, av.VideoFrame]]:
        while waiting:
            try:
                picture = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(picture, av.VideoFrame)
            frame = waiting.popleft()
            picture.pts, picture.time_base = frame.av.pts, frame.av.time_base
            yield frame, picture


# ---- which frames stay as they are


def _noting(frames: Iterable[F], as_it_is: deque[bool]) -> Iterator[F]:
    """The frames, each after it is noted in `as_it_is` whether it stays as it is."""
    held: deque[F] = deque()
    pairs: deque[Pair] = deque(maxlen=2 * _WINDOW)
    before: Fields | None = None
    stays = False
    for frame in frames:
        fields = fields_of(frame.av)
        if before is not None:
            pairs.append(compare(before, fields))
        before = fields
        held.append(frame)
        if len(held) > _WINDOW:
            stays = _stays(pairs, stays)
            as_it_is.append(stays)
            yield held.popleft()
    while held:
        stays = _stays(pairs, stays)
        as_it_is.append(stays)
        yield held.popleft()
        if len(pairs) > _WINDOW:
            pairs.popleft()


def _stays(pairs: Iterable[Pair], before: bool) -> bool:
    """Do the pairs around a frame say that it is progressive? Where nothing moves: as the frame before."""
    if any(pair.order for pair in pairs):
        return False
    return before or any(pair.progressive for pair in pairs)


# ---- film


def _decimated(frames: Iterator[F]) -> Iterator[F]:
    last: Fields | None = None
    place = _CYCLE - 1  # of the last repeated picture, for cycles in which nothing moves
    owed = 0  # doubtful frames that were dropped
    while cycle := list(itertools.islice(frames, _CYCLE)):
        changes = []
        for frame in cycle:
            fields = fields_of(frame.av)
            changes.append(_change(last, fields))
            last = fields
        place = _repeat(changes, place)
        for frame in _evenly(cycle, place):
            yield _with(frame, doubtful=frame.doubtful + owed)
            owed = 0
        if place < len(cycle):
            owed += cycle[place].doubtful


def _evenly(cycle: list[F], drops: int) -> Iterator[F]:
    """The frames without the one at `drops`, at even times, so that four last as long as five did."""
    steps = max(1, len(cycle) - 1)
    length_s = (cycle[-1].time_s - cycle[0].time_s) / steps
    start, end = cycle[0].av.pts, cycle[-1].av.pts
    for k, frame in enumerate(f for i, f in enumerate(cycle) if i != drops):
        base = frame.av.time_base
        if start is None or end is None or base is None:
            yield _with(frame, time_s=cycle[0].time_s + 1.25 * k * length_s) if drops < _CYCLE else frame
            continue
        pts = _FINER * start + round(Fraction(5 * k * _FINER * (end - start), 4 * steps))
        frame.av.pts = pts if drops < _CYCLE else _FINER * (frame.av.pts or 0)
        frame.av.time_base = Fraction(base) / _FINER
        time_s = float(frame.av.pts * frame.av.time_base)
        length = frame.duration_s and frame.duration_s * (1.25 if drops < _CYCLE else 1)
        yield _with(frame, time_s=time_s, duration_s=length)


def _change(one: Fields | None, two: Fields) -> float:
    """The mean change in levels, in the fifth of the lines that change most: little things move, too."""
    if one is None:
        return 255.0
    lines = np.concatenate([cv2.absdiff(a, b) for a, b in ((one.top, two.top), (one.bottom, two.bottom))])
    means = np.sort(lines.mean(axis=1))
    return float(means[-max(1, len(means) // 5) :].mean())


def _repeat(changes: list[float], before: int) -> int:
    """The place of the repeated picture in a cycle. `_CYCLE`: none repeats, so that all are kept.

    Where nothing moves it is at the same place as `before`.
    """
    middle = sorted(changes)[len(changes) // 2]
    least = min(range(len(changes)), key=lambda k: changes[k])
    if middle < _STILL_LEVELS:
        before = min(before, len(changes) - 1)
        return before if changes[before] < _STILL_LEVELS else least
    return least if changes[least] < max(_REPEAT * middle, _STILL_LEVELS) else _CYCLE
