"""The measure phase of one source: one decode feeds shot detection and every scorer. Runs in the child."""

from __future__ import annotations

import bisect
import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import cv2

from curation.child import Message, deadline_s
from curation.config import Config, validated
from curation.sampling import Keeper
from curation.shots import make_detector
from curation.spans import Span, divide
from curation.video import Frame, Video
from filters.base import ClipInfo, Frames, Scorer

_RATE_TOLERANCE = 1e-3  # less than a third of a frame in 10 s at 30 frames per second
_VFR_SHARE = 0.02  # of frame gaps that may stray from the usual one by a quarter of it


def clip_id(source_id: str, span: Span) -> str:
    """Hash of the source, and the start and end timestamps in microseconds."""
    text = f"{source_id} {round(span.start_s * 1e6)} {round(span.end_s * 1e6)}"
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def run(request: dict[str, Any]) -> Iterator[Message]:
    """Yields a `clip` message per candidate clip, as its scene is closed, and one `source` message."""
    cv2.setNumThreads(1)
    config = validated(request["config"])
    yield Message({"kind": "stage", "stage": "open"})
    video = Video(request["uri"], threads=config.run.decoder_threads, skip_loop_filter=True)
    with video:
        yield deadline_message(config, video, stage="measure")
        yield from _Measure(request["source_id"], video, config).run()


def scored(
    keeper: Keeper, span: Span, clip: ClipInfo, local: Mapping[str, Scorer], model: Mapping[str, Scorer]
) -> tuple[dict[str, float | None], dict[str, list[bytes]]]:
    """The columns of the scorers that run here, and the JPEGs of each one that runs elsewhere."""
    scores: dict[str, float | None] = {}
    for name, scorer in local.items():
        sampling = scorer.sampling
        images = keeper.images(name, span, sampling.n) if sampling.kind == "uniform" else []
        found = keeper.pairs(name, span) if sampling.kind == "pairs" else []
        scores |= scorer([Frames(clip, images, found)])[0].values
    return scores, {name: keeper.jpegs(name, span, s.sampling.n) for name, s in model.items()}


def deadline_message(config: Config, video: Video, *, stage: str) -> Message:
    """Now that the headers say how long the source is: by when it must be done."""
    limit_s = deadline_s(config.run, video.info.declared_duration_s)
    return Message({"kind": "deadline", "deadline_s": limit_s, "stage": stage})


