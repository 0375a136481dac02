"""What a trained run can do, measured: how, and of its autoencoder and Stage II; `following` has the others.

Every part is a function that returns figures, plain numbers by name. A figure that says nothing is None, and
a note says why. Beside what is claimed stand controls, which must do worse: untrained weights, other prompts,
bicubic scaling, a video that stands still.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from generation.codecs.base import Codec
from generation.config import Positive
from generation.evaluate import scores
from generation.evaluate.bars import Bar
from generation.evaluate.following import Figures, Found, Say, mean, ratio, read_by, shuffled, swapped
from generation.evaluate.judge import Judge, labels
from generation.evaluate.networks import lpips
from generation.evaluate.real_clips import Clips
from generation.models.cogvideox import tokens
from generation.process import stage2
from generation.process.degrade import degrade_pixels
from generation.run import Trained
from generation.sample.execution import free

FIT_DB = 2.0  # that a codec's reconstruction must be above bicubic, for claims in its latents to count
FIT_DETAIL = 0.7  # and the part of the detail that it must keep
_CLAIMS = ("_db", ".ssim", ".ssim_gain", ".latent_error")  # ends of figures that are such claims
# Names of figures that stand beside those of the groups of words.
_TAKEN = {
    *("clip_similarity", "clip_similarity_shuffled_prompts", "direction_by_flow", "frechet", "jointly"),
    *("jointly_over_chance", "kernel_distance", "real_spread", "seen", "shuffled_prompts", "spread"),
    *("stage1_bicubic", "stage1_bicubic_over_static", "standing_still", "two_stage_over_stage1_bicubic"),
    *("unseen", "untrained", "videos"),
}


class Clip(BaseModel):
    """A model of open_clip that says how well a video fits its prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    pretrained: str | None = None  # one of its tags, or a file; null: a folder has its own


class Settings(BaseModel):
    """How a run is evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clips: Positive = 64  # held-out clips: for the autoencoder, and for Stage II
    prompts: Positive = 64  # captions of held-out clips, that videos are made of
    untrained: Annotated[int, Field(ge=0)] = 16  # of the prompts that an untrained Stage I gets, as a control
    evaluations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)  # of Stage II
    scale: Annotated[float, Field(gt=1)] = 2.0  # of bicubic: down and up again
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(default_factory=dict)
    focus: str | None = None  # Stage II is told of clips with this word in their caption
    swap: dict[str, str] = Field(default_factory=dict)  # words put in the place of others: the wrong prompt
    lpips: Literal["alex", "vgg", "squeeze"] | None = None  # its weights are a download of torchvision's
    clip: Clip | None = None
    extractor: str | None = None  # package.module:factory, for distances of sets; null: the judge's features
    extractor_weights: str | None = None
    judge_clips: Positive = 2048  # pieces of clips that the judge is trained on
    judge_steps: Positive = 400
    seed: int = 0
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _words(self) -> Settings:
        for name, group in self.attributes.items():
            if not name.isidentifier() or name in _TAKEN or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"attributes.{name}: a group has a name of letters, digits and _ that nothing else has; "
                    "take another"
                )
            for word in group:
                _check_word(f"attributes.{name}", word)
            if len({word.lower() for word in group}) < len(group):
                raise ValueError(
                    f"attributes.{name}: a word comes twice in {', '.join(group)}; write it once"
                )
        for key, words in (("focus", [self.focus] if self.focus is not None else []), ("swap", self.swap)):
            for word in words:
                _check_word(key, word)
        return self


def _check_word(key: str, word: str) -> None:
    if not re.fullmatch(r"\w+", word):
        raise ValueError(
            f"{key}: {word!r} is not one word, of letters and digits, as captions are searched for; name one"
        )


# ---------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_codec(codec: Codec, truth: Clips, settings: Settings) -> Found:
    """What a codec gives back of real clips, beside bicubic."""
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
    """Whether latents of the codec hold what Stage II has to restore."""
    return bool(figures["gain_db"] >= FIT_DB and figures["detail"] >= FIT_DETAIL)


def void(figures: Figures, path: str) -> str:
    """Why a figure counts for nothing; nothing where it counts."""
    is_fit = figures.get("stage2", {}).get("vae_fit", True)
    claims = path.startswith("stage2.") and path.endswith(_CLAIMS)
    return "VAE unfit" if claims and not is_fit else ""


def in_focus(captions: Sequence[str | None], settings: Settings) -> Tensor:
    """Which clips Stage II is told of: (N,) bool. Raises `ValueError` when there are none."""
    if settings.focus is None:
        return torch.ones(len(captions), dtype=torch.bool)
    truth = labels(captions, {"focus": (settings.focus,)})[:, 0] == 0
    if not bool(truth.any()):
        raise ValueError(
            f"focus: no caption of the {len(captions)} held-out clips has the word {settings.focus}; name "
            "one that they have, take more clips, or write focus=null"
        )
    return truth


# ---------------------------------------------------------------------------------------------------
# Stage II
# ---------------------------------------------------------------------------------------------------


class Restoring:
    """Held-out clips, their degraded copies, and what a network makes of these."""

    def __init__(self, trained: Trained, truth: Clips, settings: Settings):
        self.trained, self.config, self.truth, self.settings = trained, trained.config, truth, settings
        # Each clip's own degradation, as in training: of a batch all would get the same.
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
        codec = self.trained.codec
        return torch.cat([codec.encode(video[None].to(codec.device)) for video in videos])

    def row(self, video: Tensor, latents: Tensor) -> Figures:
        """PSNR and the like of the clips in focus; gains are over bicubic. The latent error is that of all
        clips, over the low-quality copies'."""
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
        """Videos and latents, with the same noise whatever the prompts are."""
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
                f"{self.trained.folder}: it makes values that are no numbers, so its training has diverged; "
                "train it anew, with a smaller train.learning_rate"
            )
        return torch.cat(videos), torch.cat(latents)


def evaluate_stage2(
    trained: Trained, truth: Clips, settings: Settings, found: Judge | None, say: Say
) -> Found:
    """Rows by name: bicubic, low-quality copies, 1 and more evaluations, other and wrong prompts, untrained
    weights."""
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
        notes.append("stage2: all captions are the same, so there are no others to shuffle them with")
    if settings.swap and "wrong_prompts" not in figures:
        notes.append(f"stage2: no caption has one of the words of swap: {', '.join(settings.swap)}")
    del network  # one at a time
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
        f"(degradation.scale {low:g} to {high:g}), so gains over it are of little meaning; take scale={low:g}"
    ]
