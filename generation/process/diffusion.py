"""Diffusion with zero terminal SNR and v-prediction, and the sampler of Stage I.

Noise step k = 0..999 mixes x_k = a_k x0 + b_k noise, with a^2 + b^2 = 1. Step 999 is pure noise. The network
predicts v = a noise - b x0. (The weighted loss of CogVideoX, |x0' - x0|^2 / b^2, equals |v' - v|^2.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STEPS = 1000

Spacing = Literal["trailing", "floored"]


def schedule(snr_shift: float = 1.0) -> Tensor:
    """The factors a_k, which are the square roots of alpha-bar: (1000,) float64, falling to exactly 0.

    The schedule is CogVideoX's. The square roots of the betas are evenly spaced, for betas from 0.00085 to
    0.012. The signal-to-noise ratio is divided by `snr_shift` (1 for 5B, 3 for 2B). Then a is shifted and
    scaled so that the last value becomes 0 and the first value stays.
    """
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, STEPS, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    a = (alpha_bar / (snr_shift + (1 - snr_shift) * alpha_bar)).sqrt()
    return (a - a[-1]) * (a[0] / (a[0] - a[-1]))


def alpha_beta(k: int, snr_shift: float = 1.0) -> tuple[float, float]:
    """The factors (a, b) of noise step `k`, for x_k = a x0 + b noise."""
    assert 0 <= k < STEPS, k
    a = float(schedule(snr_shift)[k])
    return a, math.sqrt(1 - a * a)


def _mix(k: int | Tensor, like: Tensor, snr_shift: float) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """(a, b): numbers for one `k`; for steps (B,), tensors (B, 1, ...) for use with `like` (B, ...)."""
    if not isinstance(k, Tensor):
        return alpha_beta(k, snr_shift)
    a = schedule(snr_shift)[k.cpu()].reshape(-1, *[1] * (like.ndim - 1))  # (B, 1, ...)
    return a.to(like), (1 - a * a).sqrt().to(like)


def add_noise(x0: Tensor, noise: Tensor, k: int | Tensor, snr_shift: float = 1.0) -> Tensor:
    """The noisy latents a x0 + b noise. k: one step, or steps (B,) for latents (B, ...)."""
    a, b = _mix(k, x0, snr_shift)
    return a * x0 + b * noise


def v_target(x0: Tensor, noise: Tensor, k: int | Tensor, snr_shift: float = 1.0) -> Tensor:
    """The target of the network, v = a noise - b x0, which is -x0 at k = 999. k: as in `add_noise`."""
    a, b = _mix(k, x0, snr_shift)
    return a * noise - b * x0


def timesteps(steps: int, spacing: Spacing = "trailing") -> list[int]:
    """The noise steps that a sampler visits, from 999 down.

    trailing: the steps of diffusers, such as 999, 979, ..., 19 for 50 steps. floored: the integer parts of an
    even grid from 999 to 0 without the end, as in CogVideoX and FlashVideo: 999, 979, 959, ..., 19 for 51.

    Raises `ValueError` unless 1 <= steps <= 1000.
    """
    if not 1 <= steps <= STEPS:
        raise ValueError(f"steps: {steps} evaluations; take 1 to {STEPS}")
    if spacing == "floored":
        # The published code has the same rounding errors: some values lie just below an integer, such as
        # 110.99... for 99 steps.
        return np.linspace(STEPS - 1, 0, steps, endpoint=False).astype(int).tolist()
    return (np.arange(STEPS, 0, -STEPS / steps)[:steps].round().astype(int) - 1).tolist()


def _half_log_snr(a: float) -> float:
    """ln(a / b)."""
    return math.log(a / math.sqrt(1 - a * a)) if a > 0 else -math.inf


def dpm_solver(
    predict_v: Callable[[Tensor, int], Tensor],
    noise: Tensor,
    steps: int,
    draw: Callable[[int, Sequence[int]], Tensor],
    snr_shift: float = 1.0,
    progress: Callable[[int], None] | None = None,
    spacing: Spacing = "trailing",
) -> Tensor:
    """Sample with CogVideoX's stochastic DPM-Solver++ (2M), from pure `noise` to a clean latent, float32.

    With l = ln(a/b), h = l' - l, r = h_before / h:
        D = (1 + 1/2r) x0 - (1/2r) x0_before
        x' = (b'/b) exp(-h) x - a' (exp(-2h) - 1) D + b' sqrt(1 - exp(-2h)) noise
    The last step returns x0. At step 999, h is infinite: x' is x0 with fresh noise, and the next step is of
    first order.

    predict_v(x, k): evaluated `steps` times; guidance happens inside. draw(step, shape): the noise that each
    step except the last step adds. progress: called with the number of finished evaluations.

    The results equal those of diffusers' CogVideoXDPMScheduler for trailing steps whose number divides 1000.
    For other numbers, diffusers leaves the latent at step k - 1000 // steps, but tells the network another
    step next. Here both steps agree.
    """
    a_of = schedule(snr_shift).tolist()
    visited = timesteps(steps, spacing)
    x, h_before = noise.float(), math.inf
    before: Tensor | None = None
    for step, k in enumerate(visited):
        a = a_of[k]
        b = math.sqrt(1 - a * a)
        x0 = a * x - b * predict_v(x, k).float()
        if progress:
            progress(step + 1)
        if step == steps - 1:
            break
        a_next = a_of[visited[step + 1]]
        b_next = math.sqrt(1 - a_next * a_next)
        h = _half_log_snr(a_next) - _half_log_snr(a)
        half = 0.0 if before is None else h / (2 * h_before)  # 1/2r
        target = x0 if before is None else (1 + half) * x0 - half * before
        fresh = draw(step, x.shape).to(x)
        x = (
            b_next / b * math.exp(-h) * x
            - a_next * math.expm1(-2 * h) * target
            + b_next * math.sqrt(-math.expm1(-2 * h)) * fresh
        )
        before, h_before = x0, h
    return x0


def guidance_scale(
    ramp: Literal["constant", "dynamic", "published"], scale: float, step: int, steps: int, timestep: int
) -> float:
    """The scale of classifier-free guidance at evaluation `step` of `steps`, at noise step `timestep`.

    constant: `scale`. dynamic: 1 + scale (1 - cos(pi (step / steps)^5)) / 2, which rises from 1 to nearly
    1 + scale. published: the same formula with steps - timestep in place of step, as in the code of CogVideoX
    and FlashVideo. This scale jumps irregularly within [1, 1 + scale] and exists for comparisons.
    """
    if ramp == "constant":
        return scale
    at = step if ramp == "dynamic" else steps - timestep
    return 1 + scale * (1 - math.cos(math.pi * (at / steps) ** 5)) / 2
