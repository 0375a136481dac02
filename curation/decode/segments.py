"""A long source in pieces, which several workers decode at the same time.

The clips are the same as from a decode of the whole source. `look` decodes a piece and returns the time of
each frame and the change since the frame before. From these values `join.Long` makes the cuts and the spans
in one process, with the same code that a whole source uses. `score` decodes again the frames that a few spans
need. The second decode takes time, so only a source for which all other workers would wait is measured in
pieces (`join.pick`). An unusual source (broken packets, no timestamps, pieces that do not join, a detector
that needs pictures) raises `NotInPieces` and is then measured as a whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import Any, cast

import cv2
import numpy as np

from curation.config.load import validated
from curation.decode import woven
from curation.decode.measure import Clips, deadline_message, opened
from curation.decode.pixels.frame import Frame
from curation.decode.shots.base import ValueDetector
from curation.decode.shots.scenes import detector_of
from curation.decode.shots.spans import Span
from curation.sandbox.protocol import Message, SourceFailed

_DIGEST_LONG_SIDE = 64  # pixels


class NotInPieces(ValueError):
    """The source must be measured as a whole. The text gives the reason."""


# ---- in the child


def look(request: dict[str, Any]) -> Iterator[Message]:
    """Yields one `piece` message for the frames with `from_s` <= time < `until_s`.

    Its parts are arrays with one entry per frame: time in seconds (float64), timestamp (int64), and the
    detector's value (`ValueDetector.value_type`). Raises `NotInPieces`.
    """
    cv2.setNumThreads(1)
    config = validated(request["config"])
    from_s, until_s = request["from_s"], request["until_s"]
    yield Message({"kind": "stage", "stage": "open"})
    found = None
    if from_s is None and config.decode.fields == "mend":  # the first piece says what all of them are
        found = woven.look(request["uri"])
    if found is not None and found.kind != "progressive":
        raise NotInPieces(f"it is {found.kind}")
    with opened(request["uri"], config, found) as video:
        yield deadline_message(config, video, stage="measure")
        detector = cast(ValueDetector, detector_of(config, video.info.fps))
        times: list[float] = []
        stamps: list[int] = []
        values: list[Any] = []
        before = last = None
        base: Fraction | None = None
        for frame in video.frames() if from_s is None else video.frames_from(from_s):
            if until_s is not None and frame.time_s >= until_s:
                break
            if from_s is not None and frame.time_s < from_s:
                before = frame
                continue
            if frame.av.pts is None or frame.av.time_base is None:
                raise NotInPieces("its frames have no timestamps")
            if last is None:
                base = Fraction(frame.av.time_base)
                if before is not None:
                    detector.value(before)
            elif frame.av.time_base != base:
                raise NotInPieces("its time base changes")
            times.append(frame.time_s)
            stamps.append(frame.av.pts)
            values.append(detector.value(frame))
            last = frame
        if notes := video.notes():
            raise NotInPieces(notes)
        if last is None or base is None or video.untimed or (from_s is not None and before is None):
            raise NotInPieces(f"nothing was found at {from_s} s")
        yield Message(
            {
                "kind": "piece",
                "info": asdict(video.info),
                "time_base": [base.numerator, base.denominator],
                "before": None if before is None else _mark(before),
                "last": _mark(last),
                "last_duration_s": last.duration_s,
            },
            [
                np.array(times, "f8").tobytes(),
                np.array(stamps, "i8").tobytes(),
                np.array(values, detector.value_type.base).tobytes(),
            ],
        )


def _mark(frame: Frame) -> dict[str, Any]:
    """A frame at which two pieces are joined (`answers.Mark`)."""
    digest = zlib.crc32(frame.bgr_small(_DIGEST_LONG_SIDE).tobytes())
    return {"time_s": frame.time_s, "digest": digest}


def score(request: dict[str, Any]) -> Iterator[Message]:
    """Yields the same `clip` messages as measuring, for `request["spans"]`, which are in order of time.

    Scorers get the frames from `from_s` on. `at` gives the positions of the time grids at `from_s`.
    """
    cv2.setNumThreads(1)
    config = validated(request["config"])
    spans = [Span(**span) for span in request["spans"]]
    from_s = request["from_s"]
    yield Message({"kind": "stage", "stage": "open"})
    with opened(request["uri"], config) as video:
        yield deadline_message(config, video, stage="measure")
        clips = Clips(request["source_id"], video.info, config, request["at"])
        seen = 0
        for frame in video.frames() if from_s is None else video.frames_from(from_s):
            if from_s is not None and frame.time_s < from_s - 1e-6:
                continue
            clips.keeper.offer(frame)
            while spans and frame.time_s >= spans[0].end_s - 1e-6:
                yield _clip(clips, spans.pop(0), seen)
                seen = 0
            if not spans:
                break
            clips.keeper.forget(min(frame.time_s, spans[0].start_s))
            seen += frame.time_s >= spans[0].start_s - 1e-6
        for span in spans:
            yield _clip(clips, span, seen)
            seen = 0


def _clip(clips: Clips, span: Span, seen: int) -> Message:
    if seen != span.frames:
        text = f"{seen} frames from {span.start_s:.3f} s on, where there were {span.frames}"
        raise SourceFailed("measure", "MissingFrames", text)
    return clips.message(span)
