"""Rendered scenes with known truth: a shape moves over a ground, with or without a planted defect.

Scenes differ on purpose only in the words of their captions: texture, colour, shape and direction. Place,
size, speed, ground and light are drawn at random. Stripes keep the mean of their surface. Their period is
three pixels of the side to which training reduces clips. At half of that side less than 15 % of the energy
of stripes is left, so that only the words say whether there were stripes. Stripes are grey light that is
added to the colour, because an mp4 stores the full resolution of light but only half of chroma. Pictures are
(H, W, 3) RGB, float32 from 0 to 255 until the last step. Every result depends only on the arguments.
"""

from __future__ import annotations

import colorsys
import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXTURES = ("plain", "striped")
COLOURS = {"red": (190, 95, 95), "green": (85, 170, 95), "blue": (95, 115, 190), "yellow": (170, 165, 85)}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL = "still"
PERIOD = 3.0  # the period of stripes, in pixels of the side to which training reduces clips
CONTRAST = 55.0  # the amplitude of stripes, in levels: with the colours above no value is clipped

SURFACE = 10.0  # the objects' grain, in levels: without grain the rest of the stripes would be visible

GOOD = "good"
# Each defect breaks exactly one rule of `curation/configs/corpus.yaml`.
DEFECTS = ("static", "fast", "text", "dark", "bright", "flat", "blurred", "letterboxed", "short", "small")

_POINTS = 4  # each pixel is the mean of a grid of 4 x 4 points
_HUE_STEP = 0.381966  # the golden section: the hues of neighbouring scenes differ a lot, also for detectors
_WORDS = ("SUBSCRIBE", "BREAKING", "LIVE NOW", "PREVIEW", "SAMPLE", "CHANNEL 7", "REPLAY", "COPYRIGHT")


@dataclass(frozen=True)
class Content:
    """The four properties that a caption names."""

    texture: str
    colour: str
    shape: str
    direction: str

    @property
    def caption(self) -> str:
        way = "standing still" if self.direction == STILL else f"moving {self.direction}"
        return f"a {self.texture} {self.colour} {self.shape} {way}"


ALL = tuple(itertools.starmap(Content, itertools.product(TEXTURES, COLOURS, SHAPES, DIRECTIONS)))
# Training does not see these combinations, in both textures. They test whether a model understands each word.
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
SEEN = tuple(content for content in ALL if content not in UNSEEN)


@dataclass(frozen=True)
class Look:
    """The size and the rate of all files of a corpus."""

    width: int  # pixels, even
    height: int
    fps: int
    train_side: int  # pixels: training reduces the shorter side to this, and the stripes are made for it

    @property
    def side(self) -> int:
        return min(self.width, self.height)

    @property
    def period(self) -> float:
        """The period of stripes, in pixels of the file."""
        return PERIOD * self.side / self.train_side


