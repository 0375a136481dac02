"""Frames are written to mp4 files, and read from any video file, with PyAV.

Frames are uint8 RGB (n, H, W, 3), as a player displays them.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from av.video.stream import VideoStream
from torch import Tensor

_BT709 = 1  # AVCOL_SPC_BT709
_SEEK_GAP_SECONDS = 5.0  # a nearer start is reached by decoding, without a seek
_ASSUMED_RATE = 25.0  # frames per second of files that declare no rate
_MOST_PICTURE = 1 << 26  # pixels of one picture, which is 8192 x 8192
_MOST_PIXELS = 1 << 30  # of all frames: 3 GB as RGB, which is 257 frames of 2560 x 1600
# Only demuxers that read the given file alone: no playlists, no concatenation scripts, no devices. The list
# is that of curation.decode.video, which is not imported here, with the demuxers of single pictures.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,apng,ogg,mxf,h264,hevc,av1,obu,ivf,m4v,"
    "rm,dv,nut,vc1,mjpeg,wtv,yuv4mpegpipe,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)


def to_uint8(video: Tensor) -> np.ndarray:
    """Convert float (…, 3, n, H, W) in [-1, 1] to uint8 (…, n, H, W, 3).

    Values are rounded to the nearest level and clamped. Raises `ValueError` when a value is not finite.
    """
    if not bool(torch.isfinite(video).all()):
        bad = (~torch.isfinite(video)).transpose(-4, -3).flatten(-3).any(-1)
        frames = bad.reshape(-1, bad.shape[-1]).any(0).nonzero().flatten().tolist()
        raise ValueError(
            f"the video has values that are not finite (NaN or infinite), first in frame {frames[0]}"
        )
    levels = ((video.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-4, -1).contiguous().cpu().numpy()


def from_uint8(frames: np.ndarray) -> Tensor:
    """Convert uint8 (…, n, H, W, 3) to float32 (…, 3, n, H, W) in [-1, 1]. `to_uint8` undoes it."""
    assert frames.dtype == np.uint8, f"frames are uint8, not {frames.dtype}"
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4))).float() / 127.5 - 1


# ---------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------


def write_mp4(path: str | Path, pieces: Iterable[np.ndarray], fps: float, crf: int = 16) -> Path:
    """Encode pieces of video, each uint8 (n, H, W, 3), to an H.264 mp4 (yuv420p, BT.709), piece by piece.

    The file appears whole or not at all: it is written as `_NAME` and renamed at the end. Raises `ValueError`
    for odd or changing sizes, for no frames, and for a frame rate that is not positive and finite. An error
    that `pieces` raises is not changed.
    """
    path = Path(path)
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: {fps} is not a frame rate; give frames per second, such as 8")
    aside = path.with_name(f"_{path.name}")
    try:
        # The index comes first, so that players can start before they have read the whole file.
        with av.open(str(aside), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            _encode(container, pieces, fps, crf, path)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _encode(
    container: OutputContainer, pieces: Iterable[np.ndarray], fps: float, crf: int, path: Path
) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    stream: VideoStream | None = None
    count = 0
    for piece in pieces:
        assert piece.dtype == np.uint8, f"a piece is uint8, not {piece.dtype}"
        assert piece.ndim == 4, f"a piece is (n, H, W, 3), not {piece.shape}"
        height, width = piece.shape[1:3]
        if stream is None:
            if height % 2 or width % 2:
                raise ValueError(
                    f"{path}: {width}x{height} is odd, and H.264 in 4:2:0 needs even sides; "
                    f"take {width + width % 2}x{height + height % 2}"
                )
            stream = _add_stream(container, rate, width, height, crf)
        if (stream.width, stream.height) != (width, height):
            old = f"{stream.width}x{stream.height}"
            raise ValueError(f"{path}: the size changes from {old} to {width}x{height} at frame {count}")
        for image in piece:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            )
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
    if stream is None or count == 0:
        raise ValueError(f"{path}: there is no frame to write")
    container.mux(stream.encode(None))


def _add_stream(container: OutputContainer, rate: Fraction, width: int, height: int, crf: int) -> VideoStream:
    # Without mbtree=0, equal frames sometimes give different bytes when a side is not a multiple of 16.
    options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / rate
    # Without these tags players guess: BT.709 for large pictures, BT.601 for small ones.
    context.color_range = ColorRange.MPEG
    context.colorspace = _BT709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    return stream


def write_grid(
    path: str | Path, videos: Sequence[np.ndarray], fps: float, columns: int | None = None
) -> Path:
    """Write one mp4 that shows several clips of one size, uint8 (T, H, W, 3), in a grid, row by row.

    columns: without this number there are about as many columns as rows. A shorter clip stays on its last
    frame. Empty places are black. Raises `ValueError` when there is no clip or the sizes differ.
    """
    sizes = {v.shape[1:3] for v in videos}
    if len(sizes) != 1:
        listed = ", ".join(f"{w}x{h}" for h, w in sorted(sizes)) or "none"
        raise ValueError(f"{path}: a grid takes clips of one size, not {listed}")
    columns = columns or math.ceil(math.sqrt(len(videos)))
    return write_mp4(path, _mosaic(videos, columns), fps)


def _mosaic(videos: Sequence[np.ndarray], columns: int) -> Iterator[np.ndarray]:
    height, width = videos[0].shape[1:3]
    rows = math.ceil(len(videos) / columns)
    for k in range(max(len(v) for v in videos)):
        canvas = np.zeros((1, rows * height, columns * width, 3), np.uint8)
        for place, video in enumerate(videos):
            y, x = place // columns * height, place % columns * width
            canvas[0, y : y + height, x : x + width] = video[min(k, len(video) - 1)]
        yield canvas


# ---------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """Frames, and their rate in frames per second."""

    frames: np.ndarray  # uint8 (T, H, W, 3)
    fps: float


def read_video(
    path: str | Path, fps: float | None = None, start_s: float = 0.0, frames: int | None = None
) -> Video:
    """Read the first video stream of a file as a player displays it: rotated, and with square pixels.

    Frame k is the frame that a player shows `start_s` + k / fps seconds after the stream's first frame. The
    presentation times decide, so a variable frame rate is read correctly. A picture is a video of one frame.

    fps: None means the file's average rate. frames: the largest number of frames; the file may have fewer.
    Raises `ValueError` that names the file when the file is missing, broken, too short or too large, or when
    the file has no video stream or no frame.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: {'this is a folder, not a video file' if path.is_dir() else 'there is no such file'}"
        )
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: {fps} is not a frame rate; give frames per second, such as 8")
    if not (math.isfinite(start_s) and start_s >= 0):
        raise ValueError(f"{path}: the start is {start_s} s; give 0 or more seconds")
    if frames is not None and frames < 1:
        raise ValueError(f"{path}: {frames} frames were asked for; give 1 or more")
    source = None
    try:
        source = _Source(path)
        rate = fps or source.rate
        source.check_size(rate, start_s, frames)
        chosen = source.sampled(rate, start_s, frames)
    except av.error.FFmpegError as error:
        why = error.strerror or error
        if error.errno in (errno.EINVAL, errno.ERANGE):  # of the list of demuxers, and of `max_pixels`
            why = (
                f"{why}; it may be a playlist, which is not read, or have more than "
                f"{_MOST_PICTURE / 1e6:.0f} million pixels in a picture"
            )
        raise ValueError(f"{path} cannot be read as a video ({why})") from error
    finally:
        if source is not None:
            source.close()
    return Video(np.stack(chosen), rate)


