"""The zero-SNR schedule, v-prediction and the sampler, compared with float64 and with diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from generation import draws
from generation.process import diffusion

# flashvideo.md 2.3: k, a, b, signal-to-noise ratio in dB
PUBLISHED = [
    (0, 0.999575, 0.029155, 30.7),
    (300, 0.751499, 0.659735, 1.1),
    (400, 0.626011, 0.779814, -1.9),
    (500, 0.490937, 0.871195, -5.0),
    (600, 0.357100, 0.934066, -8.4),
    (650, 0.294019, 0.955800, -10.2),
    (675, 0.263959, 0.964534, -11.3),
    (700, 0.235052, 0.971983, -12.3),
    (750, 0.181105, 0.983464, -14.7),
    (800, 0.132821, 0.991140, -17.5),
    (900, 0.054409, 0.998519, -25.3),
    (999, 0.0, 1.0, -math.inf),
]


def _float64_schedule(snr_shift: float) -> np.ndarray:
    """The definition of the schedule, step by step, without tensors."""
    low, high = math.sqrt(0.00085), math.sqrt(0.0120)
    product, roots = 1.0, []
    for k in range(1000):
        product *= 1 - (low + (high - low) * k / 999) ** 2
        snr = product / (1 - product) / snr_shift
        roots.append(math.sqrt(snr / (1 + snr)))
    return np.array([(r - roots[-1]) * roots[0] / (roots[0] - roots[-1]) for r in roots])


# ---- schedule


@pytest.mark.parametrize(("k", "a", "b", "decibels"), PUBLISHED)
def test_the_published_table(k: int, a: float, b: float, decibels: float) -> None:
    """Vector 1 of flashvideo.md section 9."""
    ours = diffusion.alpha_beta(k)
    assert ours == pytest.approx((a, b), abs=1e-6)
    assert ours[0] ** 2 + ours[1] ** 2 == pytest.approx(1, abs=1e-14)
    if ours[0]:
        assert 20 * math.log10(ours[0] / ours[1]) == pytest.approx(decibels, abs=0.051)
    else:
        assert decibels == -math.inf


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_schedule_in_float64_and_falling_to_zero(snr_shift: float) -> None:
    a = diffusion.schedule(snr_shift)
    assert a.dtype == torch.float64
    np.testing.assert_allclose(a.numpy(), _float64_schedule(snr_shift), rtol=0, atol=1e-12)
    assert float(a[-1]) == 0.0
    assert (a.diff() < 0).all()


def test_the_last_step_is_pure_noise() -> None:
    x0, noise = torch.randn(2, 1, 4, 3, 2, 2, generator=draws.generator("p")).unbind()
    assert torch.equal(diffusion.add_noise(x0, noise, 999), noise)
    assert torch.equal(diffusion.v_target(x0, noise, 999), -x0)


@pytest.mark.parametrize("k", [-1, 1000])
def test_no_step_outside_the_schedule(k: int) -> None:
    with pytest.raises(AssertionError):
        diffusion.alpha_beta(k)


# ---- v-prediction


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_targets_in_float64(snr_shift: float) -> None:
    steps = [0, 1, 19, 499, 675, 998, 999]
    x0, noise = torch.randn(2, len(steps), 4, 3, 2, 2, generator=draws.generator("v")).unbind()
    a = _float64_schedule(snr_shift)[steps].reshape(-1, 1, 1, 1, 1)
    b = np.sqrt(1 - a * a)
    k = torch.tensor(steps)
    x, v = (f(x0, noise, k, snr_shift) for f in (diffusion.add_noise, diffusion.v_target))
    assert x.dtype == v.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), a * x0.numpy() + b * noise.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(v.numpy(), a * noise.numpy() - b * x0.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(a * x.numpy() - b * v.numpy(), x0.numpy(), rtol=0, atol=2e-6)
    for row, step in enumerate(steps):  # a batch gives the same result as single steps
        one = diffusion.v_target(x0[row : row + 1], noise[row : row + 1], step, snr_shift)
        torch.testing.assert_close(v[row : row + 1], one, rtol=0, atol=1e-7)


def test_the_loss_on_v_is_the_weighted_loss_on_x0() -> None:
    x0, noise, wrong = torch.randn(
        3, 1, 4, 3, 2, 2, generator=draws.generator("l"), dtype=torch.float64
    ).unbind()
    for k in (0, 500, 999):
        a, b = diffusion.alpha_beta(k)
        x, v = diffusion.add_noise(x0, noise, k), diffusion.v_target(x0, noise, k)
        weighted = (a * x - b * wrong - x0).square().mean() / b**2
        torch.testing.assert_close(weighted, (wrong - v).square().mean())


def test_targets_are_diffusers() -> None:
    scheduler = _scheduler(3.0)
    k = torch.tensor([0, 500, 999])
    x0, noise = torch.randn(2, 3, 4, 3, 2, 2, generator=draws.generator("d")).unbind()
    theirs = scheduler.add_noise(x0, noise, k)
    torch.testing.assert_close(diffusion.add_noise(x0, noise, k, 3.0), theirs, rtol=0, atol=1e-6)
    theirs = scheduler.get_velocity(x0, noise, k)
    torch.testing.assert_close(diffusion.v_target(x0, noise, k, 3.0), theirs, rtol=0, atol=1e-6)


# ---- sampler


def _scheduler(snr_shift: float) -> Any:
    from diffusers import CogVideoXDPMScheduler

    return CogVideoXDPMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=snr_shift,
        set_alpha_to_one=True,
    )


def _oracle(snr_shift: float) -> Callable[[Any, int], Any]:
    """The exact v for clean latents from N(0.8, 0.25), in closed form."""
    a_of = _float64_schedule(snr_shift)

    def predict(x: Any, k: int) -> Any:
        a = float(a_of[k])
        b = math.sqrt(1 - a * a)
        x0 = 0.8 + 0.25 * a / (0.25 * a * a + b * b) * (x - a * 0.8)
        return (a * x - x0) / b

    return predict


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50, 200])
def test_the_same_latents_as_diffusers(steps: int, snr_shift: float) -> None:
    """diffusers with equal noise. Its `step` ignores `variance_noise`, draws twice and uses the second."""
    predict, start = _oracle(snr_shift), draws.normal((2, 4, 3, 2, 2), "start")
    scheduler = _scheduler(snr_shift)
    scheduler.set_timesteps(steps)
    generator, x, before = torch.Generator().manual_seed(4), start, None
    for i, k in enumerate(scheduler.timesteps):
        back = scheduler.timesteps[i - 1] if i else None
        x, before = scheduler.step(predict(x, int(k)), before, k, back, x, generator=generator)

    ours = torch.Generator().manual_seed(4)

    def draw(step: int, shape: Sequence[int]) -> Tensor:
        first = torch.randn(shape, generator=ours)
        return torch.randn(shape, generator=ours) if step else first

    out = diffusion.dpm_solver(predict, start, steps, draw, snr_shift)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)


def _float64_sampler(
    start: np.ndarray, noises: Sequence[np.ndarray], steps: int, snr_shift: float
) -> np.ndarray:
    """DPM-Solver++ (2M, SDE) in the form of k-diffusion: on y = x / a with sigma = b / a, in float64."""
    a_of, predict = _float64_schedule(snr_shift), _oracle(snr_shift)
    visited = [int(np.rint(1000 - i * 1000 / steps)) - 1 for i in range(steps)]
    sigma = [math.sqrt(1 - a_of[k] ** 2) / a_of[k] if a_of[k] else math.inf for k in visited]
    x0 = -predict(start, 999)
    y = before = start
    for i in range(1, steps):
        if i == 1:
            y = x0 + sigma[1] * noises[0]  # the weight of the start is (sigma' / sigma)^2 = 0
        else:
            keep = (sigma[i] / sigma[i - 1]) ** 2
            aim = x0
            if i > 2:
                aim = x0 + 0.5 * math.log(sigma[i - 1] / sigma[i]) / math.log(sigma[i - 2] / sigma[i - 1]) * (
                    x0 - before
                )
            y = keep * y + (1 - keep) * aim + sigma[i] * math.sqrt(1 - keep) * noises[i - 1]
        a, b = a_of[visited[i]], math.sqrt(1 - a_of[visited[i]] ** 2)
        before, x0 = x0, a * (a * y) - b * predict(a * y, visited[i])
    return x0


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 51, 1000])
def test_the_same_latents_as_float64(steps: int, snr_shift: float) -> None:
    shape = (1, 4, 3, 2, 2)
    start = draws.normal(shape, "start")
    noises = [draws.normal(shape, "step", k) for k in range(steps)]
    expected = _float64_sampler(
        start.double().numpy(), [n.double().numpy() for n in noises], steps, snr_shift
    )
    out = diffusion.dpm_solver(_oracle(snr_shift), start, steps, lambda step, shape: noises[step], snr_shift)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-5)


def test_samples_have_the_distribution_of_the_data() -> None:
    """The oracle is exact, so the samples must have the distribution N(0.8, 0.25)."""
    out = diffusion.dpm_solver(
        _oracle(1.0), draws.normal((40_000,), "s"), 200, lambda step, shape: draws.normal(shape, "s", step)
    )
    assert out.mean().item() == pytest.approx(0.8, abs=0.01)
    assert out.std().item() == pytest.approx(0.5, abs=0.01)


def test_the_state_is_float32_and_evaluations_are_counted() -> None:
    seen: list[int] = []
    drawn: list[tuple[int, tuple[int, ...]]] = []
    done: list[int] = []

    def predict(x: Tensor, k: int) -> Tensor:
        assert x.dtype == torch.float32
        seen.append(k)
        return x.bfloat16()

    def draw(step: int, shape: Sequence[int]) -> Tensor:
        drawn.append((step, tuple(shape)))
        return draws.normal(shape, step)

    out = diffusion.dpm_solver(predict, draws.normal((1, 3), "x").bfloat16(), 4, draw, progress=done.append)
    assert out.dtype == torch.float32
    assert seen == diffusion.timesteps(4) == [999, 749, 499, 249]
    assert drawn == [(0, (1, 3)), (1, (1, 3)), (2, (1, 3))]  # the last step adds no noise
    assert done == [1, 2, 3, 4]


def test_timesteps_are_diffusers() -> None:
    assert diffusion.timesteps(50) == list(range(999, 0, -20))
    scheduler = _scheduler(1.0)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        # For 61 and other numbers, rounding gives diffusers one step too many, -1.
        assert diffusion.timesteps(steps) == scheduler.timesteps.tolist()[:steps], steps


def test_floored_timesteps_are_those_of_the_published_code() -> None:
    """flashvideo.md, section 1: 999, 979, 959, ..., 19 for FlashVideo's 51 evaluations."""
    visited = diffusion.timesteps(51, "floored")
    assert visited[:3] == [999, 979, 959]
    assert visited[-1] == 19
    assert visited != diffusion.timesteps(51)
    for steps in range(1, 1001):
        visited = diffusion.timesteps(steps, "floored")
        even = [999 * (steps - i) / steps for i in range(steps)]
        assert all(k <= t < k + 1 + 1e-9 for k, t in zip(visited, even, strict=True))
        assert len(set(visited)) == steps
        assert visited[0] == 999


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_bad_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="take 1 to 1000"):
        diffusion.timesteps(steps)


# ---- guidance


def test_the_published_ramp() -> None:
    """flashvideo.md section 1: scale 8, FlashVideo's 51 steps (integer parts of an even grid from 999)."""
    visited = diffusion.timesteps(51, "floored")
    scales = [diffusion.guidance_scale("published", 8, i, 51, k) for i, k in enumerate(visited)]
    assert scales[:6] == pytest.approx([8.29, 4.00, 2.40, 5.05, 6.28, 2.00], abs=0.0051)
    assert scales[-4:] == pytest.approx([1.03, 1.00, 1.00, 1.19], abs=0.0051)
    assert np.mean(scales) == pytest.approx(4.67, abs=0.0051)


def test_the_true_ramp_rises_once() -> None:
    scales = [diffusion.guidance_scale("dynamic", 8, i, 50, k) for i, k in enumerate(diffusion.timesteps(50))]
    assert scales[0] == 1
    assert scales == sorted(scales)
    assert 8.5 < scales[-1] < 9
    assert scales[25] == pytest.approx(1 + 4 * (1 - math.cos(math.pi / 32)))


def test_constant_guidance() -> None:
    assert {diffusion.guidance_scale("constant", 6.0, i, 50, 999 - i) for i in range(50)} == {6.0}
