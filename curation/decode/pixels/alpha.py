"""What is transparent in a decoded frame: a white ground shows there."""

from __future__ import annotations

import av
import cv2
import numpy as np

GROUND = (255, 255, 255)  # white, as on most pages; in YCbCr it is written out below
_NOT_YCBCR = ("ya", "pal8")  # beside the formats of RGB


def opaque(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with the ground where it is transparent. A frame that is opaque everywhere is returned as it
    is. The colours that a file hides where it is transparent are not meant to be seen.

    Alpha is taken to be straight: colours are not multiplied with it.
    """
    if not _has_alpha(frame):
        return frame
    if frame.format.is_rgb or frame.format.name.startswith(_NOT_YCBCR):
        return _opaque_rgb(frame)
    planar = frame if frame.format.name.startswith("yuva") else frame.reformat(format="yuva444p")
    return _opaque_ycbcr(frame, planar)


def _has_alpha(frame: av.VideoFrame) -> bool:
    name = frame.format.name
    return name == "pal8" or any(c.is_alpha for c in frame.format.components)


def _opaque_rgb(frame: av.VideoFrame) -> av.VideoFrame:
    rgba = frame.to_ndarray(format="rgba")
    alpha = rgba[..., 3:].astype(np.uint32)
    if alpha.min() == 255:
        return frame
    seen = _over(rgba[..., :3], alpha, np.array(GROUND, np.uint32), 255)
    found = av.VideoFrame.from_ndarray(seen.astype(np.uint8), format="rgb24")
    found.pts, found.time_base = frame.pts, frame.time_base
    return found


def _opaque_ycbcr(frame: av.VideoFrame, planar: av.VideoFrame) -> av.VideoFrame:
    bits = planar.format.components[3].bits
    most = (1 << bits) - 1
    alpha = _samples(planar, 3)
    if alpha.min() == most:
        return frame
    white = most if int(frame.color_range) == 2 else 235 << (bits - 8)  # 2: AVCOL_RANGE_JPEG
    found = av.VideoFrame(planar.width, planar.height, planar.format.name.replace("yuva", "yuv", 1))
    for index, ground in enumerate((white, 1 << (bits - 1), 1 << (bits - 1))):
        samples = _samples(planar, index)
        size = samples.shape[::-1]
        of_plane = (
            alpha if alpha.shape == samples.shape else cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
        )
        _fill(found, index, _over(samples, of_plane.astype(np.uint32), np.uint32(ground), most))
    found.pts, found.time_base = frame.pts, frame.time_base
    found.colorspace, found.color_range = frame.colorspace, frame.color_range
    found.color_primaries, found.color_trc = frame.color_primaries, frame.color_trc
    return found


def _over(samples: np.ndarray, alpha: np.ndarray, ground: np.ndarray | np.uint32, most: int) -> np.ndarray:
    # The largest sum has 32 bits: 65535 times 65535, and the half for rounding.
    return (samples.astype(np.uint32) * alpha + ground * (most - alpha) + most // 2) // most


def _samples(frame: av.VideoFrame, index: int) -> np.ndarray:
    """One plane, (H, W) uint8 or uint16 of this machine's order of bytes."""
    plane = frame.planes[index]
    kind = _kind(frame)
    rows = np.frombuffer(bytes(plane), kind).reshape(plane.height, -1)[:, : plane.width]
    return np.ascontiguousarray(rows, kind.newbyteorder("="))


def _fill(frame: av.VideoFrame, index: int, samples: np.ndarray) -> None:
    plane = frame.planes[index]
    kind = _kind(frame)
    rows = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
    rows[:, : plane.width] = samples
    plane.update(rows.tobytes())


def _kind(frame: av.VideoFrame) -> np.dtype:
    wide = frame.format.components[0].bits > 8
    return np.dtype(("<u2" if frame.format.name.endswith("le") else ">u2") if wide else "u1")
