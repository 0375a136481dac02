"""Borders: bars of known size are found, and dark pictures without bars score 0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from filters.base import ClipInfo, Frames
from filters.borders import Borders
from tests.render import letterbox, read_frames, scene, texture, write_video

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "video"
INFO = ClipInfo(duration_s=1, frames=2, fps=24, width=320, height=180)
PILLARBOXED = {"chaplin.mp4": 0.22}  # 71 of 640 columns on either side
# Not used: testvideo and nasa_13013 have several scenes; the synthetic files are pictures on plain black.
UNBARRED = [
    "bigbuckbunny.mp4",
    "bikes.mp4",
    "bottle-detection.mp4",
    "cup.mp4",
    "flower.mp4",
    "friday.mp4",
    "hiker.mp4",
    "horse.mp4",
    "kitten.mp4",
    "train_running.mp4",
    "tree.avi",
]


def fit(image: np.ndarray) -> np.ndarray:
    """A grey frame at the scorer's size."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = Borders().sampling.size(image.shape[1], image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def fraction(images: Sequence[np.ndarray]) -> float:
    value = Borders()([Frames(INFO, images=[fit(i) for i in images])])[0].values["borders.fraction"]
    assert value is not None
    return value


def real_frames(name: str) -> list[np.ndarray]:
    if not (SHARED / name).exists():
        pytest.skip("no shared footage here")
    with av.open(str(SHARED / name)) as container:
        grey = [
            f.to_ndarray(format="gray") for _, f in zip(range(60), container.decode(video=0), strict=False)
        ]
    return grey[7::15]


@pytest.mark.parametrize("size", [(426, 240), (640, 360), (1280, 720)])
@pytest.mark.parametrize("part", [0.05, 0.12, 0.25])
def test_bars_are_measured_after_coding(tmp_path: Path, size: tuple[int, int], part: float) -> None:
    shapes = {
        "letterbox": (part, part, 0, 0),
        "pillarbox": (0, 0, part, part),
        "both": (part, part, part, part),
        "top": (part, 0, 0, 0),
        "uneven": (part, 0.06, 0, part),
    }
    source = list(scene(1, size, frames=4, speed=0.5))
    for shape, bars in shapes.items():
        path = write_video(tmp_path / "b.mp4", (letterbox(f, *bars) for f in source), crf=28)
        truth = 1 - (1 - bars[0] - bars[1]) * (1 - bars[2] - bars[3])
        assert fraction([f for _, f in read_frames(path)]) == pytest.approx(truth, abs=0.01), shape


@pytest.mark.parametrize("level", [0, 8, 16, 22])
def test_bars_may_be_dark_grey(level: int) -> None:
    frames = [letterbox(f, 0.12, 0.12, level=level) for f in scene(2, (640, 360), frames=4, speed=0.5)]
    assert fraction(frames) == pytest.approx(0.24, abs=0.01)


def test_each_side_is_measured() -> None:
    image = fit(letterbox(texture(5, 720, 1280), 0.10, 0.05, 0.20, 0.02))
    top, bottom, left, right = Borders().bars(image)
    height, width = image.shape
    measured = [top / height, bottom / height, left / width, right / width]
    assert measured == pytest.approx([0.10, 0.05, 0.20, 0.02], abs=0.01)


def test_one_dark_frame_does_not_hide_bars() -> None:
    frames = [letterbox(f, 0.12, 0.12) for f in scene(3, (640, 360), frames=3)]
    assert fraction([*frames, np.zeros_like(frames[0])]) == pytest.approx(0.24, abs=0.01)


@pytest.mark.parametrize(("name", "truth"), PILLARBOXED.items())
def test_real_pillarbox(name: str, truth: float) -> None:
    assert fraction(real_frames(name)) == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("name", UNBARRED)
def test_real_clips_without_bars(name: str) -> None:
    assert fraction(real_frames(name)) <= 0.01


@pytest.mark.parametrize("name", ["flower.mp4", "cup.mp4", "bikes.mp4", "hiker.mp4", "train_running.mp4"])
@pytest.mark.parametrize("bars", [(0.12, 0.12, 0, 0), (0, 0, 0.12, 0.12), (0.05, 0.25, 0.1, 0)])
def test_bars_that_are_added_to_real_clips(name: str, bars: tuple[float, float, float, float]) -> None:
    truth = 1 - (1 - bars[0] - bars[1]) * (1 - bars[2] - bars[3])
    assert fraction([letterbox(f, *bars) for f in real_frames(name)]) == pytest.approx(truth, abs=0.01)


def night(rng: np.random.Generator, noise: float) -> np.ndarray:
    """A dark sky over an uneven skyline with lit windows: (360, 640) grey."""
    image = np.full((360, 640), 6.0)
    skyline = 200 + 60 * np.sin(np.arange(640) / 25) + np.repeat(np.arange(32) * 37 % 41, 20)
    lit = np.arange(360)[:, None] > skyline[None]
    image[lit] = 28
    image[260:300:8, 20:620:10] = 180
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
def test_a_night_scene_has_no_bars(noise: float) -> None:
    rng = np.random.default_rng(0)
    assert fraction([night(rng, noise) for _ in range(4)]) == 0.0


def test_a_dark_gradient_has_no_bars() -> None:
    ramp = np.linspace(0, 90, 360)[:, None].repeat(640, 1).astype(np.uint8)
    assert fraction([ramp] * 4) == 0.0
    assert fraction([np.ascontiguousarray(ramp[::-1])] * 4) == 0.0


def test_a_dark_floor_is_not_a_bar() -> None:
    room = fit(texture(4, 360, 640))
    floor = fit(texture(6, 360, 640))
    room[-80:] = 4 + floor[-80:] // 8  # 4 to 35: dark, with a grain
    assert fraction([room] * 4) == 0.0


def test_a_white_top_is_not_a_bar() -> None:
    sky = fit(texture(4, 360, 640))
    sky[:60] = 255
    assert fraction([sky] * 4) == 0.0


def test_words_on_black_are_no_letterboxed_picture() -> None:
    words = np.zeros((360, 640), np.uint8)
    cv2.putText(words, "copyright by nobody at all", (60, 330), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 2)
    assert fraction([words] * 4) == 0.0


def test_a_black_frame_has_no_bars() -> None:
    assert fraction([np.zeros((360, 640), np.uint8)] * 4) == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 3)])
def test_tiny_frames(shape: tuple[int, int]) -> None:
    assert fraction([np.full(shape, 200, np.uint8)]) == 0.0


def test_a_clip_without_frames_has_no_number() -> None:
    assert Borders()([Frames(INFO)])[0].values == {"borders.fraction": None}
