"""Degradations of Stage II's training pairs, in pixels and in latents."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from generation import draws
from generation.config import Degradation
from generation.process import degrade, diffusion

WEAK = Degradation(strong_probability=0.0)
STRONG = Degradation(strong_probability=1.0)


def _clip(frames: int = 5, height: int = 64, width: int = 96, *, batch: int = 1) -> Tensor:
    """A texture of every scale that moves two pixels per frame: (B, 3, T, H, W) in [-1, 1]."""
    field = torch.zeros(batch, 3, height, width + 2 * frames)
    for size in (2, 4, 8, 16, 64):
        rough = draws.normal((batch, 3, -(-height // size), -(-width // size) + frames), "clip", size)
        field += F.interpolate(rough, field.shape[2:], mode="nearest")
    field = (field / 4).clamp(-1, 1)
    return torch.stack([field[..., 2 * t : 2 * t + width] for t in range(frames)], 2)


def _still(frames: int, height: int = 64, width: int = 96) -> Tensor:
    return _clip(1, height, width).expand(-1, -1, frames, -1, -1).clone()


def _detail(video: Tensor) -> float:
    """The energy of frequencies above 1/8 cycle per pixel, divided by the number of pixels."""
    spectrum = torch.fft.fft2(video).abs().square()
    fy, fx = (torch.fft.fftfreq(n) for n in video.shape[-2:])
    high = (fy[:, None].square() + fx.square()).sqrt() > 0.125
    return float((spectrum * high).sum() / spectrum[..., 0, 0].numel() / (high.numel() ** 2))


# ---- pixels: properties of both chains


@pytest.mark.parametrize("degradation", [WEAK, STRONG])
@pytest.mark.parametrize(
    ("batch", "frames", "height", "width"),
    [(1, 1, 16, 16), (1, 5, 16, 16), (2, 9, 32, 48), (1, 1, 17, 31), (1, 3, 90, 33)],
)
def test_shape_and_range_are_kept(
    degradation: Degradation, batch: int, frames: int, height: int, width: int
) -> None:
    video = _clip(frames, height, width, batch=batch)
    for k in range(4):
        out = degrade.degrade_pixels(video, degradation, "shape", k)
        assert out.shape == video.shape
        assert out.dtype == torch.float32
        assert out.abs().max() <= 1
        assert not torch.allclose(out, video, atol=0.05)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("degradation", [WEAK, STRONG])
def test_extremes_stay_in_range(degradation: Degradation, side: float) -> None:
    video = torch.full((1, 3, 2, 32, 32), side)
    for k in range(6):
        out = degrade.degrade_pixels(video, degradation, "extreme", k)
        assert out.abs().max() <= 1
        assert (out - video).abs().mean() < 0.06  # clipped noise darkens white a little


def test_clips_too_small_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        degrade.degrade_pixels(torch.zeros(1, 3, 1, 8, 16), WEAK, 0)


def _digest() -> str:
    out = [degrade.degrade_pixels(_clip(), STRONG, "again", k) for k in range(3)]
    return hashlib.sha256(torch.cat(out).numpy().tobytes()).hexdigest()


def test_the_key_decides() -> None:
    video = _clip()
    for degradation in (WEAK, STRONG):
        first = degrade.degrade_pixels(video, degradation, 1, "k")
        torch.rand(5)
        assert torch.equal(first, degrade.degrade_pixels(video, degradation, 1, "k"))
        assert not torch.equal(first, degrade.degrade_pixels(video, degradation, 2, "k"))


def test_the_key_decides_in_another_process() -> None:
    code = "from tests.generation.process.test_degrade import _digest; print(_digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == _digest()


def test_each_clip_of_a_batch_has_its_own() -> None:
    one = _clip()
    pair = degrade.degrade_pixels(torch.cat([one, one]), STRONG, "pair")
    assert torch.equal(pair[:1], degrade.degrade_pixels(one, STRONG, "pair"))
    assert not torch.allclose(pair[0], pair[1], atol=0.02)


def test_strong_ones_come_as_often_as_asked() -> None:
    video = _clip(1, 16, 16)
    mixed = Degradation(strong_probability=0.3)
    count = 0
    for k in range(300):
        out = degrade.degrade_pixels(video, mixed, k)
        count += not torch.equal(out, degrade.degrade_pixels(video, WEAK, k))
    assert 60 <= count <= 120


def test_strong_loses_more_detail_than_weak_and_weak_some() -> None:
    video = _clip(3, 96, 96)
    whole = _detail(video)
    weak = [_detail(degrade.degrade_pixels(video, WEAK, "d", k)) for k in range(12)]
    strong = [
        _detail(degrade.degrade_pixels(video, STRONG, "d", k)) for k in range(12)
    ]  # of the same factors
    assert max(weak) < 0.2 * whole
    assert np.mean(strong) < 0.85 * np.mean(weak)
    assert sum(s < w for s, w in zip(strong, weak, strict=True)) >= 10


def test_the_mean_colour_is_kept() -> None:
    """If every degradation had the same colour cast, the model would learn to remove it from all videos."""
    tint = torch.tensor([0.4, -0.1, -0.5])[:, None, None, None]
    video = (0.5 * _clip(3, 96, 96) + tint).clamp(-1, 1)
    casts = {}
    for name, degradation in (("weak", WEAK), ("strong", STRONG)):
        out = [degrade.degrade_pixels(video, degradation, "colour", k) - video for k in range(16)]
        cast = torch.stack(out).mean((1, 3, 4, 5))  # (16, 3)
        assert cast.abs().max() < 0.03  # four levels of 255
        casts[name] = cast.mean(0).abs().max()
    assert casts["weak"] < 0.001
    assert casts["strong"] < 0.01  # the codec weakens saturated colours; nothing else darkens the video


def test_a_larger_factor_loses_more() -> None:
    video = _clip(1, 96, 96)
    for probability in (0.0, 1.0):
        left = [
            np.mean(
                [
                    _detail(
                        degrade.degrade_pixels(
                            video, Degradation(scale=(f, f), strong_probability=probability), k
                        )
                    )
                    for k in range(6)
                ]
            )
            for f in (1.5, 3.0, 8.0)
        ]
        assert left[0] > 1.5 * left[1]
        assert left[1] > 1.5 * left[2]


# ---- pixels: weak


def test_weak_is_an_antialiased_resize() -> None:
    """A comparison with PIL, whose bilinear filter is antialiased, too."""
    video = _clip(2, 64, 96)
    out = degrade.degrade_pixels(video, Degradation(scale=(4.0, 4.0), strong_probability=0.0), "pil")
    for t in range(2):
        for c in range(3):
            image = Image.fromarray(video[0, c, t].numpy())
            image = image.resize((24, 16), Image.Resampling.BILINEAR).resize(
                (96, 64), Image.Resampling.BILINEAR
            )
            np.testing.assert_allclose(out[0, c, t].numpy(), np.asarray(image), rtol=0, atol=1e-5)


def test_weak_factors_are_drawn_from_the_scale() -> None:
    video = _clip(1, 96, 96)
    possible = {
        s: F.interpolate(
            F.interpolate(video[:, :, 0], (s, s), mode="bilinear", antialias=True), (96, 96), mode="bilinear"
        )
        for s in range(12, 25)  # 96 / 8 .. 96 / 4
    }
    seen = set()
    for k in range(60):
        out = degrade.degrade_pixels(video, WEAK, "factor", k)[:, :, 0]
        seen |= {s for s, known in possible.items() if torch.allclose(out, known, atol=1e-5)}
    assert len(seen) >= 10
    assert min(seen) <= 13
    assert max(seen) >= 23


# ---- pixels: strong


def test_parameters_are_in_their_ranges_and_the_second_round_is_weaker() -> None:
    rounds = []
    for k in range(400):
        factor = 4 + 4 * k / 400
        first, second = degrade.draw_passes((270, 480), factor, "r", k)
        assert second.size == (round(270 / factor), round(480 / factor))
        assert 270 > first.size[0] > second.size[0]
        for one, crf in ((first, 32), (second, 26)):
            assert all(0 < s < 0.5 * factor for s in one.sigma)
            assert 0 <= one.noise < 0.08
            assert one.crf is not None
            assert 18 <= one.crf <= crf
        rounds.append((first, second))
    assert {one.mode for pair in rounds for one in pair} == {"area", "bilinear", "bicubic"}
    assert {one.grey for pair in rounds for one in pair} == {False, True}
    assert {pair[0].crf for pair in rounds} == set(range(18, 33))
    even = sum(pair[0].sigma[0] == pair[0].sigma[1] for pair in rounds)
    assert 150 < even < 250  # isotropic
    for of in (lambda one: one.noise, lambda one: one.crf, lambda one: one.sigma[0]):
        values = np.array([[of(one) for one in pair] for pair in rounds])
        assert values[:, 1].mean() < values[:, 0].mean()
    noise = np.array([[one.noise for one in pair] for pair in rounds])
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.2  # the two rounds are drawn independently


def test_a_still_clip_stays_still_but_for_the_codec() -> None:
    video = _still(9)
    frames = video[0].transpose(0, 1)
    for k in range(6):
        passes = degrade.draw_passes((64, 96), 4.0, "still", k)
        bare = degrade.strong(frames, tuple(replace(one, crf=None) for one in passes), "still", k)
        assert bare.std() > 0.02
        assert torch.equal(bare, bare[:1].expand_as(bare))
        out = degrade.degrade_pixels(video, STRONG, "still", k)
        assert out.diff(dim=2).abs().mean() < 0.02


def test_frames_are_degraded_alike_whatever_their_number() -> None:
    frames = _clip(5)[0].transpose(0, 1)
    passes = tuple(replace(one, crf=None) for one in degrade.draw_passes((64, 96), 6.0, "n"))
    alone = torch.cat([degrade.strong(frames[t : t + 1], passes, "n") for t in range(5)])
    torch.testing.assert_close(degrade.strong(frames, passes, "n"), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [(1.5, 1.5), (0.6, 3.0)])
def test_blur_is_gaussian(sigma: tuple[float, float]) -> None:
    point = torch.zeros(1, 3, 41, 61)
    point[:, :, 20, 30] = 1
    out = degrade._blur(point, sigma)[0, 1].double()
    assert out.sum().item() == pytest.approx(1, abs=1e-5)
    y, x = torch.arange(41) - 20, torch.arange(61) - 30
    expected = torch.exp(-(y[:, None] ** 2) / (2 * sigma[0] ** 2) - x**2 / (2 * sigma[1] ** 2)).double()
    torch.testing.assert_close(out, expected / expected.sum(), rtol=0, atol=1e-3)
    assert torch.equal(
        degrade._blur(torch.ones(1, 3, 3, 2), sigma) > 0.99999, torch.ones(1, 3, 3, 2) > 0
    )  # edges


def test_noise_has_its_strength_and_no_cast() -> None:
    grey = torch.zeros(3, 3, 64, 96)
    for one_colour in (False, True):
        noisy = degrade.Pass((0.01, 0.01), (64, 96), "area", 0.1, one_colour, None)
        out = degrade.strong(grey, (noisy,), "noise")
        assert out.std().item() == pytest.approx(0.1, rel=0.05)
        assert out.mean((2, 3)).abs().max() < 1e-6
        assert torch.equal(out[:, 0], out[:, 1]) == one_colour
        assert torch.equal(out[0], out[2])
        twice = degrade.strong(grey, (noisy, noisy), "noise")  # equal fields would double the noise
        assert twice.std().item() == pytest.approx(0.1 * math.sqrt(2), rel=0.05)


# ---- the codec


@pytest.mark.parametrize(("frames", "height", "width"), [(5, 48, 48), (17, 96, 32), (33, 64, 80)])
def test_codec_repeats_itself(frames: int, height: int, width: int) -> None:
    """At these sizes, libx264's macroblock tree gives different results in a few of a hundred runs."""
    clip = (_clip(frames, height, width)[0].transpose(0, 1) * 0.3).contiguous()
    seen = set()
    for k in range(80):
        kept = torch.empty(1000 + 977 * k).fill_(k)  # each run finds other values in uninitialised memory
        seen.add(degrade._h264(clip, 20).numpy().tobytes())
        del kept
    assert len(seen) == 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (16, 16), (33, 47), (64, 96)])