class _Measure:
    """State of the one pass: the open scene's timestamps, and what was kept for its clips."""

    def __init__(self, source_id: str, video: Video, config: Config):
        self.source_id = source_id
        self.video = video
        self.config = config
        info = video.info
        self.detector = make_detector(
            config.shots.detector,
            config.shots.threshold,
            config.shots.min_scene_seconds,
            exact=config.shots.exact,
            fps=info.fps or 25.0,
        )
        media = "image" if info.is_image else "video"
        self.local = {n: s for n, s in config.local_scorers.items() if media in s.applies_to}
        self.model = {n: s for n, s in config.model_scorers.items() if media in s.applies_to}
        samplings = {n: s.sampling for n, s in self.local.items()}
        remote = {n: s.sampling for n, s in self.model.items()}
        self.keeper = Keeper(info, samplings, remote, config.spans.min_seconds)
        self.times: list[float] = []  # of the frames since the open scene's start
        self.starts_at_cut = True
        self.clips = 0
        self.frames = 0

    def run(self) -> Iterator[Message]:
        began = time.monotonic()
        info, shots = self.video.info, self.config.shots
        # A block is closed only when no later cut can fall into it, and when what is left of its scene
        # can make a clip of its own.
        hold_s = max(self.detector.lag_s, self.config.spans.min_seconds)
        frame = None
        first_s = info.start_s
        for frame in self.video.frames():
            if self.frames == 0:
                first_s = frame.time_s
            self.frames += 1
            self.times.append(frame.time_s)
            self.keeper.offer(frame)
            for cut in self.detector.push(frame):
                yield from self._close(cut.time_s, at_cut=True)
            block_end = self.times[0] + shots.max_scene_seconds
            if frame.time_s >= block_end + hold_s:
                behind = len(self.times) - _count_before(self.times, block_end)
                if behind > self.detector.lag_frames:
                    yield from self._close(block_end, at_cut=False)
        if frame is None:
            raise ValueError("no frame could be decoded")
        for cut in self.detector.finish():
            yield from self._close(cut.time_s, at_cut=True)
        fps = self._fps(first_s, frame.time_s)
        end_s = 0.0 if info.is_image else frame.time_s + self._shown_s(frame, fps)
        yield from self._close_last(end_s)
        yield Message({"kind": "source", **self._source_row(first_s, end_s, fps, time.monotonic() - began)})

    def _close(self, end_s: float, *, at_cut: bool) -> Iterator[Message]:
        """Close the open scene before `end_s`; what comes after it stays open."""
        n = _count_before(self.times, end_s)
        if n == 0:  # a cut where a block was closed already
            self.starts_at_cut |= at_cut
            return
        scene, self.times = self.times[:n], self.times[n:]
        yield from self._clips(scene, self.times[0] if self.times else end_s, trim_end=at_cut)
        self.starts_at_cut = at_cut
        if self.times:
            self.keeper.forget(self.times[0])

    def _close_last(self, end_s: float) -> Iterator[Message]:
        if self.times:
            yield from self._clips(self.times, end_s, trim_end=True)

    def _clips(self, times_s: list[float], end_s: float, *, trim_end: bool) -> Iterator[Message]:
        spans = self.config.spans
        if self.video.info.is_image:
            yield self._clip(Span(0.0, 0.0, 1))
            return
        for span in divide(
            times_s,
            end_s,
            max_seconds=spans.max_seconds,
            trim_seconds=spans.trim_seconds,
            trim_start=self.starts_at_cut,
            trim_end=trim_end,
        ):
            yield self._clip(span)

    def _clip(self, span: Span) -> Message:
        info = self.video.info
        # One frame of a video is still not a still image: it has a rate and a duration.
        fps = None if info.is_image else self._rounded_rate(span.frames / span.duration_s)
        clip = ClipInfo(span.duration_s, span.frames, fps, info.width, info.height)
        scores, jpegs = scored(self.keeper, span, clip, self.local, self.model)
        thumbnail = self.keeper.thumbnail(span)
        self.clips += 1
        head = {
            "kind": "clip",
            "clip_id": clip_id(self.source_id, span),
            "start_s": span.start_s,
            "end_s": span.end_s,
            "frames": span.frames,
            "fps": fps,
            "width": info.width,
            "height": info.height,
            "scores": scores,
            "is_image": info.is_image,
            "jpegs": {name: len(group) for name, group in jpegs.items()},
            "has_thumbnail": thumbnail is not None,
        }
        return Message(
            head, [*([thumbnail] if thumbnail else []), *(j for group in jpegs.values() for j in group)]
        )

    def _rounded_rate(self, measured: float) -> float:
        """The declared rate, where the measured one agrees with it: 29.97 rather than 29.93."""
        declared = self.video.info.fps
        if declared and abs(measured / declared - 1) < _RATE_TOLERANCE:
            return declared
        return measured

    def _fps(self, first_s: float, last_s: float) -> float:
        if self.frames < 2:
            return self.video.info.fps or 25.0
        return self._rounded_rate((self.frames - 1) / (last_s - first_s))

    def _shown_s(self, last: Frame, fps: float) -> float:
        """How long the last frame is shown: as declared, but no longer than any before it (or a second).
        A broken header can declare days."""
        longest_s = max(self.video.deltas, default=0) / 1000
        return min(last.duration_s or 1 / fps, max(1.0, longest_s))

    def _source_row(self, first_s: float, end_s: float, fps: float, seconds: float) -> dict[str, Any]:
        info = self.video.info
        return {
            "container": info.container,
            "codec": info.codec,
            "width": info.width,
            "height": info.height,
            "fps": None if info.is_image else fps,
            "is_vfr": self._is_vfr(),
            "duration_s": end_s - first_s,
            "frames": self.frames,
            "clips": self.clips,
            "seconds": seconds,
            "message": self.video.notes(),
        }

    def _is_vfr(self) -> bool:
        deltas = self.video.deltas
        total = sum(deltas.values())
        if total == 0:
            return False
        usual = deltas.most_common(1)[0][0]
        stray = sum(n for ms, n in deltas.items() if abs(ms - usual) > max(2, usual / 4))
        return stray > _VFR_SHARE * total


def _count_before(times_s: list[float], limit_s: float) -> int:
    return bisect.bisect_left(times_s, limit_s - 1e-6)
