"""Is a source progressive, interlaced or telecined? Some of its frames, from several places, say so.

The answer depends on the file alone, so that every decoding child finds the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import av

from curation.decode.pixels.fields import LEAST_LINES, Found, Kind, Pair, compare, decide, fields_of
from curation.decode.video import Video
from curation.store.schema import MAX_SECONDS

_AT_START = 24  # pairs in which something moves, at the start of the source
_AT_PLACE = 12  # the same at each other place
_MOST_AT_START = 250  # frames
_MOST_AT_PLACE = 40
_MOST_PLACES = 7  # beside the start
_SECONDS_PER_PLACE = 4.0
_FLAGGED = 3  # times as many pairs and frames where the stream says that it is interlaced
# Where neither a flag nor the start of the source speaks of fields, as in most sources:
_QUICK_PLACES = 2
_QUICK_AT_PLACE = 5  # pairs


def look(uri: str) -> Found | None:
    """What the source is. None: a still image, or a picture of too few lines."""
    with Video(uri, skip_loop_filter=True) as video:
        return look_at(video)


def look_at(video: Video) -> Found | None:
    """The same of an opened source, whose frames are lost by it."""
    if video.info.is_image or video.info.coded_height < LEAST_LINES:
        return None
    flagged = [False]
    runs = list(_runs(video, flagged))
    return decide(runs, flagged=flagged[0])


def as_measured(uri: str, kind: Kind | None) -> Found | None:
    """What the source is, for a decode that gives the frames that measuring saw.

    kind: the column `fields` of its row. None: an earlier version measured it, or it was to be kept as it is.
    """
    if kind is None or kind == "progressive":
        return Found(kind) if kind else None
    return replace(look(uri) or Found(kind), kind=kind)


def _runs(video: Video, flagged: list[bool]) -> Iterator[list[Pair]]:
    start = _Place(video, None)
    times = _FLAGGED if start.flagged else 1
    at_start = start.pairs(_AT_START * times, _MOST_AT_START)
    yield at_start
    quick = not start.flagged and not any(p.combed or p.repeats in ("top", "bottom") for p in at_start)
    places, enough = (_QUICK_PLACES, _QUICK_AT_PLACE) if quick else (_MOST_PLACES, _AT_PLACE * times)
    seen = {start.began}
    for time_s in _places(video, places):
        place = _Place(video, time_s)
        if place.began in seen:  # the same key frame
            continue
        seen.add(place.began)
        flagged[0] = flagged[0] or place.flagged
        yield place.pairs(enough, _MOST_AT_PLACE * times)
    flagged[0] = flagged[0] or start.flagged


def _places(video: Video, most: int) -> list[float]:
    """At most so many times in seconds, evenly over the length that the source declares."""
    length_s = video.info.declared_duration_s or 0.0
    if not 0 < length_s < MAX_SECONDS:  # a broken header
        return []
    count = min(most, int(length_s / _SECONDS_PER_PLACE))
    return [video.info.start_s + length_s * (k + 1) / (count + 1) for k in range(count)]


class _Place:
    """Frames from one place on. Damage ends them, and may lie before the first one."""

    def __init__(self, video: Video, time_s: float | None):
        self._frames: Iterator[av.VideoFrame] = iter(())
        with suppress(av.error.FFmpegError, ValueError):
            self._frames = video.glimpse(time_s)
        self._first = self._next()
        self.began = self._first.pts if self._first is not None else None
        self.flagged = self._first is not None and self._first.interlaced_frame

    def _next(self) -> av.VideoFrame | None:
        try:
            return next(self._frames, None)
        except (av.error.FFmpegError, ValueError):
            return None

    def pairs(self, enough: int, most: int) -> list[Pair]:
        """Pairs of neighbouring frames, until in `enough` of them something moves, and at most `most`."""
        found: list[Pair] = []
        moving = 0
        frame, before = self._first, None
        while frame is not None and len(found) < most and moving < enough:
            now = fields_of(frame)
            if before is not None:
                if before.top.shape != now.top.shape:
                    break
                found.append(compare(before, now))
                moving += found[-1].repeats != "both"
            before = now
            frame = self._next()
        return found