def test_codec_keeps_any_size_and_flat_colours(height: int, width: int) -> None:
    colours = torch.tensor(
        [
            [0, 0, 0],
            [1, 1, 1],
            [-1, -1, -1],
            [0.8, -0.6, -0.6],
            [-0.6, 0.8, -0.6],
            [-0.6, -0.6, 0.8],
            [0.5, 0.5, -0.9],
        ]
    )
    for colour in colours:
        flat = colour[None, :, None, None].expand(2, 3, height, width)
        out = degrade._h264(flat, 18)
        assert out.shape == flat.shape
        assert (out - flat).abs().max() < 0.03


def test_codec_loses_by_its_crf() -> None:
    frames = _clip(5, 96, 96)[0].transpose(0, 1)
    error = [(degrade._h264(frames, crf) - frames).square().mean().item() for crf in (10, 18, 26, 34)]
    assert error == sorted(error)
    assert 1e-4 < error[1] < error[3] < 0.2


def test_codec_keeps_the_order_of_frames() -> None:
    """Packets are in another order than frames, because some frames are predicted from later frames."""
    levels = torch.linspace(-0.9, 0.9, 33)
    frames = levels[:, None, None, None].expand(33, 3, 32, 32) + 0.1 * _clip(33, 32, 32)[0].transpose(0, 1)
    torch.testing.assert_close(
        degrade._h264(frames, 18).mean((1, 2, 3)), frames.mean((1, 2, 3)), rtol=0, atol=0.02
    )


