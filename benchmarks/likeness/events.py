"""What happens within a shot without ending it. Each function changes some pictures of a shot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from benchmarks.likeness.shot import SIZE, Random
from benchmarks.likeness.shots import SingleShot

Pictures = list[np.ndarray]
_down, _across = np.mgrid[: SIZE[1], : SIZE[0]].astype(np.float32)


def happen(pictures: Pictures, others: Sequence[SingleShot], random: Random) -> Pictures:
    """The pictures with some events. others: shots from which things are cut out that pass the lens."""
    pictures = [picture.copy() for picture in pictures]
    n = len(pictures)
    events: list[tuple[float, int, Callable[[], None]]] = [
        (0.12, 12, lambda: _flashes(pictures, random)),
        (0.08, 25, lambda: _explosions(pictures, random)),
        (0.15, 20, lambda: _body(pictures, others[random.integers(len(others))], random)),
        (0.10, 40, lambda: _board(pictures, random, slow=True)),
        (0.05, 20, lambda: _light(pictures, random, most=12)),
        (0.08, 40, lambda: _light(pictures, random, most=80)),
        (0.20, 15, lambda: _overlay(pictures, random)),
        (0.15, 15, lambda: _board(pictures, random, slow=False)),
    ]
    for probability, least, event in events:
        if n > least and random.random() < probability:
            event()
    return pictures


def _stretch(n: int, least: int, most: int, random: Random) -> range:
    length = int(random.integers(least, most + 1))
    first = int(random.integers(3, max(4, n - length - 3)))
    return range(first, min(n, first + length))


def _flashes(pictures: Pictures, random: Random) -> None:
    """White or black frames, or a camera's flash."""
    for _ in range(random.integers(1, 4)):
        frames = _stretch(len(pictures), 1, 5, random)
        strength = random.uniform(40, 255) * (1 if random.random() < 0.75 else -1)
        even = random.random() < 0.3
        for k in frames:
            share = 1 if even else np.sin(np.pi * (k - frames.start + 1) / (len(frames) + 1))
            pictures[k][..., 0] = np.clip(pictures[k][..., 0] + strength * share, 0, 255)
            if abs(strength) > 120:
                pictures[k][..., 1:] = 128 + (pictures[k][..., 1:] - 128) * (1 - 0.6 * share)


def _explosions(pictures: Pictures, random: Random) -> None:
    """Sudden light in a place, which decays."""
    n = len(pictures)
    for _ in range(random.integers(1, 3)):
        first, decay = int(random.integers(3, n - 6)), random.uniform(1.5, 12)
        x, y, radius = random.uniform(0, SIZE[0]), random.uniform(0, SIZE[1]), random.choice([3, 6, 12, 40])
        blob = np.exp(-((_across - x) ** 2 + (_down - y) ** 2) / (2 * radius**2)) * random.uniform(40, 220)
        for k in range(first, min(n, first + int(5 * decay))):
            light = blob * np.exp(-(k - first) / decay) * random.uniform(0.7, 1.1)
            pictures[k] += light[..., None] * (1, -0.12, 0.12)
            pictures[k] = np.clip(pictures[k], 0, 255)


def _light(pictures: Pictures, random: Random, most: int) -> None:
    """The light or the exposure changes within at most so many frames, and stays."""
    frames = _stretch(len(pictures), 1, most, random)
    gain = random.uniform(0.6, 1.5)
    for k in range(frames.start, len(pictures)):
        share = min(1, (k - frames.start + 1) / len(frames))
        pictures[k][..., 0] = np.clip(pictures[k][..., 0] * (1 + (gain - 1) * share), 0, 255)


