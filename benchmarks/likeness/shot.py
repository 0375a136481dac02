"""A shot of a film: a part of a single shot, seen by a camera of its own.

Pictures are (18, 32, 3) float32: luma and both kinds of chroma, 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from benchmarks.likeness.shots import HEIGHT, WIDTH, SingleShot
from curation.decode.likeness import describe

SIZE = (describe.WIDTH, describe.HEIGHT)
Random = np.random.Generator


@dataclass(frozen=True)
class Style:
    """What all shots of a film share."""

    step: float  # frames of the single shot for each frame: 2 is twice as fast
    grey: bool
    repeats: int  # each picture is shown so often: animation on twos and threes

    @classmethod
    def draw(cls, random: Random) -> Style:
        return cls(
            step=random.choice([1, 1, 1, 0.5, 2, 3, 5]),
            grey=random.random() < 0.18,
            repeats=int(random.choice([1, 1, 1, 1, 1, 1, 2, 3])),
        )


def flat(level: float) -> np.ndarray:
    """A grey picture."""
    picture = np.full((SIZE[1], SIZE[0], 3), 128, np.float32)
    picture[..., 0] = level
    return picture


def title(random: Random) -> SingleShot:
    """Rows of strokes on a flat ground."""
    ground = int(random.integers(0, 256)) if random.random() < 0.4 else int(random.choice([0, 8, 250]))
    picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    picture[..., 0] = ground
    if random.random() < 0.3:
        picture[..., 1:] = random.integers(90, 170, 2)
    if random.random() < 0.75:
        ink = 255 - ground if abs(ground - 128) > 50 else int(random.choice([0, 255]))
        for _ in range(random.integers(1, 5)):
            top, tall, x = random.integers(10, 58), random.integers(3, 10), random.integers(10, 50)
            for _ in range(random.integers(3, 14)):
                wide = random.integers(1, 6)
                picture[top : top + tall, x : min(x + wide, 118), 0] = ink
                x += wide + random.integers(1, 3)
    return SingleShot("title", picture[None])


def sky(random: Random) -> SingleShot:
    """A smooth ground, over which something small moves."""
    frames, ends = 100, random.uniform(60, 230, 2)
    texture = cv2.resize(random.normal(0, random.uniform(0.5, 4), (6, 10)), (WIDTH, HEIGHT))
    ground = np.linspace(*ends, HEIGHT)[:, None] + texture
    picture = np.stack([ground, *(np.full((HEIGHT, WIDTH), c) for c in random.uniform(105, 150, 2))], -1)
    pictures = np.repeat(picture[None], frames, 0)
    places = np.linspace(random.uniform(0, 1, 2), random.uniform(0, 1, 2), frames) * (WIDTH, HEIGHT)
    size, level = random.integers(3, 16, 2), random.uniform(0, 255)
    for frame, (x, y) in zip(pictures, places, strict=True):
        frame[int(y) : int(y) + size[1] // 2, int(x) : int(x) + size[0], 0] = level
    return SingleShot("sky", np.clip(pictures, 0, 255).astype(np.uint8))


def texture(random: Random) -> SingleShot:
    """Grain of every size, which stands still or moves sideways. Two of one tint differ in layout alone."""
    down, across = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    size = np.hypot(down, across)
    size[0, 0] = np.inf
    noise = np.fft.rfft2(random.normal(size=(HEIGHT, WIDTH))) / size ** random.uniform(0.9, 1.7)
    grain = np.fft.irfft2(noise, s=(HEIGHT, WIDTH))
    luma = random.uniform(60, 180) + random.uniform(10, 45) * grain / grain.std()
    tint = random.choice([(128, 128), (118, 134), (134, 122), (122, 138)])
    still = np.stack([luma, np.full_like(luma, tint[0]), np.full_like(luma, tint[1])], -1)
    still = np.clip(still, 0, 255).astype(np.uint8)
    if random.random() < 0.5:
        return SingleShot("texture", still[None])
    speed = random.uniform(0.05, 2)
    return SingleShot("texture", np.stack([np.roll(still, round(k * speed), 1) for k in range(100)]))


@dataclass(frozen=True)
class _Camera:
    """The part of the picture that is seen at each moment from 0 to 1, as (x, y, size) in fractions."""

    start: np.ndarray
    end: np.ndarray
    shake: float
    zoom: tuple[int, int, float] | None  # a fast one: first frame, frames, how far

    @classmethod
    def draw(cls, length: int, random: Random) -> _Camera:
        size = random.uniform(0.45, 1)
        end_size = size if random.random() < 0.6 else np.clip(size * random.uniform(0.8, 1.25), 0.35, 1)
        start = np.array([*random.uniform(size / 2, 1 - size / 2, 2), size])
        pans = random.random() < 0.25
        middle = random.uniform(end_size / 2, 1 - end_size / 2, 2) if pans else start[:2]
        zoom = None
        if random.random() < 0.08 and length > 30:
            frames = int(random.integers(5, 20))
            zoom = int(random.integers(3, length - frames - 3)), frames, random.uniform(0.35, 0.8)
        return cls(start, np.array([*middle, end_size]), random.choice([0, 0, 0, 0.004, 0.012]), zoom)

    def looks(self, length: int, random: Random) -> np.ndarray:
        """(length, 3): the middle of the part and its size."""
        share = np.linspace(0, 1, length)[:, None]
        looks = self.start * (1 - share) + self.end * share
        if self.zoom:
            first, frames, far = self.zoom
            looks[:, 2] *= 1 + (far - 1) * np.clip((np.arange(length) - first) / frames, 0, 1)
        wander = np.zeros(2)
        for k in range(length):
            wander = 0.6 * wander + random.normal(size=2) * self.shake
            half = looks[k, 2] / 2
            looks[k, :2] = np.clip(looks[k, :2] + wander, half, 1 - half)
        return looks


@dataclass(frozen=True)
class Light:
    gain: float
    offset: float
    gamma: float
    saturation: float

    @classmethod
    def draw(cls, style: Style, random: Random) -> Light:
        gain, offset = random.uniform(0.6, 1.3), random.uniform(-20, 20)
        if random.random() < 0.1:  # a dark scene
            gain, offset = random.uniform(0.06, 0.35), random.uniform(-5, 5)
        saturation = 0.0 if style.grey else random.choice([1, 1, 1, 0.5, 1.4, 0.05])
        return cls(gain, offset, random.uniform(0.75, 1.35), saturation)

    def on(self, picture: np.ndarray) -> np.ndarray:
        lit = 128 + (picture - 128) * self.saturation
        luma = 255 * (np.clip(picture[..., 0], 0, 255) / 255) ** self.gamma
        lit[..., 0] = np.clip(luma * self.gain + self.offset, 0, 255)
        return lit


def take(
    shot: SingleShot, length: int, style: Style, random: Random, light: Light | None = None
) -> list[np.ndarray]:
    """`length` pictures of a part of a shot. It is played back and forth where it is too short."""
    camera = _Camera.draw(length, random).looks(length, random)
    light = light or Light.draw(style, random)
    mirrored = random.random() < 0.5
    count = len(shot.frames)
    at = random.uniform(0, max(1e-3, count - 1)) + np.arange(length) * style.step * random.choice([-1, 1])
    numbers = np.abs((at + count - 1) % max(1, 2 * (count - 1)) - (count - 1)) if count > 1 else 0 * at
    shifts = _shifts(length, random)
    pictures: list[np.ndarray] = []
    for k, (number, look, shift) in enumerate(zip(numbers, camera, shifts, strict=True)):
        if pictures and k % style.repeats:
            pictures.append(pictures[-1])
            continue
        picture = light.on(_seen(shot.frames[round(number)], look, mirrored=mirrored))
        before = shifts[k - 1] if k else shift
        pictures.append(_shifted(picture, shift, abs(shift - before)))
    return pictures


def _seen(frame: np.ndarray, look: np.ndarray, *, mirrored: bool) -> np.ndarray:
    x, y, size = look
    left, top = int((x - size / 2) * WIDTH), int((y - size / 2) * HEIGHT)
    wide, tall = max(8, int(size * WIDTH)), max(5, int(size * HEIGHT))
    part = frame[max(0, top) : top + tall, max(0, left) : left + wide]
    part = np.ascontiguousarray(part[:, ::-1] if mirrored else part)
    how = cv2.INTER_AREA if wide >= SIZE[0] else cv2.INTER_LINEAR
    return cv2.resize(part, SIZE, interpolation=how).astype(np.float32)


def _shifts(length: int, random: Random) -> np.ndarray:
    """How far the picture is moved sideways, in pixels: whip pans, fast pans, and swaying."""
    frames = np.arange(length)
    shifts = np.zeros(length)
    if random.random() < 0.08 and length > 30:
        pan = int(random.integers(5, 14))
        first = random.integers(4, length - pan - 4)
        share = np.clip((frames - first + 1) / (pan + 1), 0, 1)
        shifts += SIZE[0] * random.uniform(0.5, 2.5) * random.choice([-1, 1]) * (3 * share**2 - 2 * share**3)
    if random.random() < 0.08:
        shifts += random.uniform(0.3, 3) * random.choice([-1, 1]) * frames
    if random.random() < 0.05:
        shifts += random.uniform(2, 12) * np.sin(frames / random.uniform(3, 15))
    return shifts


def _shifted(picture: np.ndarray, shift: float, speed: float) -> np.ndarray:
    """The picture, which repeats itself sideways, moved by `shift` pixels and blurred by `speed`."""
    if not shift:
        return picture
    whole = int(np.floor(shift))
    part = shift - whole
    moved = np.roll(picture, whole, 1) * (1 - part) + np.roll(picture, whole + 1, 1) * part
    return cv2.blur(moved, (1 + min(12, int(speed)), 1))
