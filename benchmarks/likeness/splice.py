"""Films spliced from single shots, with cuts and gradual transitions whose frames are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from benchmarks.likeness.events import happen
from benchmarks.likeness.shot import SIZE, Light, Random, Style, flat, sky, take, texture, title
from benchmarks.likeness.shots import SingleShot

_SHORT_BLACK = 6  # frames of black between two fades, which are one transition then
_down, _across = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)


@dataclass
class Film:
    """pictures: (n, 18, 32, 3) uint8. cuts: first frames of shots. gradual: first and last frames."""

    pictures: np.ndarray
    cuts: list[int]
    gradual: list[tuple[int, int]]


@dataclass
class _Reel:
    """The film so far. `open` is the present shot, of which nothing is in the film yet."""

    random: Random
    pictures: list[np.ndarray] = field(default_factory=list)
    open: list[np.ndarray] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    gradual: list[tuple[int, int]] = field(default_factory=list)

    def add(self, pictures: Sequence[np.ndarray]) -> None:
        self.pictures += pictures

    def add_gradual(self, pictures: Sequence[np.ndarray]) -> None:
        if pictures:
            self.gradual.append((len(self.pictures), len(self.pictures) + len(pictures) - 1))
            self.add(pictures)

    def cut_here(self) -> None:
        self.cuts.append(len(self.pictures))

    def curve(self, length: int) -> np.ndarray:
        """Shares between 0 and 1, even or with a soft start and end."""
        share = (np.arange(length) + 1) / (length + 1)
        return share if self.random.random() < 0.7 else 3 * share**2 - 2 * share**3

    def length(self, least: float, most: float, limit: int) -> int:
        """A number of frames, short ones as often as long ones."""
        return int(min(limit, np.exp(self.random.uniform(np.log(least), np.log(most)))))


def _mix(a: np.ndarray, b: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    return a * (1 - share) + b * share


def film(shots: Sequence[SingleShot], seed: int, frames: int = 400) -> Film:
    """A film of about `frames` frames. The same seed and shots give the same film."""
    random = np.random.default_rng(seed)
    style = Style.draw(random)
    pace = random.choice([20, 45, 90, 150, 300])
    # Long shots are drawn more often, but not in proportion.
    weights = np.sqrt([len(shot.frames) for shot in shots])
    weights /= weights.sum()
    last: SingleShot | None = None
    light: Light | None = None

    def shot() -> list[np.ndarray]:
        nonlocal last, light
        length = int(np.clip(random.exponential(pace) + 10, 12, 260))
        draw = random.random()
        if draw < 0.12:
            return happen(take(title(random), length, style, random), shots, random)
        if draw < 0.16:
            return happen(take(sky(random), length, style, random), shots, random)
        # Another part of the same shot, in the same light: the hardest cuts.
        if last is None or random.random() > 0.3:
            last = texture(random) if random.random() < 0.06 else shots[random.choice(len(shots), p=weights)]
        if light is None or random.random() > 0.3:
            light = Light.draw(style, random)
        return happen(take(last, length, style, random, light), shots, random)

    reel = _Reel(random)
    reel.open = shot()
    if random.random() < 0.3:
        _fade_in_at_the_start(reel)
    while len(reel.pictures) + len(reel.open) < frames:
        if random.random() < 0.06:
            _title_on_its_ground(reel, style)
            reel.open = shot()
        _join(reel, shot())
    _end(reel)
    return Film(_finished(reel, style), sorted(set(reel.cuts)), sorted(reel.gradual))


def _join(reel: _Reel, following: list[np.ndarray]) -> None:
    room = min(len(reel.open), len(following)) - 4
    kind = reel.random.random()
    if kind < 0.6 or room < 8:
        _hard_cut(reel, following)
    elif kind < 0.82:
        _dissolve(reel, following, room)
    elif kind < 0.94:
        _fade_through(reel, following, room)
    else:
        _wipe(reel, following, room)


def _hard_cut(reel: _Reel, following: list[np.ndarray]) -> None:
    random = reel.random
    if random.random() < 0.15:  # one frame shows both shots
        following[0] = _mix(reel.open[-1], following[0], random.uniform(0.2, 0.8))
    if random.random() < 0.4:
        _settle(following, random)
    reel.add(reel.open)
    reel.cut_here()
    if random.random() < 0.04:  # black or white between two cuts
        reel.add([flat(random.choice([0, 0, 255]))] * int(random.integers(3, 20)))
        reel.cut_here()
    reel.open = following


def _settle(pictures: list[np.ndarray], random: Random) -> None:
    """An encoder spends few bits on the first frames of a shot, and betters them afterwards."""
    blurred = random.random() < 0.7
    noise = random.normal(size=pictures[0].shape[:2]) * random.uniform(0, 6)
    for k in range(int(random.integers(1, 4))):
        share = 0.5**k
        picture = pictures[k].copy()
        if blurred:
            picture += (cv2.blur(picture, (3, 3)) - picture) * share
        picture[..., 0] = np.clip(picture[..., 0] + noise * share, 0, 255)
        pictures[k] = picture


def _dissolve(reel: _Reel, following: list[np.ndarray], room: int) -> None:
    length = reel.length(4, 45, room)
    reel.add(reel.open[:-length])
    old, new = reel.open[-length:], following[:length]
    reel.add_gradual([_mix(a, b, s) for a, b, s in zip(old, new, reel.curve(length), strict=True)])
    reel.open = following[length:]


def _fade_through(reel: _Reel, following: list[np.ndarray], room: int) -> None:
    """Through black or white; one of the two fades may be a cut."""
    random = reel.random
    ground = flat(random.choice([0, 0, 0, 255]))
    out, into = reel.length(3, 30, room), reel.length(3, 30, room)
    hold = int(random.choice([0, 1, 2, 5, 12, 25]))
    draw = random.random()
    out, into = (out, 0) if draw < 0.2 else (0, into) if draw < 0.32 else (out, into)
    reel.add(reel.open[: len(reel.open) - out])
    faded = [
        _mix(a, ground, s) for a, s in zip(reel.open[len(reel.open) - out :], reel.curve(out), strict=True)
    ]
    risen = [_mix(ground, b, s) for b, s in zip(following[:into], reel.curve(into), strict=True)]
    if out and into and hold <= _SHORT_BLACK:
        reel.add_gradual([*faded, *[ground] * hold, *risen])
    else:
        if not out and hold:
            reel.cut_here()
        reel.add_gradual(faded)
        reel.add([ground] * hold)
        if not into or (not out and not hold):
            reel.cut_here()
        reel.add_gradual(risen)
    reel.open = following[into:]


def _wipe(reel: _Reel, following: list[np.ndarray], room: int) -> None:
    length = int(min(room, reel.random.integers(5, 28)))
    wipe = _Wipe(reel.random)
    reel.add(reel.open[:-length])
    old, new = reel.open[-length:], following[:length]
    shares = (np.arange(length) + 1) / (length + 1)
    reel.add_gradual([wipe(a, b, s) for a, b, s in zip(old, new, shares, strict=True)])
    reel.open = following[length:]


class _Wipe:
    """Pictures of which a part shows the old shot, and a part the new one."""

    def __init__(self, random: Random):
        kinds = (
            self._sideways,
            self._upwards,
            self._push,
            self._ellipse,
            self._soft,
            self._passing,
            self._zoom,
            self._blur,
        )
        self._kind = kinds[random.integers(len(kinds))]
        self._tone = random.uniform(0, 255)
        self._angle = random.uniform(0, 2 * np.pi)
        self._softness = random.uniform(0.2, 6)
        self._width = int(random.integers(8, SIZE[0]))

    def __call__(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        """share: of the time of the wipe, between 0 and 1."""
        return self._kind(old, new, share)

    def _sideways(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        return np.where((_across < round(SIZE[0] * share))[..., None], new, old)

    def _upwards(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        return np.where((_down >= SIZE[1] - round(SIZE[1] * share))[..., None], new, old)

    def _push(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        x = round(SIZE[0] * share)
        return np.concatenate([old[:, x:], new[:, :x]], 1)

    def _ellipse(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        inside = (_across - 16) ** 2 + (_down - 9) ** 2 * 2.5 < (share * 26) ** 2
        return np.where(inside[..., None], new, old)

    def _soft(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        along = np.cos(self._angle) * (_across - 16) + np.sin(self._angle) * (_down - 9)
        edge = np.clip((along + (2 * share - 1) * 22) / self._softness, -50, 50)
        return _mix(old, new, (1 / (1 + np.exp(-edge)))[..., None])

    def _passing(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        """A shape passes, and behind it is the new shot."""
        left = int(-self._width + (SIZE[0] + self._width) * share)
        picture = np.where((_across < left)[..., None], new, old)
        band = (_across >= left) & (_across < left + self._width)
        return np.where(band[..., None], flat(self._tone), picture)

    def _zoom(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        """Into the old shot, and out of the new one."""
        turn = cv2.getRotationMatrix2D((16, 9), 0, 1 + 2.5 * min(share, 1 - share))
        picture = old if share < 0.5 else new
        return cv2.warpAffine(picture, turn, SIZE, borderMode=cv2.BORDER_REFLECT)

    def _blur(self, old: np.ndarray, new: np.ndarray, share: float) -> np.ndarray:
        size = 1 + int(10 * (1 - abs(2 * share - 1)))
        return cv2.blur(_mix(old, new, share), (size, size))


def _fade_in_at_the_start(reel: _Reel) -> None:
    random = reel.random
    length = int(min(random.integers(4, 30), len(reel.open) - 4))
    ground = flat(random.choice([0, 0, 255]))
    reel.add([ground] * int(random.integers(0, 12)))
    reel.add_gradual(
        [_mix(ground, b, s) for b, s in zip(reel.open[:length], reel.curve(length), strict=True)]
    )
    reel.open = reel.open[length:]


def _title_on_its_ground(reel: _Reel, style: Style) -> None:
    """A title whose letters come and go, between two cuts."""
    random = reel.random
    words = take(title(random), int(random.integers(50, 110)), Style(style.step, style.grey, 1), random)
    ground = np.empty_like(words[0])
    ground[:] = np.median(words[0], (0, 1))
    rise, fall = int(random.integers(5, 22)), int(random.integers(5, 22))
    reel.add(reel.open)
    reel.cut_here()
    reel.add([ground] * int(random.integers(0, 9)))
    reel.add_gradual([_mix(ground, b, s) for b, s in zip(words[:rise], reel.curve(rise), strict=True)])
    reel.add(words[rise:-fall])
    reel.add_gradual([_mix(a, ground, s) for a, s in zip(words[-fall:], reel.curve(fall), strict=True)])
    reel.add([ground] * int(random.integers(1, 9)))
    reel.cut_here()


def _end(reel: _Reel) -> None:
    random = reel.random
    length = int(min(random.integers(4, 30), len(reel.open) - 4))
    if length < 4 or random.random() > 0.3:
        reel.add(reel.open)
        return
    ground = flat(random.choice([0, 0, 255]))
    reel.add(reel.open[:-length])
    reel.add_gradual(
        [_mix(a, ground, s) for a, s in zip(reel.open[-length:], reel.curve(length), strict=True)]
    )
    reel.add([ground] * int(random.integers(0, 10)))


def _finished(reel: _Reel, style: Style) -> np.ndarray:
    """What holds for the whole film: bars, a logo, noise, and the pulses of an encoder."""
    random = reel.random
    pictures = np.stack(reel.pictures)
    if random.random() < 0.35:
        rows = random.random() < 0.5
        bar = int(random.integers(1, 5) if rows else random.integers(2, 8))
        bars = pictures if rows else pictures.transpose(0, 2, 1, 3)
        level = random.choice([0, 0, 0, 16, 255])
        for side in (bars[:, :bar], bars[:, -bar:]):
            side[:] = (level, 128, 128)
    if random.random() < 0.3:
        pictures[:, 1:3, 2:6, 0] = random.integers(0, 256)
    noise = random.choice([0, 0.3, 1, 3])
    noise = min(noise, 0.3) if style.repeats > 1 else noise
    pictures += random.normal(size=pictures.shape) * noise * (1, 0.3, 0.3)
    if random.random() < 0.3:
        step = int(random.choice([12, 24, 48, 60, 250]))
        for first in range(int(random.integers(1, 60)), len(pictures), step):
            pulse = random.normal(size=pictures.shape[1:3]) * random.uniform(0, 4)
            pictures[first : first + 12, ..., 0] += pulse
    return np.clip(pictures + 0.5, 0, 255).astype(np.uint8)
