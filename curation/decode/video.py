"""Opening and decoding one source: its geometry, and its frames with their times.

Everything here parses foreign bytes, so it runs only in the decoding child (`curation.decode.__main__`),
never in a Ray worker or in the driver. The decoders get bytes, no name: they can open nothing else.
Times are presentation timestamps of the first video stream in seconds.
"""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from curation.config.hdr import HdrMode
from curation.decode.container import clock
from curation.decode.image_file import MOST_PIXELS, ImageFile, Shown, check_gif, holds_picture
from curation.decode.image_file import NoVideo as NoVideo  # noqa: PLC0414 - others import it from here
from curation.decode.pixels.display import display_of
from curation.decode.pixels.fields import Found
from curation.decode.pixels.frame import Frame, VideoInfo
from curation.decode.pixels.hdr import transfer_of
from curation.decode.pixels.mend import deinterlaced, filmed, matched
from curation.store.address import open_source
from curation.store.schema import MAX_SECONDS

# Only demuxers that read the one given file: no playlists, concatenation scripts, devices or network. Of
# these mov alone can refer to other files, which is off unless asked for, and no protocol is allowed.
_FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,apng,ogg,mxf,h264,hevc,av1,obu,ivf,m4v,"
    "rm,dv,nut,vc1,mjpeg,wtv,yuv4mpegpipe"
)
_LIMIT = {"max_pixels": str(MOST_PIXELS)}  # seen by FFmpeg before it makes room for a picture
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # WebM has alpha beside the frames
_MAX_CONSECUTIVE_ERRORS = 200  # packets; a stream that is broken for longer is given up
# Before a wanted frame: some containers index key frames by decoding time, MPEG-TS has no index at all.
_SEEK_EARLY_SECONDS = (0.5, 3, 12, 40)


class _Bytes:
    """An open file as FFmpeg may see it: of its name there is the suffix, by which formats are guessed."""

    def __init__(self, file: BinaryIO, uri: str):
        self._file = file
        self.name = "source" + Path(uri).suffix
        self.read = file.read
        self.tell = file.tell
        self.seekable = file.seekable

    def seek(self, offset: int, whence: int = 0) -> int:
        # A damaged index may point anywhere. FFmpeg takes an answer like this one from its own protocols
        # and tries otherwise, where an exception would end the reading.
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


