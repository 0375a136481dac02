"""Scores of videos and of sets of videos, compared with closed forms and with other computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor

from generation import draws
from generation.evaluate import scores
from generation.media import from_uint8
from tests.generation import shapes, synthetic


def _clip(*key: int | str, batch: int = 2, frames: int = 5, height: int = 24, width: int = 32) -> Tensor:
    """Clips with texture at several scales, (B, 3, T, H, W) within [-0.7, 0.7]."""
    field = torch.zeros(batch * frames, 3, height, width)
    for size in (1, 2, 8):
        rough = draws.normal((batch * frames, 3, height // size, width // size), "clip", size, *key)
        field += F.interpolate(rough, (height, width), mode="nearest")
    return field.reshape(batch, frames, 3, height, width).transpose(1, 2).div(3).clamp(-0.7, 0.7)


def _noise(like: Tensor, *key: int | str) -> Tensor:
    return draws.normal(like.shape, "noise", *key)


# ---- a video beside the true one


@pytest.mark.parametrize("offset", [0.1, -0.25])
def test_psnr_of_an_offset(offset: float) -> None:
    """PSNR compares the square of the offset with the square of the range, 2."""
    true = _clip()
    expected = -20 * math.log10(abs(offset) / 2)
    assert scores.psnr(true + offset, true).tolist() == pytest.approx([expected] * 2, abs=1e-3)


def test_psnr_is_of_each_sample_and_ends_at_100() -> None:
    true = _clip()
    made = true.clone()
    made[1] += 0.2
    assert scores.psnr(made, true).tolist() == pytest.approx([100, 20], abs=1e-3)


def test_psnr_cuts_off_what_cannot_be_shown() -> None:
    true = torch.ones(1, 3, 2, 8, 8)
    assert scores.psnr(true + 5, true).tolist() == pytest.approx([100])


def _ssim(made: Tensor, true: Tensor) -> float:
    """SSIM of a video in [-1, 1], with frames mirrored at their borders.

    The window is a Gaussian with a deviation of 1.5 pixels, 11 pixels wide.
    """
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2

    def local(values: np.ndarray) -> np.ndarray:
        views = np.lib.stride_tricks.sliding_window_view(values, (11, 11), axis=(-2, -1))
        found: np.ndarray = np.einsum("...ij,ij->...", views, window)
        return found

    around = [(0, 0), (0, 0), (5, 5), (5, 5)]
    x, y = (np.pad(video.double().numpy(), around, mode="reflect") for video in (made, true))
    a, b = local(x), local(y)
    xx, yy, xy = local(x * x) - a * a, local(y * y) - b * b, local(x * y) - a * b
    c, d = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    found = (2 * a * b + c) * (2 * xy + d) / ((a * a + b * b + c) * (xx + yy + d))
    return float(found.mean())


def test_ssim_is_its_formula() -> None:
    true = _clip()
    made = (true + 0.2 * _noise(true)).clamp(-1, 1)
    expected = [_ssim(m, t) for m, t in zip(made, true, strict=True)]
    assert scores.ssim(made, true).tolist() == pytest.approx(expected, abs=1e-4)
    assert expected[0] < 0.9  # values differ enough for the line above


def test_ssim_is_1_for_the_same_and_falls_with_noise() -> None:
    true = _clip()
    found = [scores.ssim(true + level * _noise(true), true) for level in (0, 0.05, 0.2, 0.8)]
    assert found[0].tolist() == pytest.approx([1, 1], abs=1e-5)
    for less, more in itertools.pairwise(found):
        assert bool((more < less - 0.02).all())


def test_an_offset_that_stays_is_no_flicker() -> None:
    true = _clip()
    assert scores.flicker(true + 0.2, true).tolist() == pytest.approx([100, 100])
    assert scores.psnr(true + 0.2, true).tolist() == pytest.approx([20, 20], abs=1e-3)


def test_an_offset_that_comes_and_goes_is() -> None:
    """Differences are twice as large, and so is their range."""
    true = _clip()
    sign = torch.tensor([1.0, -1, 1, -1, 1]).view(5, 1, 1)
    assert scores.flicker(true + 0.2 * sign, true).tolist() == pytest.approx([20, 20], abs=1e-3)
    still = true + 0.3 * _noise(true[:, :, :1]).clamp(-1, 1)
    dancing = true + 0.3 * _noise(true).clamp(-1, 1)
    assert bool((scores.flicker(dancing, true) + 20 < scores.flicker(still, true)).all())


# ---- detail


def _stripes(period: float, width: int = 36) -> Tensor:
    """A video (1, 3, 2, 24, width) of upright stripes."""
    return 0.5 * torch.cos(2 * math.pi * torch.arange(width) / period).expand(1, 3, 2, 24, width)


def test_bicubic_keeps_what_is_even_and_loses_a_fine_stripe() -> None:
    even = torch.tensor([0.3, -0.9]).view(2, 1, 1, 1, 1).expand(2, 3, 2, 24, 36)
    assert torch.allclose(scores.bicubic(even, 2), even, atol=1e-6)
    wide, fine = _stripes(18), _stripes(3)
    assert float(scores.error(scores.bicubic(wide, 2), wide)) < 0.001 * float(wide.square().mean())
    assert float(scores.bicubic(fine, 2).square().mean()) < 0.04 * float(fine.square().mean())


def test_frames_are_resized_one_by_one() -> None:
    video = _clip()
    found = scores.resized(video, 36, 20)
    assert found.shape == (2, 3, 5, 36, 20)
    for k in range(5):
        alone = F.interpolate(video[:, :, k], (36, 20), mode="bicubic", antialias=True)
        assert torch.allclose(found[:, :, k], alone.clamp(-1, 1), atol=1e-6)


def test_detail_is_1_for_the_same_0_for_bicubic_and_counts_energy() -> None:
    what = [content for content in shapes.ALL if content.texture == "striped"][:6]
    true = torch.stack([from_uint8(shapes.render(content, "detail", k)) for k, content in enumerate(what)])
    plain = scores.bicubic(true, 2)
    half = plain + 0.5 * (true - plain)
    assert scores.detail(true, true, 2).tolist() == pytest.approx([1] * 6)
    assert bool((scores.detail(plain, true, 2) < 0.12).all())
    assert bool((scores.detail(plain, true, 2) < scores.detail(half, true, 2)).all())
    # Bicubic loses these stripes completely. With half the strength they have a quarter of the energy.
    fine = _stripes(3)
    assert scores.detail(0.5 * fine, fine, 2).tolist() == pytest.approx([0.25], abs=1e-3)


def test_a_true_video_without_detail_divides_by_no_zero() -> None:
    even = torch.zeros(1, 3, 2, 16, 16)
    assert bool(torch.isfinite(scores.detail(even, even, 2)).all())


# ---- direction


@pytest.mark.parametrize("direction", synthetic.DIRECTIONS)
@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 48), (160, 128)])
def test_direction_is_the_way_that_was_rendered(direction: str, width: int, height: int) -> None:
    """The speed of the moving object is known, and the ground stands still."""
    what = synthetic.Content("checked", "blue", "square", direction)
    video = from_uint8(synthetic.render_clip(what, 9, width, height, fps=8.0))[None]
    way = synthetic.SPEED * 8 / 8.0  # in frame widths: 8 steps of an eighth of a second
    x, y = synthetic.DIRECTIONS[direction]
    expected = torch.tensor([[x * way, y * way * width / height]], dtype=torch.float64)
    assert torch.allclose(scores.direction(video), expected, atol=0.13)


def test_direction_of_small_faint_shapes() -> None:
    what = [
        shapes.Content("plain", colour, "circle", way)
        for colour in shapes.COLOURS
        for way in shapes.DIRECTIONS
    ]
    video = torch.stack([from_uint8(shapes.render(content, "way", k)) for k, content in enumerate(what)])
    ways = torch.tensor([shapes.DIRECTIONS[content.direction] for content in what], dtype=torch.float64)
    found = scores.direction(video)
    assert bool(((found * ways).sum(1) > 0.1).all())
    assert bool(((found * ways.flip(1)).sum(1).abs() < 0.05).all())


def test_what_stands_still_goes_nowhere() -> None:
    video = _clip(frames=1, batch=3, height=32).expand(-1, -1, 4, -1, -1)
    assert scores.direction(video).tolist() == [[0, 0]] * 3


# ---- sets of features


def _features(count: int, *key: int | str, std: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Features (N, D) with exactly this mean, and exactly the covariance diag(std^2)."""
    x = draws.normal((count, len(std)), "features", *key).double()
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T
    return white * std + mean