def uniform(*key: int | str) -> float:
    """A pseudo-random number in [0, 1) that depends only on the key."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@dataclass(frozen=True)
class Scene:
    """One shot of `frames` frames. `kind` is `good` or a defect.

    key: the seed of all random numbers of the scene. All parts except the last belong to the file.
    place: the number of the scene within its file. The grounds of neighbouring scenes differ in hue.
    """

    content: Content
    kind: str
    frames: int
    look: Look
    key: tuple[int | str, ...]
    place: int

    def draw(self, name: str, low: float, high: float) -> float:
        return low + (high - low) * uniform("footage", name, *self.key)

    def slope(self, name: str) -> float:
        """The change of light across the picture, in levels, up or down.

        The change is so large that even a picture with a dim object has enough contrast.
        """
        steep = self.draw(name, 25, 50)
        return steep if self.draw(f"{name} up", 0, 1) < 0.5 else -steep

    def picture(self, k: int) -> np.ndarray:
        """Frame k, (H, W, 3) uint8. For dissolves, the motion continues before 0 and after the last frame."""
        if self.kind == "fast":
            dx, dy = DIRECTIONS[self.content.direction]
            moved = round(self._fast * k)
            picture = np.roll(self._drawn(self.frames / 2), (dy * moved, dx * moved), axis=(0, 1))
        else:
            picture = self._drawn(k)
        if self.kind in _CHANGES:
            picture = _CHANGES[self.kind](self, picture)
        return picture.round().clip(0, 255).astype(np.uint8)

    def _surface(self, x: float, y: float, left: int, top: int, patch: np.ndarray) -> np.ndarray:
        """The object's own grain, which moves with the object: (h, w, 1), in levels."""
        u, v = left - x + self.look.width / 2, top - y + self.look.height / 2
        move = np.array([[1, 0, u], [0, 1, v]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        height, width = patch.shape[:2]
        found: np.ndarray = cv2.warpAffine(
            _object_grain(self), move, (width, height), flags=flags, borderMode=cv2.BORDER_WRAP
        )
        return SURFACE * found[..., None]

    @property
    def speed(self) -> float:
        """The speed of the object, or of the whole picture if that moves, in shorter sides per second."""
        if self.content.direction == STILL:
            return 0.0
        if self.kind == "fast":
            return self._fast * self.look.fps / self.look.side
        return self._travel / (self.frames / self.look.fps)

    @property
    def _travel(self) -> float:
        """The way of the object in a scene of any length, in shorter sides."""
        return 0.0 if self.content.direction == STILL else self.draw("travel", 0.5, 0.68)

    @property
    def _fast(self) -> float:
        """The speed of the whole picture, in pixels per frame. The bound of the rule is 0.6 widths/s."""
        return self.draw("fast", 0.85, 0.98) * self.look.width / self.look.fps

    def _drawn(self, k: float) -> np.ndarray:
        """The ground with the object, (H, W, 3) float32, without the defect."""
        look, side = self.look, self.look.side
        dx, dy = DIRECTIONS.get(self.content.direction, (0, 0))
        way = self._travel * side * (k / self.frames - 0.5)
        aside = (self.draw("aside", -0.2, 0.2) * side, self.draw("ahead", -0.05, 0.05) * side)
        x = look.width / 2 + dx * way + (aside[0] if dx == 0 else aside[1])
        y = look.height / 2 + dy * way + (aside[0] if dy == 0 else aside[1])
        return self._with_object(x, y, self.draw("radius", 0.2, 0.26) * side)

    def _with_object(self, x: float, y: float, radius: float) -> np.ndarray:
        picture = _ground(self).copy()
        reach = 1.5 * radius
        left, right = max(0, int(x - reach - 2)), min(self.look.width, int(x + reach + 3))
        top, bottom = max(0, int(y - reach - 2)), min(self.look.height, int(y + reach + 3))
        if left >= right or top >= bottom:
            return picture
        u = (left + (np.arange((right - left) * _POINTS) + 0.5) / _POINTS - x)[None, :]
        v = (top + (np.arange((bottom - top) * _POINTS) + 0.5) / _POINTS - y)[:, None]
        inside = _inside(self.content.shape, u, v, radius)
        share = _pixels(inside)[..., None]  # the covered share of each pixel, from 0 to 1
        patch = picture[top:bottom, left:right]
        surface = np.array(COLOURS[self.content.colour], np.float32) + self._surface(x, y, left, top, patch)
        patch += share * (surface - patch)
        if self.content.texture == "striped":
            patch += CONTRAST * _pixels(inside * np.cos(2 * np.pi * u / self.look.period))[..., None]
        return picture


@lru_cache(maxsize=4)
def _object_grain(scene: Scene) -> np.ndarray:
    seed = round(scene.draw("surface", 0, 1 << 30))
    return _grain(scene.look.width, scene.look.height, seed, 1.0).astype(np.float32)


@lru_cache(maxsize=4)
def _ground(scene: Scene) -> np.ndarray:
    """The picture behind the object, (H, W, 3) float32: a muted and shaded tint with grain."""
    width, height = scene.look.width, scene.look.height
    hue = (uniform("footage", "hue", *scene.key[:-1]) + scene.place * _HUE_STEP) % 1
    # The ground is darker or lighter than every object, because filters on grey pictures must see the object.
    is_light = scene.kind == "bright" or (scene.kind != "dark" and scene.draw("light", 0, 1) < 0.5)
    saturation, value = ((0.14, 0.2), (0.84, 0.89)) if is_light else ((0.35, 0.5), (0.2, 0.25))
    if scene.kind == "dark":
        value = (0.16, 0.22)
    if scene.kind == "fast":  # a middle value, because the grain is strong
        saturation, value = (0.2, 0.3), (0.5, 0.55)
    tint = colorsys.hsv_to_rgb(hue, scene.draw("saturation", *saturation), scene.draw("value", *value))
    seed = round(scene.draw("grain", 0, 1 << 30))
    if scene.kind == "fast":  # the grain makes the motion visible, and has no edge where the picture repeats
        light = 26 * _grain(width, height, seed, 1.3)
    else:
        y, x = np.meshgrid(np.arange(height) / height - 0.5, np.arange(width) / width - 0.5, indexing="ij")
        shade = scene.slope("slope x") * x + scene.slope("slope y") * y
        light = shade + 5 * _grain(width, height, seed, 1.0)
    return (255 * np.array(tint) + light[..., None]).astype(np.float32)


def _inside(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """(rows, columns) float32: 1 for points that are inside the shape, else 0. (u, v): from the centre."""
    if shape == "circle":
        found = u * u + v * v <= radius**2
    elif shape == "square":
        found = np.maximum(abs(u), abs(v)) <= 0.9 * radius
    else:
        found = (v <= 0.95 * radius) & (abs(u) <= (v + 1.45 * radius) / 2)
    return found.astype(np.float32)


def _pixels(points: np.ndarray) -> np.ndarray:
    """The mean over each pixel's grid of points: (H, W)."""
    rows, columns = points.shape
    found: np.ndarray = points.reshape(rows // _POINTS, _POINTS, columns // _POINTS, _POINTS).mean((1, 3))
    return found


def _grain(width: int, height: int, seed: int, slope: float) -> np.ndarray:
    """(H, W) noise with mean 0 and deviation 1, whose opposite edges fit together.

    Amplitudes fall as 1 / frequency^slope. In natural pictures they fall about as 1 / frequency (Field 1987).
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    white = np.random.default_rng(seed).standard_normal((height, width))
    field: np.ndarray = np.fft.irfft2(np.fft.rfft2(white) / frequency**slope, s=(height, width))
    return field / field.std()


# ---------------------------------------------------------------------------------------------------
# Defects that change the finished picture
# ---------------------------------------------------------------------------------------------------


def _dark(scene: Scene, picture: np.ndarray) -> np.ndarray:
    return picture * scene.draw("dark", 0.2, 0.22)


def _bright(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """An overexposed picture: the ground is clipped, but the object is not."""
    return picture * scene.draw("bright", 1.45, 1.55)


def _flat(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """A picture with nearly the same low contrast in all scenes, because the rule has a bound on contrast."""
    return 128 + (picture - picture.mean()) * scene.draw("flat", 0.034, 0.04) * 255 / _contrast(scene)


@lru_cache(maxsize=4)
def _contrast(scene: Scene) -> float:
    """The standard deviation of the light in the middle frame, in levels. All frames use the same gain."""
    light = scene._drawn(scene.frames / 2) @ np.array([0.299, 0.587, 0.114], np.float32)
    return float(light.std())


def _blurred(scene: Scene, picture: np.ndarray) -> np.ndarray:
    blurred: np.ndarray = cv2.GaussianBlur(
        picture, (0, 0), scene.draw("blur", 0.035, 0.041) * scene.look.side
    )
    return blurred


def _letterboxed(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """Black bars at the top and bottom, or at the sides. The bars cover 20 to 32 % of the picture."""
    view = picture if scene.draw("pillars", 0, 1) < 0.5 else picture.transpose(1, 0, 2)
    bar = round(scene.draw("bar", 0.1, 0.16) * len(view))
    view[:bar] = view[-bar:] = 0
    return picture


def _text(scene: Scene, picture: np.ndarray) -> np.ndarray:
    """White words with a dark rim, which cover most of the width."""
    look = scene.look
    words = _WORDS[int(scene.draw("words", 0, len(_WORDS)))]
    size = 0.16 * look.height
    size = min(size, size * 0.9 * look.width / _font(size).getlength(words))
    canvas = Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))
    place = (look.width / 2, scene.draw("line", 0.15, 0.85) * look.height)
    rim = (20, 20, 20)
    ImageDraw.Draw(canvas).text(
        place, words, "white", _font(size), "mm", stroke_width=max(1, look.side // 128), stroke_fill=rim
    )
    return np.asarray(canvas, np.float32)


@lru_cache(maxsize=64)
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


_CHANGES: dict[str, Callable[[Scene, np.ndarray], np.ndarray]] = {
    "dark": _dark,
    "bright": _bright,
    "flat": _flat,
    "blurred": _blurred,
    "letterboxed": _letterboxed,
    "text": _text,
}
