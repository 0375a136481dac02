"""Scores committed clips again with some of the scorers. No shots are detected. Runs in the decoding child.

The source is read from its first frame, as in the measure phase, so that every scorer gets the same pictures
as in that phase. Reading ends after the last span.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from curation.config.load import validated
from curation.config.schema import Config
from curation.decode import woven
from curation.decode.measure import deadline_message, opened, scored
from curation.decode.pixels.frame import Frame, VideoInfo
from curation.decode.sampling import Keeper
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from curation.sandbox.protocol import Message, SourceFailed
from filters.base import ClipInfo


@dataclass(frozen=True)
class Committed:
    """One committed clip, and the names of the scorers that must score the clip again."""

    clip_id: str
    start_s: float
    end_s: float
    frames: int
    fps: float | None
    width: int
    height: int
    want: list[str]


def run(request: dict[str, Any]) -> Iterator[Message]:
    """Yields a `scores` message for each clip of `request["clips"]`.

    The message has the columns of the clip's local scorers and the JPEGs for its model-backed scorers.
    """
    cv2.setNumThreads(1)
    config = validated(request["config"])
    clips = sorted((Committed(**c) for c in request["clips"]), key=lambda c: c.start_s)
    yield Message({"kind": "stage", "stage": "open"})
    found = woven.as_measured(request["uri"], request.get("fields"))
    with opened(request["uri"], config, found) as video:
        yield deadline_message(config, video, stage="score")
        yield from _scores(video, clips, config)


def _scores(video: Video, clips: Sequence[Committed], config: Config) -> Iterator[Message]:
    wanted = {name for clip in clips for name in clip.want}
    local = {n: s for n, s in config.local_scorers.items() if n in wanted}
    model = {n: s for n, s in config.model_scorers.items() if n in wanted}
    samplings = {n: scorer.sampling for n, scorer in local.items()}
    remote = {n: scorer.sampling for n, scorer in model.items()}

    def new_keeper(info: VideoInfo) -> Keeper:
        return Keeper(info, samplings, remote, config.spans.min_seconds, thumbnails=False)

    keeper = new_keeper(video.info)

    def message(clip: Committed, seen: int) -> Message:
        if seen != clip.frames:
            text = f"{seen} frames where measuring saw {clip.frames}: the file has changed"
            raise SourceFailed("score", "MissingFrames", text)
        span = Span(clip.start_s, clip.end_s, clip.frames)
        info = ClipInfo(span.duration_s, clip.frames, clip.fps, clip.width, clip.height)
        mine = {n: s for n, s in local.items() if n in clip.want}
        scores, jpegs = scored(keeper, span, info, mine, {n: s for n, s in model.items() if n in clip.want})
        counts = {name: len(group) for name, group in jpegs.items()}
        head = {"kind": "scores", "clip_id": clip.clip_id, "scores": scores, "jpegs": counts}
        return Message(head, [jpeg for group in jpegs.values() for jpeg in group])

    seen = Counter[str]()
    waiting = list(clips)  # in order of their starts; spans of a list may overlap
    for frame in video.frames():
        if not frame.begins:
            keeper.offer(frame)
        begun = [clip for clip in waiting if _has_begun(frame, clip)]
        for clip in begun:
            if _is_after(frame, clip):
                yield message(clip, seen[clip.clip_id])
                waiting.remove(clip)
            else:
                seen[clip.clip_id] += 1
        if frame.begins:  # as in the measure phase, each part has grids of its own
            keeper = new_keeper(frame.info)
            keeper.offer(frame)
        if not waiting:
            return
        keeper.forget(min(frame.time_s, waiting[0].start_s))
    for clip in waiting:
        yield message(clip, seen[clip.clip_id])


def _has_begun(frame: Frame, clip: Committed) -> bool:
    return frame.time_s >= clip.start_s - 1e-6


def _is_after(frame: Frame, clip: Committed) -> bool:
    if clip.fps is None:  # a still image: its span has the length 0
        return frame.time_s > clip.end_s + 1e-6
    return frame.time_s >= clip.end_s - 1e-6