def test_frechet_of_diagonal_normals() -> None:
    one, two = torch.tensor([1.0, 2, 0.5, 0]).double(), torch.tensor([3.0, 2, 0.1, 1]).double()
    shift = torch.tensor([0.5, 0, -1, 2]).double()
    a, b = _features(50, "a", std=one), _features(70, "b", std=two, mean=shift)
    expected = float(shift.square().sum() + (one - two).square().sum())
    assert scores.frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert scores.frechet(b, a) == pytest.approx(expected, rel=1e-6)
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_is_its_formula() -> None:
    """Features are correlated, and the root is taken of the product itself."""
    mixed = draws.normal((6, 6), "mixed").double()
    a = draws.normal((40, 6), "a").double() @ mixed
    b = draws.normal((60, 6), "b").double() @ mixed.flip(0) + 0.3
    one, two = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(one @ two).real
    mean = ((a.mean(0) - b.mean(0)).numpy() ** 2).sum()
    expected = mean + np.trace(one) + np.trace(two) - 2 * np.trace(root)
    assert scores.frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_fewer_clips_than_features() -> None:
    """The covariances are singular. Equal sets have distance 0, and a shift costs its squared length."""
    a = draws.normal((5, 30), "few")
    assert scores.frechet(a, a) == pytest.approx(0, abs=1e-5)
    assert scores.frechet(a, a + 0.5) == pytest.approx(30 * 0.25, abs=1e-5)


