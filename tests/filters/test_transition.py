"""Transition: single shots score below 0.16, and spans with a cut or a dissolve score above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from filters.base import ClipInfo, Frames
from filters.transition import Transition
from tests.render import dissolve, pan, scene, slide, texture

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "video"
INFO = ClipInfo(duration_s=1, frames=2, fps=24, width=320, height=180)
BOUND = 0.16
SIZE = (96, 54)
SINGLE = [
    ("flower.mp4", 0, 150),
    ("friday.mp4", 0, 185),
    ("chaplin.mp4", 0, 241),
    ("cup.mp4", 0, 217),
    ("horse.mp4", 0, 49),
    ("hiker.mp4", 0, 49),
    ("kitten.mp4", 0, 49),
    ("bigbuckbunny.mp4", 0, 132),
    ("train_running.mp4", 0, 49),
    ("bottle-detection.mp4", 0, 300),
    ("bottle-detection.mp4", 300, 600),
    ("bikes.mp4", 0, 30),
    ("bikes.mp4", 30, 76),
    ("bikes.mp4", 76, 137),
    ("bikes.mp4", 137, 187),
    ("bikes.mp4", 187, 242),
    ("nasa_13013.mp4", 0, 126),
    ("nasa_13013.mp4", 151, 202),
    ("nasa_13013.mp4", 202, 325),
    ("testvideo.mp4", 30, 180),
    ("testvideo.mp4", 231, 343),
    ("testvideo.mp4", 413, 536),
    ("testvideo.mp4", 558, 675),
    ("tree.avi", 0, 68),
]
DOUBLE = [
    ("nasa_13013.mp4", 100, 200),  # a dissolve
    ("nasa_13013.mp4", 0, 202),
    ("nasa_13013.mp4", 151, 325),
    ("bikes.mp4", 0, 76),
    ("bikes.mp4", 30, 137),
    ("bikes.mp4", 76, 187),
    ("bikes.mp4", 137, 242),
    ("testvideo.mp4", 500, 600),  # a dissolve
    ("testvideo.mp4", 413, 675),
    ("testvideo.mp4", 231, 536),  # a black gap
    ("testvideo.mp4", 0, 180),
]


@lru_cache(maxsize=1)
def footage(name: str) -> list[np.ndarray]:
    """All frames of a shared file, 96 pixels wide."""
    if not (SHARED / name).exists():
        pytest.skip("no shared footage here")
    with av.open(str(SHARED / name)) as container:
        return [
            f.reformat(width=96, height=round(96 * f.height / f.width), format="rgb24").to_ndarray()
            for f in container.decode(video=0)
        ]


@lru_cache(maxsize=64)
def shot(name: str, first: int, end: int, n: int = 96) -> list[np.ndarray]:
    """`n` frames of size SIZE, at equal distances between the frames `first` and `end` of a file."""
    frames = footage(name)[first:end]
    return [cv2.resize(frames[int((i + 0.5) / n * len(frames))], SIZE) for i in range(n)]


def distance(frames: Iterable[np.ndarray]) -> float:
    scorer = Transition()
    every = list(frames)
    n = scorer.frames
    images = [every[int((i + 0.5) / n * len(every))] for i in range(n)]
    value = scorer([Frames(INFO, images=images)])[0].values["transition.distance"]
    assert value is not None
    return value


@pytest.mark.parametrize(("name", "first", "end"), SINGLE)
def test_single_shots_score_below_the_bound(name: str, first: int, end: int) -> None:
    assert distance(shot(name, first, end)) < BOUND


@pytest.mark.parametrize(("name", "first", "end"), DOUBLE)
def test_real_changes_score_above_the_bound(name: str, first: int, end: int) -> None:
    assert distance(shot(name, first, end)) > BOUND


@pytest.mark.parametrize(("frames", "recall"), [(0, 0.99), (12, 0.98), (24, 0.97)])
def test_spliced_shots_score_above_the_bound(frames: int, recall: float) -> None:
    """Every ordered pair of shots is joined by a cut, or by a dissolve over an eighth or a quarter."""
    places = np.random.default_rng(0)
    values = []
    for a, b in permutations(SINGLE, 2):
        if a[0] == b[0] == "bottle-detection.mp4":  # the same scene
            continue
        at = int(places.integers(24, 73))  # of 96
        before, after = shot(*a)[: at + frames // 2], shot(*b)[at - frames // 2 :]
        values.append(distance(dissolve(before, after, frames) if frames else before + after))
    assert np.mean(np.array(values) > BOUND) >= recall


@pytest.mark.parametrize("seed", range(4))
def test_rendered_scenes(seed: int) -> None:
    one, other = (list(scene(seed + k, SIZE, frames=120, speed=0.1)) for k in (0, 1))
    assert distance(one) < 0.08
    assert distance(one[:60] + other[:60]) > 0.3
    assert distance(one[:110] + other[:10]) > 0.3
    assert distance(dissolve(one[:70], other[:70], 24)) > 0.3


@pytest.mark.parametrize("speed", [0.05, 0.3, 1.0])
def test_pans_are_single_shots(speed: float) -> None:
    assert distance(pan(2, SIZE, fps=24, seconds=5, speed=speed)) < 0.08


def test_a_slide_scores_zero() -> None:
    assert distance(slide(texture(1, 54, 96), 20)) == pytest.approx(0, abs=1e-6)


def test_a_change_of_light_alone_scores_low() -> None:
    image = texture(1, 54, 96).astype(float)
    flicker = [np.clip(image * (0.9 + 0.2 * (k > 40)), 0, 255).astype(np.uint8) for k in range(80)]
    assert distance(flicker) < BOUND


@pytest.mark.parametrize("images", [[], [np.zeros((54, 96, 3), np.uint8)]])
def test_a_clip_with_too_few_frames_has_no_number(images: Sequence[np.ndarray]) -> None:
    assert Transition()([Frames(INFO, images=images)])[0].values == {"transition.distance": None}


def test_two_frames_are_enough() -> None:
    images = [texture(1, 54, 96), texture(2, 54, 96, dark=(0, 60, 0), light=(90, 255, 90))]
    value = Transition()([Frames(INFO, images=images)])[0].values["transition.distance"]
    assert value is not None
    assert value > BOUND
