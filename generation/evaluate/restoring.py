"""How well Stage II restores degraded clips. `following` evaluates Stage I, and both stages together.

The evaluation returns figures: plain numbers by name. A figure without meaning is None, and a note says why.
Controls must do worse than the claimed result: untrained weights, other prompts, bicubic scaling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from generation.device import free
from generation.evaluate import scores
from generation.evaluate.codec import in_focus
from generation.evaluate.figures import Figures, Found, Say, mean, ratio
from generation.evaluate.following import read_by, shuffled, swapped
from generation.evaluate.judge import Judge
from generation.evaluate.networks import lpips
from generation.evaluate.real_clips import Clips
from generation.evaluate.settings import Settings
from generation.models.cogvideox import tokens
from generation.process import stage2
from generation.process.degrade import degrade_pixels
from generation.sample.trained import Trained


class Restoring:
    """Held-out clips, their degraded copies, and the videos that a network makes from the copies."""

    def __init__(self, trained: Trained, truth: Clips, settings: Settings):
        self.trained, self.config, self.truth, self.settings = trained, trained.config, truth, settings
        # Each clip has its own degradation, as in training. A batch would get one degradation for all clips.
        self.low = torch.cat(
            [
                degrade_pixels(v[None], self.config.degradation, "evaluate", k)
                for k, v in enumerate(truth.video)
            ]
        )
        self.plain = scores.bicubic(truth.video, settings.scale)
        self.latents, self.low_latents = self.encoded(truth.video), self.encoded(self.low)
        self.focus = in_focus(truth.captions, settings)

    @torch.no_grad()
    def encoded(self, videos: Tensor) -> Tensor:
        """Latents (N, C, t, h, w) of videos (N, 3, T, H, W)."""
        codec = self.trained.codec
        return torch.cat([codec.encode(video[None].to(codec.device)) for video in videos])

    def row(self, video: Tensor, latents: Tensor) -> Figures:
        """The figures of videos (N, 3, T, H, W) with their latents. Most are means over the clips in focus.

        PSNR is in dB, and gains are over bicubic. The latent error is the mean over all clips, divided by
        the latent error of the low-quality copies.
        """
        true, plain, scale, focus = self.truth.video, self.plain, self.settings.scale, self.focus
        psnr, ssim = scores.psnr(video, true), scores.ssim(video, true)
        above = psnr - scores.psnr(plain, true)
        error, low_error = (
            float(scores.error(made, self.latents).mean()) for made in (latents, self.low_latents)
        )
        net = self.settings.lpips
        perceived: Figures = {"lpips": mean(lpips(video[focus], true[focus], net))} if net else {}
        moving = true.shape[2] > 1
        return {
            **perceived,
            "psnr_db": mean(psnr[focus]),
            "gain_db": mean(above[focus]),
            "ssim": mean(ssim[focus]),
            "ssim_gain": mean((ssim - scores.ssim(plain, true))[focus]),
            "detail": mean(scores.detail(video, true, scale)[focus]),
            "flicker_db": mean(scores.flicker(video, true)[focus]) if moving else None,
            "latent_error": ratio(error, low_error),
            "other_gain_db": mean(above[~focus]),
        }

    @torch.no_grad()
    def enhanced(self, model: nn.Module, prompts: Sequence[str], evaluations: int) -> tuple[Tensor, Tensor]:
        """Videos (N, 3, T, H, W) and latents (N, C, t, h, w). The noise does not depend on the prompts."""
        sampling = self.config.sampling.model_copy(update={"steps": evaluations})
        codec, patch = self.trained.codec, self.config.transformer.patch
        t, h, w = self.latents.shape[2:]
        step = stage2.noise_step(self.config.degradation, sampling, tokens((t, h, w), patch))
        texts, negative = self.trained.embedded(prompts)
        videos, latents = [], []
        for k, text in enumerate(texts):
            made = stage2.sample(
                model,
                sampling,
                self.low_latents[k : k + 1],
                step,
                text,
                negative,
                "evaluate",
                k,
                positions=self.config.transformer.positions,
            )
            latents.append(made)
            videos.append(codec.decode(made, self.truth.video.shape[2]).cpu())
        if not all(bool(torch.isfinite(made).all()) for made in latents):
            raise ValueError(
                f"{self.trained.folder}: the network makes values that are not finite, so its training has "
                "diverged; train again with a smaller train.learning_rate"
            )
        return torch.cat(videos), torch.cat(latents)


def evaluate_stage2(
    trained: Trained, truth: Clips, settings: Settings, found: Judge | None, say: Say
) -> Found:
    """The figures of Stage II, in rows by name.

    The rows are bicubic, low-quality copies, several numbers of evaluations, other and wrong prompts, and
    untrained weights. found: None means that no words are judged.
    """
    of = Restoring(trained, truth, settings)
    prompts = [caption or "" for caption in truth.captions]
    figures: Figures = {}
    notes = _remarks(trained, settings)

    def add(name: str, video: Tensor, latents: Tensor) -> None:
        figures[name] = of.row(video, latents)
        if found:
            figures[name]["shown"] = read_by(found, video, truth.captions)

    def restore(name: str, model: nn.Module, texts: Sequence[str], evaluations: int) -> None:
        say(f"stage2: {len(truth)} clips, {name.replace('_', ' ')}")
        add(name, *of.enhanced(model, texts, evaluations))

    add("bicubic", of.plain, of.encoded(of.plain))
    add("low_quality", of.low, of.low_latents)
    network = trained.model()
    usual = trained.config.sampling.steps
    counts = sorted({*settings.evaluations, usual})
    for n in counts:
        restore(f"evaluations_{n}", network, prompts, n)
    others = {
        "shuffled_prompts": shuffled(prompts),
        "wrong_prompts": [swapped(prompt, settings.swap) for prompt in prompts],
    }
    for name, texts in others.items():
        if texts != prompts:
            restore(name, network, texts, usual)
    if "shuffled_prompts" not in figures:
        notes.append("stage2: all captions are the same, so there is no control with other captions")
    if settings.swap and "wrong_prompts" not in figures:
        notes.append(f"stage2: no caption has one of the words of swap: {', '.join(settings.swap)}")
    del network  # one network is loaded at a time
    if trained.device.type == "cuda":
        free(trained.device)
    restore("untrained", trained.untrained(), prompts, usual)

    fewest, chosen, most = (figures[f"evaluations_{n}"] for n in (counts[0], usual, counts[-1]))
    figures["usual"] = chosen
    figures["detail_over_fewest"] = ratio(chosen["detail"], fewest["detail"])
    if "wrong_prompts" in figures:
        figures["wrong_prompts_cost_db"] = chosen["psnr_db"] - figures["wrong_prompts"]["psnr_db"]
    figures["short_of_most_db"] = most["psnr_db"] - chosen["psnr_db"]
    return Found(figures, notes)


def _remarks(trained: Trained, settings: Settings) -> list[str]:
    low, high = trained.config.degradation.scale
    if low <= settings.scale <= high:
        return []
    pictures = "smaller" if settings.scale > high else "larger"
    return [
        f"stage2: bicubic starts from {pictures} pictures (scale {settings.scale:g}) than Stage II does "
        f"(degradation.scale {low:g} to {high:g}), so gains over bicubic mean little; take scale={low:g}"
    ]
