"""How well the autoencoder reconstructs real clips, and whether claims about its latents are possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from generation.codecs.base import Codec
from generation.evaluate import scores
from generation.evaluate.figures import Figures, Found, mean
from generation.evaluate.judge import labels
from generation.evaluate.networks import lpips
from generation.evaluate.real_clips import Clips
from generation.evaluate.settings import Settings

# A codec must be so many dB above bicubic, and keep this part of the detail. Else figures that depend on its
# latents do not count.
FIT_DB = 2.0
FIT_DETAIL = 0.7
_CLAIMS = ("_db", ".ssim", ".ssim_gain", ".latent_error")  # ends of the names of such figures


@torch.no_grad()
def evaluate_codec(codec: Codec, truth: Clips, settings: Settings) -> Found:
    """Compare the reconstructions of a codec with real clips, beside bicubic scaling. Gains are in dB."""
    made = torch.cat(
        [codec.decode(codec.encode(v[None].to(codec.device)), v.shape[1]).cpu() for v in truth.video]
    )
    plain = scores.bicubic(truth.video, settings.scale)
    focus = in_focus(truth.captions, settings)
    psnr, plain_psnr = scores.psnr(made, truth.video), scores.psnr(plain, truth.video)
    figures: Figures = {
        "psnr_db": mean(psnr),
        "ssim": mean(scores.ssim(made, truth.video)),
        "bicubic_psnr_db": mean(plain_psnr),
        "clips": len(truth),
        "gain_db": mean((psnr - plain_psnr)[focus]),
        "detail": mean(scores.detail(made, truth.video, settings.scale)[focus]),
    }
    if settings.lpips:
        figures["lpips"] = mean(lpips(made, truth.video, settings.lpips))
    return Found(figures)


def is_fit(figures: Figures) -> bool:
    """Whether the latents of a codec with these figures hold the detail that Stage II has to restore."""
    return bool(figures["gain_db"] >= FIT_DB and figures["detail"] >= FIT_DETAIL)


def void(figures: Figures, path: str) -> str:
    """Why the figure at `path` does not count. Empty if it counts."""
    is_fit = figures.get("stage2", {}).get("vae_fit", True)
    claims = path.startswith("stage2.") and path.endswith(_CLAIMS)
    return "VAE unfit" if claims and not is_fit else ""


def in_focus(captions: Sequence[str | None], settings: Settings) -> Tensor:
    """The clips with the word `focus` in their caption: (N,) bool. Raises `ValueError` without such clips."""
    if settings.focus is None:
        return torch.ones(len(captions), dtype=torch.bool)
    truth = labels(captions, {"focus": (settings.focus,)})[:, 0] == 0
    if not bool(truth.any()):
        raise ValueError(
            f"focus: no caption of the {len(captions)} held-out clips has the word {settings.focus}; name "
            "a word of these captions, take more clips, or write focus=null"
        )
    return truth