class Video:
    """An opened source. Iterate `frames()`; use as a context manager.

    found: what `woven.look` found the source to be. Interlaced and telecined frames are then mended; None
    leaves all frames as they are.

    Raises `NoVideo` when there is nothing to decode, and what PyAV raises (`av.error.FFmpegError`, an
    `OSError` or `ValueError`) when the file cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        *,
        threads: int = 1,
        skip_loop_filter: bool = False,
        hdr: HdrMode = "tonemap",
        found: Found | None = None,
    ):
        self.uri = uri
        self._keeps_hdr = hdr == "keep"
        self._found = found or Found("progressive")
        self.decode_errors = 0
        self._clock = clock.Clock()
        self._shown: VideoInfo  # of the last frame: a stream may change its size
        self._sizes: list[str] = []  # its changes of size, in words
        self._may_seek: bool | None = None  # None: not known yet
        self.deltas: Counter[int] = Counter()  # of presentation times, in milliseconds
        self._container: InputContainer | None = None
        self._image: ImageFile | None = None  # instead of a container
        self._file = open_source(uri)
        try:
            if self._file.seekable():
                if self._file.seek(0, 2) == 0:
                    raise NoVideo("the file is empty")
                self._file.seek(0)
            if self._file.seekable() and holds_picture(self._file, uri):
                self._image = ImageFile(self._file, uri)
                self.info = _described(self._image)
                return
            self._container = self._opened(self._file)
            self._start(self._container, threads, skip_loop_filter=skip_loop_filter)
            if found is not None:
                fps = self.info.fps
                film = found.kind == "telecined" and fps is not None
                self.info = replace(self.info, fields=found.kind, fps=fps * 4 / 5 if film and fps else fps)
            self._shown = self.info
        except BaseException:
            self.close()
            raise

    def _opened(self, file: BinaryIO) -> InputContainer:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none", **_LIMIT}
        try:
            return av.open(_Bytes(file, self.uri), "r", options=options, metadata_errors="replace")
        except av.error.EOFError:
            raise NoVideo("the file ends within its headers") from None
        except av.error.BlockingIOError:  # see `_packets`
            raise NoVideo("the file is damaged to its end") from None
        except av.error.ArgumentError:  # FFmpeg knows a format outside the list; its message names a number
            raise NoVideo("not a video or a picture of a kind that is read") from None

    def _start(self, container: InputContainer, threads: int, *, skip_loop_filter: bool) -> None:
        """Decode the first frame."""
        self._stream = self._first_video_stream(container)
        if self._stream.codec_context is None:  # whatever PyAV's type stubs say
            raise NoVideo("the video stream has a codec that is not known")
        context = self._context = _decoder_of(self._stream)
        context.thread_count = threads
        context.thread_type = "NONE" if threads == 1 else "AUTO"
        # Frames that nothing refers to lose only their own deblocking: no drift.
        context.options = {**_LIMIT, **({"skip_loop_filter": "noref"} if skip_loop_filter else {})}
        self._decoded = self._decode(container)
        self._first = next(self._decoded, None)
        if self._first is None:
            raise NoVideo("no frame could be decoded")
        self.info = self._describe(container, self._first)
        if self._is_still(container):
            self.info = replace(
                self.info, fps=None, declared_frames=1, declared_duration_s=0.0, is_image=True
            )
        if self.info.fps:
            self._clock.step_s = 1 / Fraction(self.info.fps)

    def _first_video_stream(self, container: InputContainer) -> VideoStream:
        # The first stream, not the "best" one: every stage, and OpenCV, must mean the same frames.
        for stream in container.streams.video:
            if not _is_attached_picture(stream):
                return stream
        raise NoVideo("the file has no video stream")

    def _is_still(self, container: InputContainer) -> bool:
        """Is it a GIF of one picture?"""
        if container.format.name != "gif":
            return False
        second = next(self._decoded, None)
        if second is not None:
            self._decoded = itertools.chain([second], self._decoded)
        if second is not None or self.decode_errors:
            return False
        check_gif(self._file)
        return True

    def _describe(self, container: InputContainer, first: av.VideoFrame) -> VideoInfo:
        stream = self._stream
        rotation, mirrored = display_of(first)
        # The frame's own pixel aspect is out of PyAV's reach; the stream's covers what containers declare.
        sar = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or 1.0
        width, height = _displayed(first, sar, rotation)
        duration: float | None = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / av.time_base
        rate = stream.average_rate or stream.guessed_rate
        start_s = _time(first, 0.0)
        return VideoInfo(
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            coded_width=first.width,
            coded_height=first.height,
            rotation=rotation,
            sar=sar,
            fps=float(rate) if rate else None,
            declared_frames=stream.frames,
            declared_duration_s=duration,
            start_s=start_s,
            file_start_s=_file_start(container, start_s),
            mirrored=mirrored,
            transfer=transfer_of(first),
            keeps_hdr=self._keeps_hdr,
        )

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
        idle = 0
        while True:
            try:
                for packet in container.demux(stream):
                    idle = 0
                    yield packet
                return
            except av.error.BlockingIOError:
                # Not that the file would block: a demuxer that found only damage wants to be called again.
                self.decode_errors += 1
                idle += 1
                if idle > _MAX_CONSECUTIVE_ERRORS:
                    raise NoVideo("the file is damaged to its end") from None

    def _decode(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        """Frames in order of presentation; broken packets are counted and stepped over."""
        consecutive = 0
        for packet in self._packets(container, self._stream):
            self._clock.packet(packet)
            try:
                frames = self._context.decode(packet)
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.decode_errors += 1
                self._clock.lost(packet)
                consecutive += 1
                if consecutive > _MAX_CONSECUTIVE_ERRORS:
                    raise
                continue
            if frames:
                consecutive = 0
            yield from frames

    def frames(self) -> Iterator[Frame]:
        """Frames in order of presentation, with strictly increasing times."""
        if self._image is not None:
            yield from self._pictures(self._image)
            return
        assert self._first is not None
        first, self._first = self._first, None
        shown = self._timed(itertools.chain([first], self._decoded))
        if self._found.kind == "interlaced":
            mended = matched if self._found.matched else deinterlaced
            shown = mended(shown, self._found.first)
        elif self._found.kind == "telecined":
            shown = filmed(shown, self._found.first)
        last: float | None = None
        for frame in shown:
            if last is not None:
                self.deltas[round((frame.time_s - last) * 1000)] += 1
            last = frame.time_s
            yield frame

    def _timed(self, decoded: Iterator[av.VideoFrame]) -> Iterator[Frame]:
        for moment in self._clock.moments(decoded, self._reorders):
            begins = self._note_size(moment.frame, moment.time_s) or moment.starts_again
            duration_s = _duration(moment.frame)
            yield Frame(moment.time_s, duration_s, moment.frame, self._shown, begins, moment.doubtful)

    def glimpse(self, time_s: float | None) -> Iterator[av.VideoFrame]:
        """Decoded frames from some key frame about `time_s` on. None: from the first frame on. None come
        where the container leads nowhere. The frames of `frames()` are lost by it."""
        if self._container is None:
            return iter(())
        if time_s is not None:
            self._seek(self._container, time_s)
        first, self._first = self._first, None
        return itertools.chain([first], self._decoded) if first is not None else iter(())

    def _pictures(self, image: ImageFile) -> Iterator[Frame]:
        last: Shown | None = None
        for shown in image.shown():
            if last is not None:
                self.deltas[round((shown.time_s - last.time_s) * 1000)] += 1
            last = shown
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown.rgb), format="rgb24")
            frame.pts, frame.time_base = round(shown.time_s * av.time_base), Fraction(1, av.time_base)
            yield Frame(
                float(shown.time_s),
                None if shown.duration_s is None else float(shown.duration_s),
                frame,
                self.info,
            )
        self.decode_errors += image.damaged

    def _reorders(self) -> bool:
        return bool(self._context.has_b_frames)

    def _note_size(self, frame: av.VideoFrame, time_s: float) -> bool:
        """Does the stream take another size with this frame? Then `_shown` becomes that of the frame."""
        before = self._shown
        if (frame.width, frame.height) == (before.coded_width, before.coded_height):
            return False
        # The decoder knows the pixel aspect of the new size; what a container declares is of the first one.
        sar = float(self._context.sample_aspect_ratio or 0) or self.info.sar
        width, height = _displayed(frame, sar, self.info.rotation)
        self._shown = replace(
            self.info, width=width, height=height, coded_width=frame.width, coded_height=frame.height, sar=sar
        )
        self._sizes.append(f"from {before.width}x{before.height} to {width}x{height} at {time_s:.3f} s")
        return True

    def frames_from(self, time_s: float) -> Iterator[Frame]:
        """Frames from a key frame at or before `time_s` on, as far as the container leads to one. Call it in
        order of time on one object. None come where nothing leads there.

        A container's index may also list recovery points: there the picture is only whole some frames
        later, and some decoders show it before that. The decoder knows which frame is a true key frame."""
        if time_s > self.info.start_s:
            if self._container is None or not self.may_seek():
                self._first = None
                return
            for early_s in _SEEK_EARLY_SECONDS:
                self._seek(self._container, time_s - early_s)
                if self._first is not None and _time(self._first, time_s) <= time_s + 1e-6:
                    break
            if self._first is None:
                return
        yield from self.frames()

    def may_seek(self) -> bool:
        """Does each time lead to one place? Not where times are counted, or the timestamps start again.
        Frames that are mended depend on those before."""
        if self._clock.needs_order or self._container is None or self._found.kind != "progressive":
            return False
        if self._may_seek is None:
            self._may_seek = not self._starts_again()
        return self._may_seek

    def _starts_again(self) -> bool:
        assert self._container is not None
        if not clock.lacks_index(self._container):
            return False
        errors = self.decode_errors
        try:
            with open_source(self.uri) as file, self._opened(file) as container:
                stream = self._first_video_stream(container)
                return clock.start_again(self._packets(container, stream))
        except (av.error.FFmpegError, NoVideo):  # damage: what is behind it cannot be looked at
            return True
        finally:
            self.decode_errors = errors

    def _seek(self, container: InputContainer, time_s: float) -> None:
        assert self._stream.time_base is not None
        try:
            container.seek(int(time_s / self._stream.time_base), stream=self._stream, backward=True)
        except av.error.FFmpegError:  # damage lies between; an earlier place may be found
            self._first = None
            return
        self._context.flush_buffers()
        self._clock.restart()
        self._decoded = self._decode(container)
        errors = self.decode_errors
        first = next(self._decoded, None)
        self._first = first if first is not None and first.key_frame else None
        self.decode_errors = errors  # what comes before a key frame is not damaged

    @property
    def untimed(self) -> bool:
        """Do times depend on the frames before? They cannot be found again after a seek."""
        return self._clock.needs_order

    def notes(self) -> str | None:
        """What was left out so far, in words."""
        notes = []
        if self.decode_errors:
            notes.append(f"{self.decode_errors} broken packets were stepped over")
        if self._sizes:
            more = f" and {len(self._sizes) - 3} times more" if len(self._sizes) > 3 else ""
            notes.append(f"the size changes {', '.join(self._sizes[:3])}{more}")
        notes += self._clock.notes()
        return "; ".join(notes) or None

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._image is not None:
            self._image.close()
        self._file.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.close()
        return False


def _displayed(frame: av.VideoFrame, sar: float, rotation: int) -> tuple[int, int]:
    """(width, height) in pixels, with square pixels and turned. No side gets fewer pixels than are stored."""
    width, height = frame.width, frame.height
    if sar > 1:
        width = round(width * sar)
    elif sar < 1:
        height = round(height / sar)
    return (height, width) if rotation % 180 else (width, height)


def _described(image: ImageFile) -> VideoInfo:
    height, width = image.first.rgb.shape[:2]
    # The durations of the other pictures are not known before they are decoded.
    declared_s = float(image.count * (image.first.duration_s or 0))
    return VideoInfo(
        container=image.kind,
        codec=image.kind,
        width=width,
        height=height,
        coded_width=width,
        coded_height=height,
        rotation=0,
        sar=1.0,
        fps=None,
        declared_frames=image.count,
        declared_duration_s=declared_s,
        start_s=0.0,
        is_image=image.is_still,
    )


def _decoder_of(stream: VideoStream) -> VideoCodecContext:
    """The stream's own decoder, or libvpx where the stream has alpha, which only libvpx decodes."""
    own = stream.codec_context
    name = _WITH_ALPHA.get(own.name) if stream.metadata.get("alpha_mode") == "1" else None
    if name is None or name not in av.codecs_available:
        return own
    decoder = cast(VideoCodecContext, av.CodecContext.create(name, "r"))
    decoder.extradata = own.extradata
    return decoder


def _is_attached_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _file_start(container: InputContainer, first_s: float) -> float:
    """The earliest time of all streams, in seconds; `first_s` where the container knows of none."""
    if container.start_time is None:
        return first_s
    start_s = container.start_time / av.time_base
    return start_s if abs(start_s) <= MAX_SECONDS else first_s


def _time(frame: av.VideoFrame, fallback: float) -> float:
    """Presentation time in seconds; exact to a float of the stream's rational timestamp."""
    pts = frame.pts if frame.pts is not None else frame.dts
    return fallback if pts is None or frame.time_base is None else float(pts * Fraction(frame.time_base))


def _duration(frame: av.VideoFrame) -> float | None:
    if not frame.duration or frame.time_base is None:
        return None
    return float(frame.duration * Fraction(frame.time_base))
