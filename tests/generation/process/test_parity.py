"""Stage I's sampler and transformer give the latents of `diffusers.CogVideoXPipeline` from equal noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXPipeline
from torch import Tensor

from generation.models import cogvideox
from generation.process import diffusion
from generation.process.guidance import combine
from tests.generation.models.test_pretrained import published

STEPS = 10
BASE = (3, 4, 6)  # latent frames, rows and columns of the checkpoints' training size
SHIFT = {"5B": 1.0, "2B": 3.0}


def pipeline(folder: Path, kind: str) -> Any:
    """A pipeline around a checkpoint. The VAE only gives the number of pixels per latent pixel."""
    with torch.random.fork_rng():
        vae = AutoencoderKLCogVideoX(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4
        )
    scheduler = CogVideoXDPMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=SHIFT[kind],
        clip_sample=False,
    )
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel.from_pretrained(folder)
    pipe = CogVideoXPipeline(None, None, vae, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noises(shape: tuple[int, ...]) -> dict[int, Tensor]:
    """The noise that the pipeline's scheduler uses, in reelmill's layout.

    From the second step on, the scheduler draws twice and uses the second draw.
    """
    draw = torch.Generator().manual_seed(11)
    b, c, t, h, w = shape
    used = {}
    for step in range(STEPS):
        for _ in range(1 if step == 0 else 2):
            used[step] = torch.randn(b, t, c, h, w, generator=draw).transpose(1, 2)
    return used


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize(
    ("kind", "grid", "positions"),
    [
        ("5B", BASE, "resized"),
        ("5B", BASE, "integer"),  # equal at the base grid
        ("5B", (2, 6, 4), "resized"),
        ("2B", BASE, "integer"),
        ("2B", (2, 6, 8), "integer"),
    ],
)
def test_our_latents_are_those_of_the_pipeline(
    tmp_path: Path, kind: str, grid: tuple[int, int, int], positions: str, guidance: float
) -> None:
    published(kind).save_pretrained(tmp_path / "transformer")
    draw = torch.Generator().manual_seed(7)
    text, negative = torch.randn(2, 2, 5, 24, generator=draw)
    start = torch.randn(2, 4, *grid, generator=draw)

    theirs = pipeline(tmp_path / "transformer", kind)(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        num_frames=(grid[0] - 1) * 4 + 1,
        height=grid[1] * 8,
        width=grid[2] * 8,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=start.transpose(1, 2),
        generator=torch.Generator().manual_seed(11),
        output_type="latent",
    ).frames.transpose(1, 2)

    model = cogvideox.load(tmp_path)

    def predict_v(x: Tensor, k: int) -> Tensor:
        time = torch.full((len(x),), float(k))
        wanted = cogvideox.predict(model, x, text, None, time, positions=positions)
        unwanted = cogvideox.predict(model, x, negative, None, time, positions=positions)
        return combine(wanted, unwanted, guidance)

    drawn = noises(tuple(start.shape))
    with torch.no_grad():
        ours = diffusion.dpm_solver(predict_v, start, STEPS, lambda step, shape: drawn[step], SHIFT[kind])
    assert theirs.shape == ours.shape == start.shape
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_other_positions_give_other_latents(tmp_path: Path) -> None:
    """Away from the base grid, the two kinds of positions differ much more than the tolerance above."""
    published("5B").save_pretrained(tmp_path)
    model = cogvideox.load(tmp_path)
    draw = torch.Generator().manual_seed(7)
    x, text = torch.randn(1, 4, 2, 6, 4, generator=draw), torch.randn(1, 5, 24, generator=draw)
    with torch.no_grad():
        a, b = (
            cogvideox.predict(model, x, text, None, torch.tensor([500.0]), positions=positions)
            for positions in ("integer", "resized")
        )
    assert (a - b).abs().max() > 1e-2
