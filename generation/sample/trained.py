"""A trained stage, opened for sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from generation import allowed
from generation.codecs.base import Codec, check_latents_hash
from generation.codecs.open import open_codec
from generation.config import Config, content_hash
from generation.device import uses_bf16
from generation.models import lora as adapters
from generation.models.network import base_identity, build_model
from generation.run import read_config
from generation.sample.execution import Execution, make_ready
from generation.text.cache import TextCache
from generation.text.open import open_text


@dataclass
class Trained:
    """A trained stage. `model` loads its network, and callers release it before the next network."""

    config: Config
    folder: Path
    hash: str  # of the weights, including the base of a LoRA
    codec: Codec
    text: TextCache
    device: torch.device

    @property
    def precision(self) -> str:
        """The precision of the network's computation: bf16 or fp32."""
        return "bf16" if uses_bf16(self.config.train.precision, self.device) else "fp32"

    def model(self, how: Execution = Execution()) -> nn.Module:  # noqa: B008 (frozen)
        """The network with its weights for sampling, placed as `how` says."""
        weights = self.folder / "weights"
        config = self.config.model_copy(update={"lora": None})
        if not self.config.lora:
            wanted = config.transformer.model_copy(update={"pretrained": str(weights), "revision": None})
            config = config.model_copy(update={"transformer": wanted})
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(config, self.codec.channels, self.text.dim, dtype)
        if self.config.lora:
            adapters.load(model, weights)
            adapters.fuse(model)  # fused adapters cost no time
        return make_ready(model.eval().requires_grad_(False), self.device, how)

    def untrained(self) -> nn.Module:
        """The network with its weights of step 0, on the device."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(self.config, self.codec.channels, self.text.dim, dtype)
        return make_ready(model.eval().requires_grad_(False), self.device, Execution())

    def embedded(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        """Token states (L, D) of each prompt, and of the negative prompt or None. Frees the encoder."""
        sampling = self.config.sampling
        texts = self.text.get([sampling.told(prompt) for prompt in prompts])
        negative = self.text.get([sampling.negative_prompt])[0] if sampling.negative_prompt else None
        self.text.release()
        return texts, negative


def open_trained(run: Path, stage: str, device: torch.device) -> Trained:
    """Open a stage for sampling. Raises `ValueError` when the stage is missing or has no weights yet."""
    config = read_config(run, stage)
    folder = run / stage
    path = folder / "weights" / "weights.json"
    if not path.exists():
        raise ValueError(
            f"{folder} has no weights yet, as its training ended before the first checkpoint; "
            f"reelmill train {stage} --data DATASET --out {run} resumes it"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    digest = content_hash([about["hash"], base_identity(config)])
    allowed.recall(run, config.codec.kind)
    codec = open_codec(config.codec, device)
    check_latents_hash(about.get("latents", ""), codec, folder)
    text = TextCache(None, open_text(config.text, device))
    return Trained(config, folder, digest, codec, text, device)
