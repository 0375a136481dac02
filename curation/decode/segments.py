"""A long source in pieces, that several workers decode at once; its clips are those of one piece.

`look` decodes a piece and says of each frame when it is shown and how much changed since the one before. From
these, in one place, `Joined` makes the cuts and the spans, by the very code that a whole source goes through;
`score` decodes once more what a few spans need. That costs a second decode, so it is for a source that would
hold up all others (`pick`). Whatever is unusual about one (broken packets, no timestamps, pieces that do not
join, a detector that wants pictures) raises `NotInPieces`: it is then measured whole.
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
from curation.decode.measure import Clips, deadline_message
from curation.decode.scenes import detector_of
from curation.decode.shots import ValueDetector
from curation.decode.spans import Span
from curation.decode.video import Frame, Video
from curation.sandbox.protocol import Message, SourceFailed

_DIGEST_LONG_SIDE = 64  # pixels


class NotInPieces(ValueError):
    """This source is to be measured whole; the text says why."""


# ---- in the child


def look(request: dict[str, Any]) -> Iterator[Message]:
    """One `piece` message for the frames from `from_s` to before `until_s`. Its parts are arrays, one number
    per frame: time in seconds (float64), timestamp (int64), value (float64)."""
    cv2.setNumThreads(1)
    config = validated(request["config"])
    from_s, until_s = request["from_s"], request["until_s"]
    yield Message({"kind": "stage", "stage": "open"})
    with Video(request["uri"], threads=config.run.decoder_threads, skip_loop_filter=True) as video:
        yield deadline_message(config, video, stage="measure")
        detector = cast(ValueDetector, detector_of(config, video.info.fps))
        times: list[float] = []
        stamps: list[int] = []
        values: list[float] = []
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
            [np.array(a, t).tobytes() for a, t in ((times, "f8"), (stamps, "i8"), (values, "f8"))],
        )


def _mark(frame: Frame) -> dict[str, Any]:
    """A frame by which pieces are joined (`answers.Mark`)."""
    digest = zlib.crc32(frame.bgr_small(_DIGEST_LONG_SIDE).tobytes())
    return {"time_s": frame.time_s, "digest": digest}


def score(request: dict[str, Any]) -> Iterator[Message]:
    """`clip` messages, as measuring gives them, for `request["spans"]`, which follow each other. Frames are
    offered from the one at `from_s` on, where grids stand `at`."""
    cv2.setNumThreads(1)
    config = validated(request["config"])
    spans = [Span(**span) for span in request["spans"]]
    from_s = request["from_s"]
    yield Message({"kind": "stage", "stage": "open"})
    with Video(request["uri"], threads=config.run.decoder_threads, skip_loop_filter=True) as video:
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
