"""Stage II: a flow from the degraded low-resolution latent to the high-resolution latent.

z0 = alpha_k * latent of the low-quality video + beta_k * noise, and z1 = latent of the high-quality video.
The network learns z1 - z0 at (1 - t) z0 + t z1. The noise step k tells the network how noisy z0 is
(FlashVideo, eq. 2 and algorithm 1). In training, the low-quality video is a degraded copy of the high-quality
video. In use, the low-quality video is the output of Stage I, or any video, scaled to the wanted size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation import draws
from generation.config import Degradation, Sampling
from generation.models.cogvideox import predict
from generation.process import flow, guidance
from generation.process.degrade import degrade_latents, noise_center, noise_range
from generation.process.stage1 import Key, Step
from generation.text.tokens import null_like, stack


def noise_steps(degradation: Degradation, tokens: int) -> tuple[int, int]:
    """The first and the last noise step of training, for `tokens` video tokens."""
    return degradation.noise_steps or noise_range(tokens, degradation.noise_range)


def noise_step(degradation: Degradation, sampling: Sampling, tokens: int) -> int:
    """The noise step of sampling, for `tokens` video tokens.

    The first of these that exists: the configured step, the middle of the configured training range, the step
    for the number of tokens.
    """
    if sampling.noise_step is not None:
        return sampling.noise_step
    if degradation.noise_steps:
        return round(sum(degradation.noise_steps) / 2)
    return noise_center(tokens)


def draw_noise_step(span: tuple[int, int], index: int, *key: int | str) -> int:
    """Draw a noise step within `span`, ends included, for plan position `index`.

    Steps are drawn independently. An evenly spread sequence, as for the times, would correlate the steps with
    the times.
    """
    low, high = span
    return low + int(draws.uniform("noise step", index, *key) * (high - low + 1))


def loss(
    model: nn.Module,
    clean: Tensor,
    low_quality: Tensor,
    text: Sequence[Tensor],
    at: Sequence[float],
    steps: Sequence[int],
    noise_keys: Sequence[Key],
    positions: str = "integer",
) -> Tensor:
    """The mean squared error of the velocity, for each sample: (B,).

    clean, low_quality: latents (B, C, t, h, w) of the video and of its degraded copy; text: tokens (L, D) of
    each sample; at: flow times in [0, 1); steps: noise steps of the degraded latents; noise_keys: the keys of
    the noise of each sample.
    """
    noise = torch.stack([draws.normal(tuple(clean.shape[1:]), "noise", *key) for key in noise_keys])
    k = torch.tensor(list(steps))  # on the CPU, like the schedule
    z0 = degrade_latents(low_quality, noise.to(clean.device), k)
    t = torch.tensor(list(at), dtype=torch.float32, device=clean.device)
    tokens, mask = stack(text)
    predicted = predict(
        model,
        flow.interpolate(z0, clean, t),
        tokens.to(clean.device),
        mask,
        flow.network_time(t),
        strength=k.float().to(clean.device),
        positions=positions,
    ).float()
    return (predicted - (clean - z0)).square().flatten(1).mean(1)


def resize(video: Tensor, height: int, width: int) -> Tensor:
    """Resize video (B, 3, T, H, W) in [-1, 1]: bilinear and antialiased, as in the published code."""
    b, c, t, h, w = video.shape
    if (h, w) == (height, width):
        return video
    frames = video.transpose(1, 2).reshape(b * t, c, h, w)
    frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return frames.reshape(b, t, c, height, width).transpose(1, 2).clamp(-1, 1)


def sample(
    model: nn.Module,
    sampling: Sampling,
    low_quality: Tensor,
    step: int,
    text: Tensor,
    negative: Tensor | None,
    *key: int | str,
    positions: str = "integer",
    on_step: Step | None = None,
    apart: bool = False,
) -> Tensor:
    """Sample high-resolution latents (1, C, t, h, w) from `low_quality`, the latents of the enlarged video.

    step: noise step of the start; text, negative: tokens (L, D); negative None: zeros, as in training; key:
    decides the noise. The state is always float32. (The published sampler rounds the state and the times to
    bfloat16.) apart: see `guidance.guided_prediction`.
    """
    device = low_quality.device
    noise = draws.normal(tuple(low_quality.shape), "enhance", *key).to(device)
    contrast = null_like(text) if negative is None else negative
    text, contrast = text.to(device), contrast.to(device)
    done = 0

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal done
        time = float(flow.network_time(t))
        out = guidance.guided_prediction(
            model, x, text, contrast, sampling.guidance, time, float(step), positions, apart
        )
        done += 1
        if on_step:
            on_step(done, sampling.steps)
        return out

    with torch.no_grad():
        start = degrade_latents(low_quality, noise, torch.tensor([step]))
        return flow.euler(velocity, start, flow.flow_times(sampling.steps, sampling.shift))
