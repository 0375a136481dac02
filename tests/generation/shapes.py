"""Clips with a fine texture, which is nearly lost when a clip is scaled down by two and up again.

A shape of one of four colours drifts over a shaded ground. A plain shape is flat. A striped shape has stripes
with a period of three pixels, which move with the shape. The stripes do not change the mean colour. They are
grey light, so that the halved chroma of an mp4 does not weaken them. A pixel is the mean of a grid of points.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np

from generation import draws
from tests.generation.synthetic import encode, row, write_shards

FRAMES, SIDE, FPS = 9, 32, 8.0
PERIOD = 3.0  # pixels
CONTRAST = 55.0  # of the stripes: levels of 255 above and below the mean
TEXTURES = ("plain", "striped")
COLOURS = {"red": (175, 85, 85), "green": (85, 170, 95), "blue": (85, 100, 175), "yellow": (170, 165, 85)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_POINTS = 4  # points on a side of a pixel's grid


@dataclass(frozen=True)
class Content:
    """The content of a clip, which the caption describes."""

    texture: str
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        return f"a {self.texture} {self.colour} {self.shape} moving {self.direction}"

    @property
    def flipped(self) -> Content:
        """The same content with the other texture."""
        return replace(self, texture=TEXTURES[1 - TEXTURES.index(self.texture)])


ALL = tuple(itertools.starmap(Content, itertools.product(TEXTURES, COLOURS, SHAPES, DIRECTIONS)))
# These contents are not in the training set, in both textures. They test words in new combinations.
UNSEEN = frozenset(
    Content(texture, *rest)
    for texture in TEXTURES
    for rest in (
        ("red", "circle", "left"),
        ("green", "square", "up"),
        ("blue", "triangle", "right"),
        ("yellow", "circle", "down"),
    )
)


def render(what: Content, *key: int | str) -> np.ndarray:
    """A clip (T, H, W, 3) uint8. `key` decides place, size, speed and ground. Stripes follow the place."""

    def draw(name: str, low: float, high: float) -> float:
        return low + (high - low) * draws.uniform("shape", name, *key)

    point = (np.arange(SIDE * _POINTS) + 0.5) / _POINTS
    y, x = np.meshgrid(point, point, indexing="ij")
    dx, dy = DIRECTIONS[what.direction]
    radius, speed = draw("radius", 6.5, 9.0), draw("speed", 0.6, 1.2)
    margin = radius - 1
    centre = [draw(axis, margin, SIDE - margin) for axis in "xy"]
    ground = draw("ground", 60, 150)
    slope = draw("slope x", -30, 30) * (x / SIDE - 0.5) + draw("slope y", -30, 30) * (y / SIDE - 0.5)
    pictures = []
    for k in range(FRAMES):
        way = speed * (k - (FRAMES - 1) / 2)
        u, v = x - centre[0] - dx * way, y - centre[1] - dy * way
        inside = {
            "circle": u * u + v * v <= radius**2,
            "square": np.maximum(abs(u), abs(v)) <= 0.9 * radius,
            "triangle": (v <= 0.8 * radius) & (abs(u) <= (v + 1.2 * radius) / 2),
        }[what.shape]
        picture = np.stack(
            [_mean(np.where(inside, level, ground + slope)) for level in COLOURS[what.colour]], 2
        )
        if what.texture == "striped":
            picture += _mean(np.where(inside, CONTRAST * np.cos(2 * np.pi * u / PERIOD), 0))[..., None]
        pictures.append(picture)
    return np.stack(pictures).round().clip(0, 255).astype(np.uint8)


def _mean(fine: np.ndarray) -> np.ndarray:
    """Pixels (H, W), each the mean of its points."""
    pixels: np.ndarray = fine.reshape(SIDE, _POINTS, SIDE, _POINTS).mean((1, 3))
    return pixels


@dataclass(frozen=True)
class Clip:
    what: Content
    mp4: bytes


def compress(pictures: np.ndarray) -> bytes:
    """An mp4. Except for the halved resolution of colours there is little loss."""
    return encode(pictures, FPS, crf=5)


def clips(contents: Sequence[Content], count: int, seed: int) -> list[Clip]:
    """`count` clips, with every content in turn. Each clip has another place."""
    found = []
    for k in range(count):
        what = contents[k % len(contents)]
        found.append(Clip(what, compress(render(what, seed, k))))
    return found


def decoded(clip: Clip) -> np.ndarray:
    """The frames of a clip, (T, H, W, 3) uint8."""
    with av.open(io.BytesIO(clip.mp4), "r") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def write_dataset(folder: Path, found: Sequence[Clip]) -> Path:
    rows = [
        row(k, clip.mp4, FRAMES, FPS, SIDE, SIDE, caption=clip.what.caption) for k, clip in enumerate(found)
    ]
    return write_shards(folder, rows, rows_per_group=128)