class _Bytes:
    """An open file as FFmpeg may see it."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int = 0) -> int:
        # A damaged index may point anywhere: FFmpeg takes an answer like this one from its own protocols.
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


class _Source:
    """An opened file and its first frame. Times are seconds after the first frame."""

    def __init__(self, path: Path):
        self._path = path
        self._file = path.open("rb")
        try:
            self._container = self._open()
        except BaseException:
            self._file.close()
            raise
        try:
            self._stream = self._video_stream()
            self._decoded = self._container.decode(self._stream)
            first = next(self._decoded, None)
            if first is None:
                raise ValueError(f"{path}: the video stream has no frame")
            self._first = first
            self._zero = first.time or 0.0
            rate = self._stream.average_rate or self._stream.guessed_rate
            self.rate = float(rate) if rate else _ASSUMED_RATE
        except BaseException:
            self.close()
            raise

    def _open(self) -> InputContainer:
        # FFmpeg gets bytes and no name, and may use no protocol: it can open nothing else.
        self._file.seek(0)
        source = _Bytes(self._file)
        options = {
            "format_whitelist": _FORMATS,
            "protocol_whitelist": "none",
            "max_pixels": str(_MOST_PICTURE),
        }
        return av.open(source, "r", options=options, metadata_errors="replace")

    def check_size(self, rate: float, start_s: float, limit: int | None) -> None:
        """Before anything is decoded to be kept, as far as the file declares its length."""
        stream, declared = self._stream, math.inf
        if stream.duration and stream.time_base:
            declared = max(1.0, (float(stream.duration * stream.time_base) - start_s) * rate)
        if declared < math.inf:
            self._check(min(limit or declared, declared) * self._first.width * self._first.height)

    def _check(self, pixels: float) -> None:
        if pixels > _MOST_PIXELS:
            raise ValueError(
                f"{self._path}: its frames of {self._first.width}x{self._first.height} have more than "
                f"{_MOST_PIXELS / 1e6:.0f} million pixels together; ask for fewer frames or smaller ones"
            )

    def _video_stream(self) -> VideoStream:
        for stream in self._container.streams.video:
            cover = bool(stream.disposition & type(stream.disposition).attached_pic)
            if not cover and stream.codec_context is not None:
                stream.thread_type = "AUTO"
                stream.codec_context.options = {"max_pixels": str(_MOST_PICTURE)}
                return stream
        raise ValueError(f"{self._path}: the file has no video stream that can be decoded")

    def sampled(self, rate: float, start_s: float, limit: int | None) -> list[np.ndarray]:
        """RGB pictures, uint8 (H, W, 3), at the times `start_s` + k / rate; at most `limit`."""
        # Files store rounded times, in Matroska to a millisecond: a frame may come a little late for its
        # moment.
        tolerance = 0.25 / max(rate, self.rate)
        chosen: list[np.ndarray] = []
        shown: av.VideoFrame | None = None
        end = 0.0

        def moment() -> float:
            return start_s + len(chosen) / rate

        def show(until: float) -> None:
            picture: np.ndarray | None = None
            while shown is not None and moment() < until and (limit is None or len(chosen) < limit):
                picture = self._picture(shown) if picture is None else picture
                self._check((len(chosen) + 1) * picture.shape[0] * picture.shape[1])
                chosen.append(picture)

        for time, frame in self._frames(start_s):
            show(until=time - tolerance)
            if limit is not None and len(chosen) >= limit:
                return chosen
            shown = frame
            end = time + self._duration(frame)
        show(until=end - tolerance)
        if not chosen:
            raise ValueError(
                f"{self._path}: the video ends after {end:.3f} s, so it has no frame at {start_s} s"
            )
        return chosen

    def _frames(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames and their times, which rise. The first frame is at or before `start_s`."""
        first = self._seek(start_s) if start_s > _SEEK_GAP_SECONDS else self._first
        time, last = 0.0, -math.inf
        for frame in chain([first], self._decoded):
            time = frame.time - self._zero if frame.time is not None else time
            if time > last:  # a frame with a repeated or earlier time is skipped
                yield time, frame
                last = time
            time += self._duration(frame)  # for a next frame that has no time

    def _seek(self, start_s: float) -> av.VideoFrame:
        """A frame at or before `start_s`. Decoding continues with the frames after it."""
        assert self._stream.time_base is not None
        target = self._zero + start_s
        try:
            # The target is half a second early, as some containers index key frames by decoding time.
            ticks = int((target - 0.5) / self._stream.time_base)
            self._container.seek(ticks, stream=self._stream, backward=True)
            self._decoded = self._container.decode(self._stream)
            first = next(self._decoded, None)
            if first is not None and first.time is not None and first.time <= target:
                return first
        except av.error.FFmpegError:
            pass  # without a usable index, decoding starts from the beginning
        self._container.close()
        self._container = self._open()
        self._stream = self._video_stream()
        self._decoded = self._container.decode(self._stream)
        return next(self._decoded, None) or self._first

    def _duration(self, frame: av.VideoFrame) -> float:
        if frame.duration and frame.time_base:
            return float(frame.duration * frame.time_base)
        return 1 / self.rate

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """An upright picture with square pixels, uint8 RGB (H, W, 3). The first frame decides the size."""
        aspect = self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio or 1
        width, height = self._first.width, self._first.height
        if aspect > 1:
            width = round(width * aspect)
        elif 0 < aspect < 1:
            height = round(height / aspect)
        rgb = frame.reformat(
            width, height, "rgb24", interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND
        ).to_ndarray()
        # `rotation` is in degrees counter-clockwise, and `rot90` turns counter-clockwise as well.
        return np.ascontiguousarray(np.rot90(rgb, round(self._first.rotation / 90) % 4))

    def close(self) -> None:
        self._container.close()
        self._file.close()
