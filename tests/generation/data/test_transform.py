"""The frames, the window and the pixels of a sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import Bucket, Data
from generation.data.transform import (
    MOTION_TAGS,
    fit,
    frame_indices,
    last_start,
    motion_tag,
    plan_sample,
    window,
)
from tests.generation.data.test_plan import index_of

RATES = [8.0, 12.5, 24.0, 24000 / 1001, 25.0, 30000 / 1001, 30.0, 50.0, 60.0]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 5, 9, 17, 49]),
    st.sampled_from(RATES),
    st.sampled_from([4.0, 8.0, 12.0, 16.0, 24.0]),
    st.integers(0, 200),
    st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
)
def test_frames_are_the_nearest_in_time(
    count: int, source: float, fps: float, spare: int, at: float | None
) -> None:
    frames = math.ceil((count - 1) / fps * source) + 1 + spare
    found = frame_indices(count, source, fps, frames, at)
    room = (frames - 1) / source - (count - 1) / fps
    times = (0.5 if at is None else at) * room + np.arange(count) / fps
    shown = np.arange(frames) / source
    assert len(found) == count
    for index, t in zip(found, times, strict=True):
        assert abs(shown[index] - t) <= np.abs(shown - t).min() + 1e-5 / source  # ties: either frame


@pytest.mark.parametrize("source", RATES)
def test_steps_are_even_where_the_rates_divide(source: float) -> None:
    """The middle may lie between two frames, where the last bit of a division could decide."""
    for frames in range(97, 103):
        found = frame_indices(9, source, source / 3, frames)
        assert set(np.diff(found)) == {3}
        assert abs((found[0] + found[-1]) / 2 - (frames - 1) / 2) <= 0.5


def test_a_clip_half_a_frame_short_still_fills_the_bucket() -> None:
    assert last_start(9, 24.0, 7.0, 28) == 0
    assert last_start(9, 24.0, 7.0, 27) < 0
    found = frame_indices(9, 24.0, 7.0, 28)
    assert (found[0], found[-1]) == (0, 27)


def test_the_end_of_the_clip_is_reached_but_not_passed() -> None:
    first = frame_indices(9, 30.0, 8.0, 100, 0.0)
    last = frame_indices(9, 30.0, 8.0, 100, math.nextafter(1, 0))
    assert first[0] == 0
    assert last[-1] == 99
    assert last[0] == 99 - 30


def test_motion_tags() -> None:
    bounds = (0.01, 0.03, 0.1, 0.3)
    tags = [motion_tag(v, bounds) for v in (0.0, 0.01, 0.05, 0.299, 0.3)]
    assert tags == ["very low motion, ", "low motion, ", "medium motion, ", "high motion, ", MOTION_TAGS[4]]
    assert motion_tag(None, bounds) == motion_tag(math.nan, bounds) == ""


# ---- windows


def fixed(value: float) -> Callable[[str], float]:
    return lambda name: value


def test_a_centred_window_is_the_largest_of_the_buckets_aspect() -> None:
    assert window(1920, 1080, Bucket(frames=1, height=256, width=480), "center", fixed(0)) == (
        0,
        28,
        1920,
        1052,
    )
    assert window(1080, 1920, Bucket(frames=1, height=256, width=256), "center", fixed(0)) == (
        0,
        420,
        1080,
        1500,
    )
    assert window(64, 48, Bucket(frames=1, height=96, width=96), "center", fixed(0)) == (8, 0, 56, 48)


def test_a_random_window_keeps_the_scale_and_stays_inside() -> None:
    bucket = Bucket(frames=1, height=48, width=64)
    seen = {window(70, 50, bucket, "random", fixed(u)) for u in np.linspace(0, 0.9999, 50)}
    assert {(w[2] - w[0], w[3] - w[1]) for w in seen} == {(64, 48)}
    assert min(w[0] for w in seen) == min(w[1] for w in seen) == 0
    assert max(w[2] for w in seen) == 70
    assert max(w[3] for w in seen) == 50
    # A smaller clip is scaled up: the window is the largest window with the bucket's aspect.
    smaller = window(40, 20, bucket, "random", fixed(0.5))
    assert smaller == pytest.approx((20 - 40 / 3, 0, 20 + 40 / 3, 20))


# ---- pixels


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_window_at_native_scale_is_copied() -> None:
    pictures = noise(3, 50, 70, 3)
    assert np.array_equal(fit(pictures, (5.0, 2.0, 69.0, 50.0), 48, 64), pictures[:, 2:50, 5:69])


@pytest.mark.parametrize("size", [(24, 32), (30, 50), (96, 128)])
def test_scaling_is_the_antialiased_bicubic_of_torch(size: tuple[int, int]) -> None:
    pictures = noise(2, 48, 64, 3) // 2 + 64  # PIL clips between its two passes
    found = fit(pictures, (0.0, 0.0, 64.0, 48.0), *size)
    source = torch.from_numpy(pictures).permute(0, 3, 1, 2).double()
    expected = F.interpolate(source, size, mode="bicubic", antialias=True).clamp(0, 255).permute(0, 2, 3, 1)
    assert np.abs(found.astype(float) - expected.numpy()).max() <= 1.5  # PIL rounds between its passes, too


def test_a_scaled_window_shows_what_lies_there() -> None:
    """A ramp shows the source place of each pixel, because kernels with sum 1 keep a ramp."""
    x = np.arange(200) * 1.0
    ramp = np.broadcast_to(x[None, None, :, None], (1, 60, 200, 3)).astype(np.uint8)
    box = (30.5, 10.0, 130.5, 60.0)
    found = fit(ramp, box, 20, 40)[0, 10, :, 0].astype(float)
    centres = box[0] + (np.arange(40) + 0.5) * 100 / 40 - 0.5
    assert np.abs(found - centres)[3:-3].max() <= 0.6


def test_a_sample_is_decided_from_the_columns() -> None:
    index = index_of([(33, 24.0, 64, 48), (1, math.nan, 64, 48)], **{"motion.speed": [0.2, math.nan]})
    bucket = Bucket(frames=9, height=48, width=64)
    data = Data(fps=8, buckets=(bucket, Bucket(frames=1, height=48, width=64)), motion_tag=True)
    video = plan_sample(index, 0, data, bucket, False, 5, fixed(0.5))
    assert (len(video.indices), video.caption, video.position) == (9, "high motion, clip 00000000", 5)
    single = plan_sample(index, 0, data, bucket, True, 5, fixed(0.99))
    assert (single.indices, single.caption) == ((32,), "clip 00000000")  # an image has no motion
    image = plan_sample(index, 1, data, data.buckets[1], False, 5, fixed(0.5))
    assert (image.indices, image.caption) == ((0,), "clip 00000001")
    assert len({video.transform, single.transform, image.transform}) == 3
