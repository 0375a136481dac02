"""One decoded frame and what its source is: pictures of any size, as displayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import av
import cv2
import numpy as np

from curation.decode.pixels.alpha import opaque
from curation.decode.pixels.display import upright
from curation.decode.pixels.fields import Kind
from curation.decode.pixels.hdr import HDR, Transfer, luma_709, to_sdr
from curation.decode.pixels.levels import CHROMA_TO_FULL, LUMA_TO_FULL

SAMPLED_LONG_SIDE = 256  # pixels


@dataclass(frozen=True)
class VideoInfo:
    """What the headers and the first frame say. That of a later frame has the size of that frame.

    `width` and `height` are as displayed, in pixels.
    """

    container: str
    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int  # degrees that the picture is turned clockwise for display: 0, 90, 180 or 270
    sar: float  # pixel aspect: width of a pixel over its height
    fps: float | None  # as declared
    declared_frames: int
    declared_duration_s: float | None
    start_s: float
    is_image: bool = False
    # Where players begin to count: the earliest time of all streams, as a presentation time.
    file_start_s: float = 0.0
    mirrored: bool = False  # left and right are exchanged, before the picture is turned
    transfer: str | None = None  # as ffmpeg calls it; None: the stream does not say
    keeps_hdr: bool = False  # HDR pictures keep their levels
    fields: Kind | None = None  # what its frames were found to be (`woven.look`); None: nobody looked

    @property
    def hdr(self) -> Transfer | None:
        """The HDR transfer from which pictures are tone-mapped to BT.709. None: they keep their levels."""
        return None if self.keeps_hdr else HDR.get(self.transfer or "")


@dataclass
class Frame:
    """One decoded frame and its presentation time. Pictures made from it are as displayed."""

    time_s: float
    duration_s: float | None
    av: av.VideoFrame
    info: VideoInfo
    begins: bool = False  # another size, or a joined recording: no scene goes on over it
    doubtful: int = 0  # frames, from behind the last one to this one, whose times are not known

    def __post_init__(self) -> None:
        self.av = opaque(self.av)

    def gray(self, width: int, height: int, *, area: bool = True) -> np.ndarray:
        """Luma in full range, (height, width) uint8; `area` averages pixels, else it samples them."""
        if self.info.hdr:
            return luma_709(self.rgb(width, height))
        plane, full = _luma(self.av)
        w, h = (height, width) if self.info.rotation % 180 else (width, height)
        shrinks = w < plane.shape[1] or h < plane.shape[0]
        small = cv2.resize(
            plane, (w, h), interpolation=cv2.INTER_AREA if area and shrinks else cv2.INTER_LINEAR
        )
        return self._upright(small if full else cv2.LUT(small, LUMA_TO_FULL))

    def rgb(self, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB."""
        w, h = (height, width) if self.info.rotation % 180 else (width, height)
        if self.info.hdr:
            return self._upright(self.sdr(w, h))
        if 2 * max(w, h) <= SAMPLED_LONG_SIDE:
            # Far smaller than the frame: averaging over sampled pixels is a tenth of the cost.
            bgr = cv2.resize(self.bgr_small(SAMPLED_LONG_SIDE), (w, h), interpolation=cv2.INTER_AREA)
            return self._upright(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        small = self.av.reformat(w, h, "rgb24", interpolation="AREA" if w < self.av.width else "BICUBIC")
        return self._upright(small.to_ndarray())

    def sdr(self, width: int, height: int) -> np.ndarray:
        """(height, width, 3) uint8 RGB of an HDR frame as coded (not turned), tone-mapped to BT.709."""
        assert self.info.hdr is not None
        # Pixels are averaged before they are mapped, because mapping costs more.
        how = "AREA" if width < self.av.width else "BICUBIC"
        signal = self.av.reformat(width, height, "rgb48le", interpolation=how).to_ndarray()
        return to_sdr(signal, self.info.hdr)

    def planes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Luma and both chroma planes as coded (not turned), each (H, W) uint8 of its own size."""
        if self.info.hdr:
            bgr = self.bgr_small(SAMPLED_LONG_SIDE)
            y, red, blue = cv2.split(cv2.cvtColor(bgr, cv2.COLOR_BGR2YCrCb))
            return y, blue, red
        frame = self.av if self.av.format.name in _PLANAR_YUV else self.av.reformat(format="yuv420p")
        return _plane(frame, 0), _plane(frame, 1), _plane(frame, 2)

    @property
    def full_range(self) -> bool:
        """Do the levels of `planes` go from 0 to 255?"""
        return self.info.hdr is not None or _is_full_range(self.av)

    def _upright(self, image: np.ndarray) -> np.ndarray:
        return upright(image, self.info.rotation, mirrored=self.info.mirrored)

    def jpeg(self, width: int, height: int, quality: int) -> bytes:
        ok, data = cv2.imencode(
            ".jpg", self.rgb(width, height)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        assert ok
        return data.tobytes()

    def bgr_full(self) -> np.ndarray:
        """The frame as coded, (H, W, 3) BGR: what PySceneDetect's own PyAV backend hands to a detector."""
        if self.info.hdr:
            return np.ascontiguousarray(self.sdr(self.av.width, self.av.height)[..., ::-1])
        return self.av.to_ndarray(format="bgr24")

    def bgr_small(self, long_side: int) -> np.ndarray:
        """A small BGR picture as coded (not turned), by sampling the planes: cheap, for shot detection."""
        scale = min(1.0, long_side / max(self.av.width, self.av.height))
        size = (max(1, round(self.av.width * scale)), max(1, round(self.av.height * scale)))
        if self.info.hdr:
            return np.ascontiguousarray(self.sdr(*size)[..., ::-1])
        frame = self.av if self.av.format.name in _PLANAR_YUV else self.av.reformat(format="yuv420p")
        y, cb, cr = (cv2.resize(_plane(frame, i), size, interpolation=cv2.INTER_LINEAR) for i in range(3))
        if not _is_full_range(frame):
            y, cb, cr = cv2.LUT(y, LUMA_TO_FULL), cv2.LUT(cb, CHROMA_TO_FULL), cv2.LUT(cr, CHROMA_TO_FULL)
        return cv2.cvtColor(cv2.merge([y, cr, cb]), cv2.COLOR_YCrCb2BGR)


_PLANAR_YUV = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    """A view of one 8-bit plane, (H, W) uint8, without a copy."""
    plane = frame.planes[index]
    # PyAV planes support the buffer protocol, which its type stubs do not say.
    data = np.frombuffer(cast(Any, plane), np.uint8)
    return data.reshape(plane.height, plane.line_size)[:, : plane.width]


def _is_full_range(frame: av.VideoFrame) -> bool:
    return frame.format.name.startswith("yuvj") or int(frame.color_range) == 2  # 2: AVCOL_RANGE_JPEG


def _luma(frame: av.VideoFrame) -> tuple[np.ndarray, bool]:
    """The luma plane and whether it has full range."""
    name = frame.format.name
    if name in _PLANAR_YUV or name == "nv12":
        return _plane(frame, 0), _is_full_range(frame)
    if name == "gray":
        return _plane(frame, 0), True
    return _plane(frame.reformat(format="yuv420p"), 0), _is_full_range(frame)
