"""Pictures at given times of a clip in a shard. Reelmill has encoded these clips itself."""

from __future__ import annotations

import io
from typing import cast

import av
import cv2
import numpy as np
from av.container import InputContainer

from captioning.base import Pictures


def times(duration_s: float, wanted: Pictures) -> list[float]:
    """The times of the pictures, in seconds from the clip's start.

    The times are the middles of equal parts of the clip. A still image has the single time 0.
    """
    count = wanted.count
    if wanted.fps is not None:
        count = min(count, max(1, round(duration_s * wanted.fps)))
    return [(k + 0.5) * duration_s / count for k in range(count)] if duration_s > 0 else [0.0]


def pictures(mp4: bytes, duration_s: float, wanted: Pictures) -> tuple[list[np.ndarray], list[float]]:
    """((H, W, 3) uint8 RGB pictures, their times in seconds).

    Each picture is the frame that is shown at its time. A frame that is shown at several times comes once,
    with the first of these times. Raises `ValueError` if the clip has no frame. Bytes that are not a clip
    raise av's errors, which are `ValueError` and `OSError`.
    """
    found: list[np.ndarray] = []
    at: list[float] = []
    with cast(InputContainer, av.open(io.BytesIO(mp4))) as container:
        if not container.streams.video:
            raise ValueError("its clip has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads would decode more frames than requested
        stream.codec_context.thread_count = 1
        start = stream.start_time or 0
        assert stream.time_base is not None
        decoded = container.decode(stream)
        last: av.VideoFrame | None = None  # the frame that is shown now
        held: av.VideoFrame | None = None  # the frame after `last`
        taken: int | None = None
        for time_s in times(duration_s, wanted):
            target = start + round(time_s / stream.time_base)
            # Clips have a keyframe every half second. For a target more than 1 s ahead, a seek is cheaper
            # than decoding all frames up to the target.
            if last is not None and last.pts is not None and target - last.pts > 1.0 / stream.time_base:
                container.seek(target, stream=stream, backward=True)
                decoded = container.decode(stream)
                held = None
            while True:
                frame = held or next(decoded, None)
                if frame is None or (last is not None and frame.pts is not None and frame.pts > target):
                    held = frame
                    break
                last, held = frame, None
            if last is None:
                raise ValueError("the clip has no frame")
            if last.pts != taken:
                taken = last.pts
                found.append(_small(last, wanted.side))
                at.append(round(time_s, 6))
    return found, at


def _small(frame: av.VideoFrame, side: int) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
