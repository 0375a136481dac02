"""A trained stage, opened for sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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
    """A trained stage. The network is loaded when it is wanted, and let go of before the next one."""

    config: Config
    folder: Path
    hash: str
    codec: Codec
    text: TextCache
    device: torch.device

    @property
    def precision(self) -> str:
        """That the network computes in: bf16 or fp32."""
        return "bf16" if uses_bf16(self.config.train.precision, self.device) else "fp32"

    def model(self, how: Execution = Execution()) -> nn.Module:  # noqa: B008 (frozen)
        """The network with its trained weights for sampling, placed as `how` says."""
        weights = self.folder / "weights"
        config = self.config.model_copy(update={"lora": None})
        if not self.config.lora:
            wanted = config.transformer.model_copy(update={"pretrained": str(weights), "revision": None})
            config = config.model_copy(update={"transformer": wanted})
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(config, self.codec.channels, self.text.dim, dtype)
        if self.config.lora:
            adapters.load(model, weights)
            adapters.fuse(model)  # as they are published, and without their cost
        return make_ready(model.eval().requires_grad_(False), self.device, how)

    def untrained(self) -> nn.Module:
        """The network as it was at step 0, on the device."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(self.config, self.codec.channels, self.text.dim, dtype)
        return make_ready(model.eval().requires_grad_(False), self.device, Execution())

    def embedded(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        """Tokens of prompts as they are sampled with, and of the negative one. The encoder is let go of."""
        sampling = self.config.sampling
        texts = self.text.get([sampling.told(prompt) for prompt in prompts])
        negative = self.text.get([sampling.negative_prompt])[0] if sampling.negative_prompt else None
        self.text.release()
        return texts, negative


def open_trained(run: Path, stage: str, device: torch.device) -> Trained:
    """A stage for sampling. Raises `ValueError` when it is not there, or has no weights yet."""
    config = read_config(run, stage)
    folder = run / stage
    path = folder / "weights" / "weights.json"
    if not path.exists():
        raise ValueError(
            f"{folder} has no weights yet: its training was not stopped in good order before the first "
            f"checkpoint; reelmill train {stage} --data DATASET --out {run} goes on with it"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    digest = content_hash([about["hash"], base_identity(config)])
    codec = open_codec(config.codec, device)
    check_latents_hash(about.get("latents", ""), codec, folder)
    text = TextCache(None, open_text(config.text, device))
    return Trained(config, folder, digest, codec, text, device)
