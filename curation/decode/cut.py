"""Encodes accepted spans with the exact frames, and checks the result. Runs in the decoding child."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from curation.config.hdr import HdrMode
from curation.config.schema import Cut, Run
from curation.decode import woven
from curation.decode.container.faststart import index_first
from curation.decode.container.rates import shown_before, stored_frames
from curation.decode.pixels.display import upright
from curation.decode.pixels.fields import Found
from curation.decode.pixels.frame import Frame, VideoInfo
from curation.decode.video import Video
from curation.sandbox.protocol import Message, SourceFailed

_SEEK_GAP_SECONDS = 5.0  # the decoder reaches a nearer span without a seek
_IMAGE_RATE = 25.0
# Of ISO 23091-2. RGB becomes YCbCr by the matrix of SMPTE 170M, which is that of BT.601.
_BT709, _SMPTE170M, _SRGB = 1, 6, 13
_DIGEST_LONG_SIDE = 512  # pixels


@dataclass(frozen=True)
class Wanted:
    """One accepted span, with its measured start, end and number of frames."""

    clip_id: str
    start_s: float
    end_s: float
    frames: int
    fps: float | None


def run(request: dict[str, Any]) -> Iterator[Message]:
    """Yields for each span a `clip` message with the bytes of the mp4, or a `clip_failed` message."""
    cv2.setNumThreads(1)
    settings = Cut.model_validate(request["cut"])
    limits = Run.model_validate(request["run"])
    spans = sorted((Wanted(**w) for w in request["spans"]), key=lambda w: w.start_s)
    with Video(request["uri"], threads=limits.decoder_threads) as video:
        length_s = video.info.declared_duration_s
    yield Message(
        {
            "kind": "deadline",
            "stage": "cut",
            "deadline_s": limits.deadline_s(length_s, factor=4),
        }
    )
    found = woven.as_measured(request["uri"], request.get("fields"))
    source = _Source(request["uri"], limits.decoder_threads, settings.hdr, found)
    for wanted, frames in _spans_of(source, spans):
        try:
            if isinstance(frames, SourceFailed):
                raise frames
            yield _encoded(wanted, frames, settings)
        except SourceFailed as error:
            head = {"kind": "clip_failed", "clip_id": wanted.clip_id, "transient": error.transient}
            yield Message({**head, "stage": error.stage, "error": error.error, "message": error.message})


def _spans_of(
    source: _Source, spans: Sequence[Wanted]
) -> Iterator[tuple[Wanted, Iterator[Frame] | SourceFailed]]:
    """The frames of each span, in one decode of the source, or the failure of the span.

    The caller must read all frames of a span before it asks for the next span.
    """
    cursor = _Cursor(source)
    try:
        for wanted in spans:
            if not cursor.reach(wanted.start_s):
                message = f"no frame at {wanted.start_s:.6f} s, where measuring saw one: the file has changed"
                yield wanted, SourceFailed("cut", "MissingFrames", message)
                continue
            yield wanted, cursor.take(None if wanted.fps is None else wanted.end_s)
    finally:
        cursor.close()


@dataclass(frozen=True)
class _Source:
    """How the source is opened, so that its pictures are those that measuring saw."""

    uri: str
    threads: int
    hdr: HdrMode
    found: Found | None


class _Cursor:
    """A decoder with a position: `_next` is the next frame of the source."""

    def __init__(self, source: _Source):
        self._source = source
        self._video = self._opened()
        self._frames = self._video.frames()
        self._next = next(self._frames, None)
        self._may_seek = True

    def reach(self, time_s: float) -> bool:
        """Move to the frame at `time_s`. False if that frame does not exist, because the file has changed."""
        if self._next is None or self._next.time_s > time_s + 1e-6:
            self._reopen()
        elif self._may_seek and time_s - self._next.time_s > _SEEK_GAP_SECONDS and self._video.may_seek():
            self._seek(time_s)
        self._skip_to(time_s)
        return self._next is not None and abs(self._next.time_s - time_s) < 1e-5

    def take(self, end_s: float | None) -> Iterator[Frame]:
        """The frames before `end_s`. None: the next one alone, for a still image, whose span has length 0."""
        while self._next is not None and (end_s is None or self._next.time_s < end_s - 1e-6):
            frame, self._next = self._next, None
            yield frame
            self._next = next(self._frames, None)
            if end_s is None:
                return

    def _skip_to(self, time_s: float) -> None:
        while self._next is not None and self._next.time_s < time_s - 1e-6:
            self._next = next(self._frames, None)

    def _seek(self, time_s: float) -> None:
        """Move to the frame at `time_s` by way of a key frame.

        Two decoders that begin at different key frames must give the same picture there. Otherwise, and if
        the container has a wrong index or no timestamps, this source is decoded from its start.
        """
        began_s = self._decode_from(time_s, time_s)
        picture = self._picture()
        if began_s is not None and picture is not None and began_s > self._video.info.start_s:
            self._video.close()
            self._video = self._opened()
            earlier_s = self._decode_from(began_s - 1e-3, time_s)
            if earlier_s is None or earlier_s >= began_s or self._picture() != picture:
                picture = None
        if picture is None:
            self._may_seek = False  # a later seek would fail, too, and the source be decoded once more
            self._reopen()

    def _decode_from(self, from_s: float, time_s: float) -> float | None:
        """Decode from a key frame at or before `from_s` to `time_s`. Returns the time of the key frame."""
        self._frames = self._video.frames_from(from_s)
        self._next = next(self._frames, None)
        if self._next is None or self._video.untimed:
            return None
        began_s = self._next.time_s
        self._skip_to(time_s)
        return began_s

    def _picture(self) -> tuple[float, int] | None:
        """The time and a digest of the next frame."""
        if self._next is None:
            return None
        return self._next.time_s, zlib.crc32(self._next.bgr_small(_DIGEST_LONG_SIDE).tobytes())

    def _reopen(self) -> None:
        self._video.close()
        self._video = self._opened()
        self._frames = self._video.frames()
        self._next = next(self._frames, None)

    def _opened(self) -> Video:
        source = self._source
        return Video(source.uri, threads=source.threads, hdr=source.hdr, found=source.found)

    def close(self) -> None:
        self._video.close()


def output_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """(width, height) in pixels: the displayed size, reduced to `max_side`. Both are even for 4:2:0."""
    scale = min(1.0, max_side / max(width, height)) if max_side else 1.0
    return max(2, round(width * scale) // 2 * 2), max(2, round(height * scale) // 2 * 2)


def _encoded(wanted: Wanted, frames: Iterator[Frame], settings: Cut) -> Message:
    fps = (settings.fps or wanted.fps) if wanted.fps else None
    buffer = io.BytesIO()
    writer: _Writer | None = None
    seen = 0
    count = 1 if fps is None else stored_frames(wanted.end_s - wanted.start_s, fps)
    last: Frame | None = None
    try:
        for frame in frames:
            seen += 1
            if writer is None:
                writer = _Writer(buffer, frame.info, frame, fps or _IMAGE_RATE, settings)
            if last is not None and fps is not None:
                writer.put(last, shown_before(frame.time_s, wanted.start_s, fps), count)
            last = frame
        if writer is None or last is None or (wanted.fps is not None and seen != wanted.frames):
            message = f"{seen} frames where measuring saw {wanted.frames}: the file has changed"
            raise SourceFailed("cut", "MissingFrames", message)
        writer.put(last, count, count)
        writer.close()
    except av.error.FFmpegError as error:
        raise SourceFailed("cut", type(error).__name__, error.strerror or str(error)) from error
    data = index_first(buffer.getvalue())
    _check(data, writer.width, writer.height, count)
    head = {
        "kind": "clip",
        "clip_id": wanted.clip_id,
        "width": writer.width,
        "height": writer.height,
        "fps": fps,
        "frames": count,
        "duration_s": 0.0 if fps is None else count / fps,
    }
    return Message(head, [data])


class _Writer:
    """One mp4. Repeats or drops source frames so that the rate is constant."""

    def __init__(self, buffer: io.BytesIO, info: VideoInfo, first: Frame, fps: float, settings: Cut):
        self.width, self.height = output_size(info.width, info.height, settings.max_side)
        self._rotation, self._mirrored = info.rotation, info.mirrored
        self._rate = Fraction(fps).limit_denominator(1_001_000)
        self._written = 0
        self._out = av.open(buffer, "w", "mp4")
        stream = self._out.add_stream("libx264", rate=self._rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        stream.time_base = 1 / self._rate
        context = stream.codec_context
        # With one thread every machine gives the same bytes. Keyframes at scene cuts would break the regular
        # distance of keyframes. Macroblock trees read memory outside a picture whose sides are not multiples
        # of 16: without `mbtree=0` up to half of the encodes of one clip give other bytes.
        context.thread_count = 1
        context.options = {
            "crf": str(settings.crf),
            "preset": settings.preset,
            "g": str(settings.gop_frames),
            "keyint_min": str(settings.gop_frames),
            "sc_threshold": "0",
            "x264-params": "open-gop=0:mbtree=0",
        }
        context.color_range = ColorRange.MPEG
        if info.hdr:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
        elif first.av.format.is_rgb:
            context.colorspace, context.color_primaries, context.color_trc = _SMPTE170M, _BT709, _SRGB
        else:
            context.colorspace = first.av.colorspace
            context.color_primaries = first.av.color_primaries
            context.color_trc = first.av.color_trc
        self._stream = stream

    def put(self, frame: Frame, upto: int, count: int) -> None:
        """Write `frame` again and again until `upto` frames, or at most `count` frames, are written."""
        upto = min(upto, count)
        if upto <= self._written:
            return
        picture = self._picture(frame)
        while self._written < upto:
            picture.pts = self._written
            picture.time_base = 1 / self._rate
            picture.pict_type = 0  # the encoder chooses the type of the frame; the source's type is ignored
            self._out.mux(self._stream.encode(picture))
            self._written += 1

    def _picture(self, of: Frame) -> av.VideoFrame:
        turned = self._rotation % 180
        width, height = (self.height, self.width) if turned else (self.width, self.height)
        frame = of.av
        same_size = frame.width == width and frame.height == height
        full = frame.format.name.startswith("yuvj") or int(frame.color_range) == ColorRange.JPEG
        if of.info.hdr:
            picture = av.VideoFrame.from_ndarray(of.sdr(width, height), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=_BT709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
        elif same_size and frame.format.name == "yuv420p" and not full:
            picture = frame
        else:
            picture = frame.reformat(
                width,
                height,
                "yuv420p",
                interpolation="AREA" if width < frame.width else "BICUBIC",
                src_color_range=ColorRange.JPEG if full or frame.format.is_rgb else ColorRange.MPEG,
                dst_color_range=ColorRange.MPEG,
            )
        if self._rotation or self._mirrored:
            picture = _turned(picture, self._rotation, mirrored=self._mirrored)
        return picture

    def close(self) -> None:
        self._out.mux(self._stream.encode(None))
        self._out.close()


def _turned(picture: av.VideoFrame, rotation: int, *, mirrored: bool) -> av.VideoFrame:
    """The yuv420p picture as it is displayed (`pixels.display`)."""
    width, height = picture.width, picture.height
    data = picture.to_ndarray()
    chroma = data[height:].reshape(2, height // 2, width // 2)
    planes = [upright(p, rotation, mirrored=mirrored) for p in (data[:height], chroma[0], chroma[1])]
    new_width = planes[0].shape[1]
    flat = np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in planes]).reshape(-1, new_width)
    return av.VideoFrame.from_ndarray(flat, format="yuv420p")


def _check(data: bytes, width: int, height: int, frames: int) -> None:
    """Decode the clip again. Raises `SourceFailed` if the size or the number of frames is wrong."""
    with cast(InputContainer, av.open(io.BytesIO(data))) as container:
        found = 0
        for frame in container.decode(video=0):
            found += 1
            if (frame.width, frame.height) != (width, height):
                message = f"read back as {frame.width}x{frame.height}, not {width}x{height}"
                raise SourceFailed("cut", "BadEncode", message)
    if found != frames:
        raise SourceFailed("cut", "BadEncode", f"read back {found} frames, not {frames}")