# ---- latents


@pytest.mark.parametrize("k", [0, 60, 675, 999])
def test_latents_mix_with_noise_by_the_published_schedule(k: int) -> None:
    z, noise = torch.randn(2, 2, 4, 3, 4, 4, generator=draws.generator("z")).unbind()
    a, b = diffusion.alpha_beta(k)
    torch.testing.assert_close(degrade.degrade_latents(z, noise, k), a * z + b * noise)
    each = degrade.degrade_latents(z, noise, torch.tensor([k, 675]))  # one step for each of two samples
    torch.testing.assert_close(each[0], a * z[0] + b * noise[0])
    torch.testing.assert_close(each[1], 0.263959 * z[1] + 0.964534 * noise[1], rtol=0, atol=5e-6)


def test_noise_steps_at_the_published_size_are_the_published_ones() -> None:
    assert degrade.noise_center(104_520) == 675
    assert degrade.noise_range(104_520, "wide") == (600, 900)
    assert degrade.noise_range(104_520, "narrow") == (650, 750)


def test_toy_sizes_get_little_noise() -> None:
    assert degrade.noise_center(192) == 60
    for k in (
        degrade.noise_center(192),
        *degrade.noise_range(192, "wide"),
        *degrade.noise_range(192, "narrow"),
    ):
        assert 0.1 < diffusion.alpha_beta(k)[1] < 0.4
    assert diffusion.alpha_beta(60)[1] == pytest.approx(0.2517, abs=1e-4)


def test_noise_grows_with_the_tokens_within_bounds() -> None:
    sizes = [1, 50, 192, 1000, 6240, 25_740, 104_520, 187_200, 10**6, 10**9]
    centers = [degrade.noise_center(n) for n in sizes]
    assert centers == sorted(centers)
    assert (centers[0], centers[-1]) == (20, 900)
    assert degrade.noise_center(25_740) == round(60 + 97.6 * math.log(25_740 / 192))
    for n in sizes:
        wide, narrow = degrade.noise_range(n, "wide"), degrade.noise_range(n, "narrow")
        assert 0 <= wide[0] <= narrow[0] <= degrade.noise_center(n) <= narrow[1] <= wide[1] <= 999