def _overlay(pictures: Pictures, random: Random) -> None:
    """A lower third, a subtitle or a logo appears and goes, at once or within some frames."""
    frames = _stretch(len(pictures), 6, 80, random)
    tall, wide = int(random.integers(2, 8)), int(random.integers(6, SIZE[0]))
    top, left = int(random.integers(0, SIZE[1] - tall)), int(random.integers(0, SIZE[0] - wide + 1))
    ink = random.choice([0, 255, random.integers(0, 256)])
    box = np.empty((tall, wide, 3), np.float32)
    box[..., 0] = ink + (255 - 2 * ink) * 0.5 * (random.random((tall, wide)) > 0.6)
    box[..., 1:] = random.integers(90, 166, 2)
    fade, opacity = random.choice([1, 1, 4, 8]), random.uniform(0.5, 1)
    for k in frames:
        share = opacity * min(1, (k - frames.start + 1) / fade, (frames.stop - k) / fade)
        part = pictures[k][top : top + tall, left : left + wide]
        part += (box - part) * share


def _board(pictures: Pictures, random: Random, *, slow: bool) -> None:
    """A smooth thing passes the lens; a slow one may stay for a while and goes back."""
    wide, tall = int(random.integers(4, 26)), int(random.integers(5, SIZE[1] + 1))
    board = np.empty((tall, wide, 3), np.float32)
    texture = cv2.resize(random.normal(0, 28, (5, 7)).astype(np.float32), (wide, tall))
    board[..., 0] = np.clip(random.uniform(0, 255) + texture, 0, 255)
    board[..., 1:] = random.integers(100, 156, 2)
    top = SIZE[1] - tall if random.random() < 0.7 else 0
    from_left = random.random() < 0.5
    if slow:
        first, way = int(random.integers(3, len(pictures) // 2)), int(random.integers(10, 60))
        stay, reach = int(random.integers(0, 50)), random.uniform(0.2, 1)
        frames = range(first, min(len(pictures), first + 2 * way + stay))
        shares = [reach * min(1, (k + 1) / way, (2 * way + stay - k) / way) for k in range(len(frames))]
        places = [-wide + wide * share for share in shares]
    else:
        frames = _stretch(len(pictures), 4, 22, random)
        places = [-wide + (SIZE[0] + wide) * (k + 1) / (len(frames) + 1) for k in range(len(frames))]
    for k, place in zip(frames, places, strict=True):
        left = int(place if from_left else SIZE[0] - wide - place)
        a, b = max(0, left), min(SIZE[0], left + wide)
        if b > a:
            pictures[k][top : top + tall, a:b] = board[:, a - left : b - left]


def _body(pictures: Pictures, other: SingleShot, random: Random) -> None:
    """A person, a car or a hand, cut out of another shot, comes, may stay, and goes."""
    n = len(pictures)
    first = int(random.integers(2, max(3, n - 8)))
    way, stay = int(np.exp(random.uniform(np.log(4), np.log(60)))), int(random.integers(0, 60))
    reach = random.uniform(0.3, 1.1)
    side = [(-SIZE[0], 0), (SIZE[0], 0), (0, 22), (0, -22)][random.integers(4)]
    x, y = random.uniform(4, 28), random.uniform(4, 16)
    radius_x, radius_y = random.uniform(3, 14), random.uniform(3, 12)
    gain, sway = random.uniform(0.6, 1.2), random.uniform(0, 2)
    number = int(random.integers(len(other.frames)))
    for k in range(first, min(n, first + 2 * way + stay)):
        since = k - first
        away = 1 - min(1, reach) * min(1, (since + 1) / way, (2 * way + stay - since) / way)
        middle_x = x + side[0] * away + sway * np.sin(k / 4)
        middle_y = y + side[1] * away + sway * np.cos(k / 5)
        far = ((_across - middle_x) / radius_x) ** 2 + ((_down - middle_y) / radius_y) ** 2
        if side[1] > 0:  # what comes from below reaches down to the edge
            far = np.where(_down > middle_y, np.minimum(far, ((_across - middle_x) / radius_x) ** 2), far)
        mask = 1 / (1 + np.exp(np.minimum(60, (far - 1) * 6)))[..., None]
        frame = other.frames[min(len(other.frames) - 1, number + since % len(other.frames))]
        body = cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        body[..., 0] = np.clip(body[..., 0] * gain, 0, 255)
        pictures[k] += (body - pictures[k]) * mask
