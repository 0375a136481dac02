"""How a clip becomes a sample: which frames, which window of the picture, and which caption.

`plan_sample` decides from the columns, before the clip is decoded, so that a cache can be asked first. Then
`apply` makes the pixels, which are equal in every process. This module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from generation.config import Bucket, Data
from generation.data.shards import Index, frames

MOTION_TAGS = (
    "very low motion, ",
    "low motion, ",
    "medium motion, ",
    "high motion, ",
    "very high motion, ",
)
MOTION_COLUMN = "motion.speed"
_TIE = 1e-6  # of a frame: with it, halves always round up, despite rounding errors of a division
Draw = Callable[[str], float]


@dataclass(frozen=True)
class Sample:
    """A plan for one sample of a batch: the clip, and how it is transformed."""

    row: int  # of the index
    clip_id: str
    caption: str | None  # with its motion tag; None: unconditional
    position: int  # in the epoch's plan, over all ranks: the key of every draw for this sample
    indices: tuple[int, ...]  # (T) frame numbers in the clip
    box: tuple[float, float, float, float]  # left, top, right, bottom in the clip's pixels
    height: int
    width: int

    @property
    def transform(self) -> str:
        """The transform of the clip as a text, for the key of a cache."""
        return json.dumps([self.indices, [round(b, 6) for b in self.box], self.height, self.width])


def motion_tag(speed: float | None, bounds: Sequence[float]) -> str:
    """The caption's prefix for a speed in frame widths per second, by four rising bounds. "" for null."""
    if speed is None or math.isnan(speed):
        return ""
    return MOTION_TAGS[sum(speed >= bound for bound in bounds)]


def last_start(count: int, source_fps: float, fps: float, frames: int) -> float:
    """The latest start in seconds for `count` frames at `fps`, in a clip of `frames` frames at `source_fps`.

    The result is negative if the frames do not fit. Half a source frame may be missing.
    """
    spare = (frames - 1) / source_fps - (count - 1) / fps
    return max(spare, 0.0) if spare >= -(0.5 + _TIE) / source_fps else spare


def frame_indices(
    count: int, source_fps: float, fps: float, frames: int, at: float | None = None
) -> tuple[int, ...]:
    """The numbers of the frames nearest to `count` times at `fps`, in a clip of `frames` frames.

    at: the start, from 0 (first possible start) to 1 (last possible start); None: the middle of the clip.
    Clips have a constant rate, so frame k is shown at k / source_fps seconds.
    """
    start = last_start(count, source_fps, fps, frames) * (0.5 if at is None else at)
    nearest = (math.floor((start + k / fps) * source_fps + 0.5 + _TIE) for k in range(count))
    return tuple(min(max(i, 0), frames - 1) for i in nearest)


def window(
    width: int, height: int, bucket: Bucket, crop: str, draw: Draw
) -> tuple[float, float, float, float]:
    """The window of the picture that fills the bucket: (left, top, right, bottom) in source pixels.

    width, height: of the picture. crop "center": the largest window with the bucket's aspect, in the middle.
    "random": a window of the bucket's size at a random place, on whole pixels. If the picture is smaller than
    the bucket, "random" takes the largest window with the bucket's aspect, at a random place.
    """
    scale = max(bucket.width / width, bucket.height / height)
    native = crop == "random" and scale <= 1
    if native:
        scale = 1.0
    w, h = min(bucket.width / scale, width), min(bucket.height / scale, height)
    if native:
        left = float(int(draw("left") * (width - bucket.width + 1)))
        top = float(int(draw("top") * (height - bucket.height + 1)))
    elif crop == "random":
        left, top = draw("left") * (width - w), draw("top") * (height - h)
    else:
        left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def plan_sample(
    index: Index, row: int, data: Data, bucket: Bucket, single_frame: bool, position: int, draw: Draw
) -> Sample:
    """Decide all properties of one sample. draw(name): gives a number in [0, 1), keyed by the position.

    single_frame: one frame of the clip, as an image. A clip of one frame repeats this frame.
    """
    number = {name: float(values[row]) for name, values in index.numbers.items()}
    count, width, height = int(number["frames"]), int(number["width"]), int(number["height"])
    caption = index.caption(row)
    if count == 1:
        indices: tuple[int, ...] = (0,) * bucket.frames
    elif single_frame:
        indices = (int(draw("frame") * count),)
    else:
        at = draw("start") if data.random_start else None
        indices = frame_indices(bucket.frames, number["fps"], data.fps, count, at)
    if caption and data.motion_tag and len(indices) > 1:  # an image has no motion
        caption = motion_tag(number[MOTION_COLUMN], data.motion_bounds) + caption
    box = window(width, height, bucket, bucket.crop or data.crop, draw)
    return Sample(row, index.clip_id(row), caption, position, indices, box, bucket.height, bucket.width)


def fit(pictures: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """Cut `box` out of pictures (T, H, W, 3) uint8 and resize it: (T, height, width, 3) uint8.

    The filter is bicubic and antialiased: for scaling down, the kernel grows with the scale.
    """
    left, top, right, bottom = box
    if right - left == width and bottom - top == height and left == int(left) and top == int(top):
        return pictures[:, int(top) : int(bottom), int(left) : int(right)]
    kind = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), kind, box=box)) for p in pictures])


def apply(row: Mapping[str, Any], sample: Sample) -> np.ndarray:
    """Decode a clip and make its sample: (3, T, height, width) uint8, contiguous.

    row: `video`, `clip_id`, `frames`, `width` and `height` of the shards. Raises `ValueError` if the clip
    does not fit its row, and the errors of decord and PyAV.
    """
    wanted, places = np.unique(sample.indices, return_inverse=True)
    pictures = fit(frames(row, wanted.tolist()), sample.box, sample.height, sample.width)
    return np.ascontiguousarray(pictures[places].transpose(3, 0, 1, 2))
