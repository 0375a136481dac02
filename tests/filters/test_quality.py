"""Quality: blur lowers sharpness at any contrast; luma statistics are correct."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from filters.base import ClipInfo, Frames
from filters.quality import Quality, sharpness
from tests.render import texture

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "video"
INFO = ClipInfo(duration_s=1, frames=2, fps=24, width=320, height=180)


def score(images: Sequence[np.ndarray]) -> dict[str, float | None]:
    return Quality()([Frames(INFO, images=images)])[0].values


def grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def fit(image: np.ndarray) -> np.ndarray:
    size = Quality().sampling.size(image.shape[1], image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def middle_frame(name: str) -> np.ndarray:
    if not (SHARED / name).exists():
        pytest.skip("no shared footage here")
    with av.open(str(SHARED / name)) as container:
        for k, frame in enumerate(container.decode(video=0)):
            if k == 24:
                return fit(frame.to_ndarray(format="gray"))
    raise AssertionError


def blurs(image: np.ndarray) -> list[float]:
    steps = [image] + [cv2.GaussianBlur(image, (0, 0), s) for s in (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)]
    return [sharpness(x) for x in steps]


def assert_falls(values: list[float]) -> None:
    assert all(a > b for a, b in itertools.pairwise(values)), values


@pytest.mark.parametrize("slope", [0.8, 1.1, 1.5])
def test_each_further_blur_lowers_sharpness(slope: float) -> None:
    assert_falls(blurs(grey(texture(1, 180, 320, slope=slope))))


@pytest.mark.parametrize("name", ["flower.mp4", "bikes.mp4", "kitten.mp4", "chaplin.mp4", "nasa_13013.mp4"])
def test_each_further_blur_lowers_sharpness_of_real_frames(name: str) -> None:
    values = blurs(middle_frame(name))
    assert_falls(values)
    assert values[0] > 0.25  # without blur
    assert values[-2] < 0.2  # with 2 pixels of blur


def test_contrast_and_brightness_do_not_change_sharpness() -> None:
    image = grey(texture(2, 180, 320))
    faint = (40 + 0.5 * image.astype(float)).round().astype(np.uint8)
    assert sharpness(faint) == pytest.approx(sharpness(image), rel=0.02)


def test_a_pale_blurred_picture_is_not_sharp() -> None:
    """The rounding error is the only fine structure of such a picture."""
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    image = (60 + 0.13 * x + 0.17 * y).astype(np.float32)
    cv2.circle(image, (64, 64), 30, 116, -1)
    for contrast in (1, 0.7, 0.5):
        blurred = 110 + contrast * (cv2.GaussianBlur(image, (0, 0), 4.5) - 60)
        limited = (blurred * 219 / 255).round() * 255 / 219  # rounded to video levels
        assert sharpness(limited.round().astype(np.uint8)) < 0.1


def test_size_hardly_changes_sharpness() -> None:
    values = [sharpness(fit(grey(texture(2, h, w)))) for w, h in [(640, 360), (960, 540), (1920, 1080)]]
    assert max(values) / min(values) < 1.15, values


def test_a_flat_frame_is_not_sharp() -> None:
    assert sharpness(np.full((180, 320), 120, np.uint8)) == 0.0


def test_luma_statistics() -> None:
    image = np.zeros((100, 320), np.uint8)
    image[:25], image[25:50], image[50:75] = 250, 249, 20
    image[75:] = 21
    values = score([image])
    assert values["quality.brightness"] == pytest.approx((250 + 249 + 20 + 21) / 4 / 255)
    assert values["quality.contrast"] == pytest.approx(np.std([250, 249, 20, 21]) / 255)
    assert values["quality.blown"] == 0.25
    assert values["quality.dark"] == 0.25


def test_values_are_means_over_frames_and_cover_the_columns() -> None:
    black, white = np.zeros((90, 160), np.uint8), np.full((90, 160), 255, np.uint8)
    values = score([black, white])
    assert values["quality.brightness"] == 0.5
    assert values["quality.blown"] == values["quality.dark"] == 0.5
    assert list(values) == [c.name for c in Quality.columns]


def test_a_clip_without_frames_has_no_numbers() -> None:
    assert score([]) == {c.name: None for c in Quality.columns}
