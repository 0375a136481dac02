"""Clips with a fine texture that hardly survives being scaled down by two and up again.

A shape of one of four colours drifts over a shaded ground. A plain one is flat; a striped one carries stripes
of three pixels' period that move with it. They keep the mean, and are grey light added to the colour, which
the halved chroma of an mp4 leaves whole. Each pixel is the mean of a grid of points in it.
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
CONTRAST = 55.0  # of the stripes: levels of 255, up and down
TEXTURES = ("plain", "striped")
COLOURS = {"red": (175, 85, 85), "green": (85, 170, 95), "blue": (85, 100, 175), "yellow": (170, 165, 85)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_POINTS = 4  # a side of a pixel's grid


@dataclass(frozen=True)
class Content:
    """What a caption says."""

    texture: str
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        return f"a {self.texture} {self.colour} {self.shape} moving {self.direction}"

    @property
    def flipped(self) -> Content:
        """With the wrong texture."""
        return replace(self, texture=TEXTURES[1 - TEXTURES.index(self.texture)])


ALL = tuple(itertools.starmap(Content, itertools.product(TEXTURES, COLOURS, SHAPES, DIRECTIONS)))
# Left out of training, in both textures: whether words are understood one by one.
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
    """(T, H, W, 3) uint8. `key` decides place, size, speed and ground; the stripes go with the place."""

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
    """Points to pixels: (H, W)."""
    pixels: np.ndarray = fine.reshape(SIDE, _POINTS, SIDE, _POINTS).mean((1, 3))
    return pixels


@dataclass(frozen=True)
class Clip:
    what: Content
    mp4: bytes


def compress(pictures: np.ndarray) -> bytes:
    """An mp4, nearly without loss but for the colours' resolution."""
    return encode(pictures, FPS, crf=5)


def clips(contents: Sequence[Content], count: int, seed: int) -> list[Clip]:
    """`count` clips, every content in turn, each with a place of its own."""
    found = []
    for k in range(count):
        what = contents[k % len(contents)]
        found.append(Clip(what, compress(render(what, seed, k))))
    return found


def decoded(clip: Clip) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    with av.open(io.BytesIO(clip.mp4), "r") as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def write_dataset(folder: Path, found: Sequence[Clip]) -> Path:
    rows = [
        row(k, clip.mp4, FRAMES, FPS, SIDE, SIDE, caption=clip.what.caption) for k, clip in enumerate(found)
    ]
    return write_shards(folder, rows, rows_per_group=128)
