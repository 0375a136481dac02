"""Clips of a camera that moves before a flat picture in a known way, with or without things that move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import cos, exp, pi, radians, sin

import cv2
import numpy as np

from filters.base import ClipInfo, Frames, Pair
from tests.render import texture

SIZE = (256, 144)
RADIUS = float(np.sqrt((1 + (144 / 256) ** 2) / 12))  # widths: root mean square distance from the middle
STEP_S = 0.1


@dataclass(frozen=True)
class View:
    """Where a camera looks: right and up in frame widths, how near, and by how many degrees it is turned
    clockwise."""

    right: float = 0
    up: float = 0
    zoom: float = 1
    roll: float = 0


Path = Callable[[float], View]  # of the time in seconds


@dataclass(frozen=True)
class Disc:
    """A textured disc that moves to the right in the frame, in frame widths and widths per second."""

    radius: float = 0.12
    speed: float = 0.15

    @property
    def moved(self) -> float:
        """The mean over the frame of its speed, where the frame stands."""
        return pi * self.radius**2 * SIZE[0] / SIZE[1] * self.speed


def frames_of(path: Path, seed: int = 1, *, slope: float = 1.1, seconds: float = 2, disc: Disc | None = None):
    """Grey frames of 256x144, STEP_S apart. The steeper `slope`, the softer the picture."""
    picture = cv2.GaussianBlur(texture(seed, 1024, 1024, slope=slope)[..., 1], (0, 0), 1)
    return [
        _with_disc(_seen(picture, path(k * STEP_S)), disc, k * STEP_S)
        for k in range(round(seconds / STEP_S) + 1)
    ]


def _seen(picture: np.ndarray, view: View) -> np.ndarray:
    """What a camera sees that has two pixels of `picture` for each of its own at zoom 1."""
    width, height = SIZE
    c, s = 2 / view.zoom * cos(radians(view.roll)), 2 / view.zoom * sin(radians(view.roll))
    turned = np.array([[c, -s], [s, c]])  # the frame's axes in the picture, whose y points down
    middle = np.array([512 + 2 * width * view.right, 512 - 2 * width * view.up])
    start = middle - turned @ np.array([(width - 1) / 2, (height - 1) / 2])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, np.column_stack([turned, start]), SIZE, flags=flags, borderMode=cv2.BORDER_WRAP
    )


def _with_disc(image: np.ndarray, disc: Disc | None, time_s: float) -> np.ndarray:
    if disc is None:
        return image
    width, height = SIZE
    x, y = 0.3 + disc.speed * time_s, 0.5 * height / width
    mask = np.zeros(image.shape, np.uint8)
    centre = (round(x * width * 16), round(y * width * 16))
    cv2.circle(mask, centre, round(disc.radius * width * 16), 255, -1, cv2.LINE_AA, 4)
    moves = View(right=-x)
    skin = 255 - _seen(cv2.GaussianBlur(texture(99, 1024, 1024)[..., 1], (0, 0), 1), moves)
    return np.where(mask > 127, skin, image)


def clip(frames: list[np.ndarray]) -> Frames:
    info = ClipInfo(
        duration_s=len(frames) * STEP_S, frames=len(frames), fps=1 / STEP_S, width=256, height=144
    )
    return Frames(info, pairs=[Pair(a, b, STEP_S) for a, b in pairwise(frames)])


def hand_held(seed: int, reach: float = 0.004) -> Path:
    """A camera that is held: swings of 1 to 4 Hz across and along, `reach` widths to each side."""
    rng = np.random.default_rng(seed)
    swings = [(rng.uniform(1, 4), rng.uniform(0, 2 * pi), axis) for axis in (0, 1, 0, 1)]

    def view(t: float) -> View:
        x, y = (sum(sin(2 * pi * f * t + p) for f, p, a in swings if a == axis) for axis in (0, 1))
        return View(reach * x, reach * y)

    return view


def steady(kind: str, rate: float) -> Path:
    """A `pan`, `tilt`, `zoom` or `roll` at a constant rate, in the units of the columns; or `static`."""
    ways: dict[str, Path] = {
        "static": lambda t: View(),
        "pan": lambda t: View(right=rate * t),
        "tilt": lambda t: View(up=rate * t),
        "zoom": lambda t: View(zoom=exp(rate * t)),
        "roll": lambda t: View(roll=rate * t),
    }
    return ways[kind]
