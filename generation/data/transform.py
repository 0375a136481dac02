"""What becomes of one clip: which frames, which window of the picture, which caption.

All of it is decided from the columns, before a byte is decoded (`plan_sample`), so that a cache can be asked
first; `apply` then makes the pixels, the same in every process. Nothing here needs torch.
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
_TIE = 1e-6  # of a frame: halves round up whatever the last bit of a division says
Draw = Callable[[str], float]


@dataclass(frozen=True)
class Sample:
    """One clip as one sample of a batch."""

    row: int  # of the index
    clip_id: str
    caption: str | None  # with its motion tag; None: unconditional
    position: int  # in the epoch's plan, over all ranks: the key of every draw for this sample
    indices: tuple[int, ...]  # frames of the clip
    box: tuple[float, float, float, float]  # left, top, right, bottom in the clip's pixels
    height: int
    width: int

    @property
    def transform(self) -> str:
        """What is done to the clip, for the key of a cache."""
        return json.dumps([self.indices, [round(b, 6) for b in self.box], self.height, self.width])


def motion_tag(speed: float | None, bounds: Sequence[float]) -> str:
    """The caption's prefix for a speed in frame widths per second, by four rising bounds; none for null."""
    if speed is None or math.isnan(speed):
        return ""
    return MOTION_TAGS[sum(speed >= bound for bound in bounds)]


def last_start(count: int, source_fps: float, fps: float, frames: int) -> float:
    """The latest time in seconds at which `count` frames at `fps` can begin in a clip of `frames` frames.

    Below zero when they do not fit; half a source frame is forgiven.
    """
    spare = (frames - 1) / source_fps - (count - 1) / fps
    return max(spare, 0.0) if spare >= -(0.5 + _TIE) / source_fps else spare


def frame_indices(
    count: int, source_fps: float, fps: float, frames: int, at: float | None = None
) -> tuple[int, ...]:
    """The frames nearest to `count` times at `fps`, from a start at `at` (0 to 1) of those possible.

    None: the middle of the clip. Clips have a constant rate, so frame k is shown at k / source_fps.
    """
    start = last_start(count, source_fps, fps, frames) * (0.5 if at is None else at)
    nearest = (math.floor((start + k / fps) * source_fps + 0.5 + _TIE) for k in range(count))
    return tuple(min(max(i, 0), frames - 1) for i in nearest)


def window(
    width: int, height: int, bucket: Bucket, crop: str, draw: Draw
) -> tuple[float, float, float, float]:
    """The part of the picture that fills the bucket: (left, top, right, bottom) in source pixels.

    center: the largest one of the bucket's aspect, in the middle. random: one of the bucket's own size, on
    whole pixels, anywhere; of a picture that is smaller, the largest one, anywhere.
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
    """Decide everything about one sample. `draw(name)` gives numbers in [0, 1), keyed by the position."""
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
    if caption and data.motion_tag and len(indices) > 1:  # a picture does not move
        caption = motion_tag(number[MOTION_COLUMN], data.motion_bounds) + caption
    box = window(width, height, bucket, bucket.crop or data.crop, draw)
    return Sample(row, index.clip_id(row), caption, position, indices, box, bucket.height, bucket.width)


def fit(pictures: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """The part `box` of pictures (T, H, W, 3) uint8, at another size: (T, height, width, 3).

    Bicubic, antialiased: when scaling down, the kernel grows with the scale.
    """
    left, top, right, bottom = box
    if right - left == width and bottom - top == height and left == int(left) and top == int(top):
        return pictures[:, int(top) : int(bottom), int(left) : int(right)]
    kind = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height), kind, box=box)) for p in pictures])


def apply(row: Mapping[str, Any], sample: Sample) -> np.ndarray:
    """Decode a clip and make the sample of it: (3, T, height, width) uint8, contiguous.

    row: `video`, `clip_id`, `frames`, `width` and `height` of the shards. Raises `ValueError` when the clip
    is not what its row says, and what decord raises.
    """
    wanted, places = np.unique(sample.indices, return_inverse=True)
    pictures = fit(frames(row, wanted.tolist()), sample.box, sample.height, sample.width)
    return np.ascontiguousarray(pictures[places].transpose(3, 0, 1, 2))
