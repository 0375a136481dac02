"""Stage I, from text to low-resolution latents: training loss and sampler, for both objectives.

v: v-prediction on the schedule with zero terminal SNR, sampled with stochastic DPM-Solver++ 2M.
flow: a flow from Gaussian noise at time 0 to data at time 1, sampled with Euler steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Objective, Sampling
from generation.models.cogvideox import predict
from generation.process import diffusion, flow, guidance
from generation.text.tokens import null_like, stack

Key = tuple[int | str, ...]
Step = Callable[[int, int], None]  # receives the finished evaluations, and all evaluations


def training_time(objective: Objective, index: int, *key: int | str) -> float:
    """The training time t in [0, 1) of plan position `index`. Neighbouring positions spread evenly over t."""
    shift = objective.shift if objective.kind == "flow" else 1.0
    return flow.training_time(index, shift, "time", *key)


def loss(
    model: nn.Module,
    objective: Objective,
    latents: Tensor,
    text: Sequence[Tensor],
    at: Sequence[float],
    noise_keys: Sequence[Key],
    positions: str = "integer",
) -> Tensor:
    """The mean squared error of the prediction, for each sample: (B,).

    latents: (B, C, t, h, w); text: tokens (L, D) of each sample; at: times in [0, 1); noise_keys: the keys of
    the noise of each sample. For v-prediction, the squared error in v is the squared error in x0 weighted by
    1 / (1 - alpha_bar), because v - v' = -(x0 - x0') / sqrt(1 - alpha_bar) at a given noisy sample.
    """
    noise = torch.stack([draws.normal(tuple(latents.shape[1:]), "noise", *key) for key in noise_keys]).to(
        latents.device
    )
    if objective.kind == "v":
        # Time runs from the noisy end, as in a flow: t = 0 is step 999. The schedule is on the CPU.
        steps = torch.tensor([min(999, int(1000 * (1 - t))) for t in at])
        noisy = diffusion.add_noise(latents, noise, steps, objective.snr_shift)
        target = diffusion.v_target(latents, noise, steps, objective.snr_shift)
        network_time = steps.float().to(latents.device)
    else:
        t = torch.tensor(list(at), dtype=torch.float32, device=latents.device)
        noisy = flow.interpolate(noise, latents, t)
        target = latents - noise
        network_time = flow.network_time(t)
    tokens, mask = stack(text)
    predicted = predict(
        model, noisy, tokens.to(latents.device), mask, network_time, positions=positions
    ).float()
    return (predicted - target).square().flatten(1).mean(1)


def sample(
    model: nn.Module,
    objective: Objective,
    sampling: Sampling,
    shape: tuple[int, int, int, int],
    text: Tensor,
    negative: Tensor | None,
    *key: int | str,
    positions: str = "integer",
    device: torch.device | str = "cpu",
    on_step: Step | None = None,
    apart: bool = False,
) -> Tensor:
    """Sample latents (1, C, t, h, w) of `shape` (C, t, h, w) for the tokens `text` (L, D) of one caption.

    key: decides all random draws; negative: tokens (L, D) of the negative prompt; None: zeros, as in
    training. One evaluation is a pair of a conditional and an unconditional prediction. Without guidance
    (scale 1.0) the unconditional prediction is left out. apart: see `guidance.guided_prediction`.
    """
    noise = draws.normal((1, *shape), "sample", *key).to(device)
    steps = sampling.steps
    contrast = null_like(text) if negative is None else negative
    text, contrast = text.to(device), contrast.to(device)
    done = 0

    def guided(x: Tensor, network_time: float, scale: float) -> Tensor:
        nonlocal done
        out = guidance.guided_prediction(
            model, x, text, contrast, scale, float(network_time), positions=positions, apart=apart
        )
        done += 1
        if on_step:
            on_step(done, steps)
        return out

    with torch.no_grad():
        if objective.kind == "flow":
            grid = flow.flow_times(steps, sampling.shift)

            def velocity(x: Tensor, t: float) -> Tensor:
                scale = diffusion.guidance_scale(
                    sampling.guidance_ramp, sampling.guidance, done, steps, round(flow.network_time(t))
                )
                return guided(x, flow.network_time(t), scale)

            return flow.euler(velocity, noise, grid)

        def predict_v(x: Tensor, k: int) -> Tensor:
            scale = diffusion.guidance_scale(sampling.guidance_ramp, sampling.guidance, done, steps, k)
            return guided(x, k, scale)

        def draw(step: int, wanted: Sequence[int]) -> Tensor:
            return draws.normal(wanted, "solver", step, *key).to(device)

        return diffusion.dpm_solver(
            predict_v, noise, steps, draw, objective.snr_shift, spacing=sampling.timesteps
        )