def test_kernel_distance_is_its_formula() -> None:
    a, b = draws.normal((5, 3), "a").double(), draws.normal((4, 3), "b").double() + 1
    scale = torch.cat([a, b]).square().mean().sqrt()

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / scale**2 / 3 + 1) ** 3)

    def within(x: Tensor) -> float:
        n = len(x)
        return sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    across = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    assert scores.kernel_distance(a, b) == pytest.approx(within(a) + within(b) - 2 * across, rel=1e-9)
    assert scores.kernel_distance(100 * a, 100 * b) == pytest.approx(scores.kernel_distance(a, b))


def test_kernel_distance_is_around_0_within_a_distribution_and_more_beyond() -> None:
    def found(shift: float, spread: float) -> Tensor:
        pairs = [
            (draws.normal((40, 8), "one", k), draws.normal((40, 8), "two", k) * spread + shift)
            for k in range(30)
        ]
        return torch.tensor([scores.kernel_distance(a, b) for a, b in pairs])

    same, shifted, wider = found(0, 1), found(0.5, 1), found(0, 2)
    assert abs(float(same.mean())) < 3 * float(same.std()) / 30**0.5
    assert float(same.min()) < 0
    assert float(shifted.min()) > float(same.max())
    assert float(wider.mean()) > 5 * float(same.std())


# ---- videos of one prompt


def test_spread_is_the_mean_over_pairs() -> None:
    levels = torch.tensor([0.0, 0.1, 0.4]).view(3, 1, 1, 1, 1)
    videos = levels.expand(3, 3, 2, 8, 8)
    assert scores.spread(videos) == pytest.approx((0.1 + 0.4 + 0.3) / 3 * 127.5, rel=1e-5)
    assert scores.spread(videos[:1].expand(3, -1, -1, -1, -1)) == 0
