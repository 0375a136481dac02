"""The measure phase of one source: one decode feeds shot detection and every scorer. Runs in the child."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2

from curation.config.load import validated
from curation.config.schema import Config
from curation.decode import woven
from curation.decode.container.rates import clip_rate
from curation.decode.pixels.fields import Found
from curation.decode.pixels.frame import Frame, VideoInfo
from curation.decode.sampling import Keeper
from curation.decode.shots.listed import ListedSpans
from curation.decode.shots.scenes import Scenes, detector_of, frame_rate, is_vfr, shown_s
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from curation.sandbox.protocol import Message
from curation.store.rows import Decoded
from filters.base import ClipInfo, Frames, Scorer


def clip_id(source_id: str, span: Span) -> str:
    """Hash of the source, and the start and end timestamps in microseconds."""
    text = f"{source_id} {round(span.start_s * 1e6)} {round(span.end_s * 1e6)}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def run(request: dict[str, Any]) -> Iterator[Message]:
    """Yields a `clip` message for each candidate clip when its scene is closed, then a `source` message."""
    cv2.setNumThreads(1)
    config = validated(request["config"])
    yield Message({"kind": "stage", "stage": "open"})
    listed = request.get("listed") or []
    with opened(request["uri"], config) as video:
        yield deadline_message(config, video, stage="measure")
        if config.decode.fields == "keep":
            yield from _measured(request["source_id"], video, config, listed)
            return
        found = woven.look_at(video)
    with opened(request["uri"], config, found) as video:
        yield from _measured(request["source_id"], video, config, listed)


def _measured(
    source_id: str, video: Video, config: Config, wanted: Sequence[tuple[float, float]]
) -> Iterator[Message]:
    """wanted: the spans of the list of sources. Without them, shots decide."""
    began = time.monotonic()
    info = video.info
    listed = ListedSpans(wanted, info.file_start_s) if wanted and not info.is_image else None
    part: _Part | None = None
    frame = None
    first_s, frames, clips = info.start_s, 0, 0
    for frame in video.frames():
        if frames == 0:
            first_s = frame.time_s
        frames += 1
        if part is None or frame.begins:
            if part is not None:
                yield from part.finish(frame.time_s, is_last=False)
                clips += part.clips.count
            part = _Part(source_id, frame.info, config, listed)
        yield from part.push(frame)
    if frame is None or part is None:
        raise ValueError("no frame could be decoded")
    fps = frame_rate(first_s, frame.time_s, frames, info.fps)
    end_s = 0.0 if info.is_image else frame.time_s + shown_s(frame.duration_s, fps, video.deltas)
    yield from part.finish(end_s, is_last=True)
    row = source_row(info, fps, end_s - first_s, frames, is_vfr=is_vfr(video.deltas))
    clips += part.clips.count
    seconds = time.monotonic() - began
    notes = [note for note in (video.notes(), listed.notes() if listed else None) if note]
    message = "; ".join(notes) or None
    yield Message({"kind": "source", **row, "clips": clips, "seconds": seconds, "message": message})


class _Part:
    """Makes the `clip` messages of a part of a source: of one size, and of one of its joined recordings."""

    def __init__(self, source_id: str, info: VideoInfo, config: Config, listed: ListedSpans | None):
        self.clips = Clips(source_id, info, config)
        self._info = info
        self._spans = listed or _ByShots(info, config)

    def push(self, frame: Frame) -> Iterator[Message]:
        self.clips.keeper.offer(frame)
        yield from map(self.clips.message, self._spans.push(frame))
        if self._spans.open_s is not None:
            self.clips.keeper.forget(self._spans.open_s)

    def finish(self, end_s: float, *, is_last: bool) -> Iterator[Message]:
        """The messages of the remaining spans. end_s: the end of the last frame."""
        left = [Span(0.0, 0.0, 1)] if self._info.is_image else None
        yield from map(self.clips.message, left or self._spans.finish(end_s, is_last=is_last))


class _ByShots:
    """The spans of detected scenes. `ListedSpans` has the same methods."""

    def __init__(self, info: VideoInfo, config: Config):
        self._detector = detector_of(config, info.fps)
        self._scenes = Scenes(config, self._detector.lag_s, self._detector.lag_frames)
        self.open_s: float | None = None

    def push(self, frame: Frame) -> list[Span]:
        closed = self._scenes.push(frame.time_s, self._detector.push(frame))
        self.open_s = self._scenes.open_s if closed else None
        return closed

    def finish(self, end_s: float, *, is_last: bool) -> list[Span]:
        return self._scenes.finish(end_s, self._detector.finish())


def opened(uri: str, config: Config, found: Found | None = None) -> Video:
    """A source as measures see it.

    Cutting must find the same pictures. Where frames are made of others, such a source is decoded in full.
    """
    mends = found is not None and found.kind != "progressive"
    threads = config.run.decoder_threads
    return Video(uri, threads=threads, skip_loop_filter=not mends, hdr=config.cut.hdr, found=found)


def scored(
    keeper: Keeper, span: Span, clip: ClipInfo, local: Mapping[str, Scorer], model: Mapping[str, Scorer]
) -> tuple[dict[str, float | None], dict[str, list[bytes]]]:
    """(the columns of the local scorers, the JPEGs for each model-backed scorer)."""
    clip = replace(clip, doubtful=keeper.doubtful(span), combing=keeper.combing(span))
    scores: dict[str, float | None] = {}
    shared: dict[Hashable, Any] = {}
    for name, scorer in local.items():
        sampling = scorer.sampling
        images = keeper.images(name, span, sampling.n) if sampling.kind == "uniform" else []
        found = keeper.pairs(name, span) if sampling.kind == "pairs" else []
        scores |= scorer([Frames(clip, images, found, shared)])[0].values
    return scores, {name: keeper.jpegs(name, span, s.sampling.n) for name, s in model.items()}


def deadline_message(config: Config, video: Video, *, stage: str) -> Message:
    """The message with the deadline, in seconds, after the headers have given the length of the source."""
    limit_s = config.run.deadline_s(video.info.declared_duration_s)
    return Message({"kind": "deadline", "deadline_s": limit_s, "stage": stage})


class Clips:
    """Makes the `clip` messages of one source from the frames of its keeper. `Keeper` describes `at`."""

    def __init__(
        self, source_id: str, info: VideoInfo, config: Config, at: Mapping[str, float | None] | None = None
    ):
        media = "image" if info.is_image else "video"
        self._source_id = source_id
        self._info = info
        self._local = {n: s for n, s in config.local_scorers.items() if media in s.applies_to}
        self._model = {n: s for n, s in config.model_scorers.items() if media in s.applies_to}
        samplings = {n: s.sampling for n, s in self._local.items()}
        remote = {n: s.sampling for n, s in self._model.items()}
        self.keeper = Keeper(info, samplings, remote, config.spans.min_seconds, at=at)
        self.count = 0

    def message(self, span: Span) -> Message:
        info = self._info
        # A video of one frame is not a still image: the video has a rate and a duration.
        fps = None if info.is_image else clip_rate(self.keeper.times(span), span.end_s, info.fps)
        clip = ClipInfo(span.duration_s, span.frames, fps, info.width, info.height)
        scores, jpegs = scored(self.keeper, span, clip, self._local, self._model)
        thumbnail = self.keeper.thumbnail(span)
        self.count += 1
        head = {
            "kind": "clip",
            "clip_id": clip_id(self._source_id, span),
            "start_s": span.start_s,
            "end_s": span.end_s,
            "frames": span.frames,
            "fps": fps,
            "width": info.width,
            "height": info.height,
            "scores": scores,
            "jpegs": {name: len(group) for name, group in jpegs.items()},
            "has_thumbnail": thumbnail is not None,
        }
        return Message(
            head, [*([thumbnail] if thumbnail else []), *(j for group in jpegs.values() for j in group)]
        )


def source_row(info: VideoInfo, fps: float, duration_s: float, frames: int, *, is_vfr: bool) -> Decoded:
    """The columns of a source that are known after all of its frames were decoded."""
    return {
        "container": info.container,
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": None if info.is_image else fps,
        "is_vfr": is_vfr,
        "file_start_s": info.file_start_s,
        "duration_s": duration_s,
        "frames": frames,
        "transfer": info.transfer,
        "fields": info.fields,
    }
