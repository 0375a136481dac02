"""The network of a stage, from its configuration to its exported weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.config import Config, Transformer
from generation.disk import disk_errors
from generation.models import cogvideox
from generation.models import lora as adapters
from generation.models.hub import find, fingerprint
from generation.models.pretrained import TRANSFORMER
from generation.run import read_config, write_weights


def build_model(
    config: Config, channels: int, text_dim: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The network of a stage, ready to be trained: from scratch or from `transformer.pretrained`, with LoRA.

    Raises `ValueError` when the checkpoint is missing or has other sizes than configuration, codec and text
    encoder.
    """
    wanted, adapter = _resolved(config.transformer)
    grid = config.latent_grid(config.data.buckets[0])
    model = cogvideox.build(
        wanted, channels, text_dim, config.text.max_tokens, config.codec.temporal, grid, config.seed, dtype
    )
    if adapter:
        adapters.load(model, adapter)
        adapters.fuse(model)
    if config.lora:
        adapters.add(model, config.lora, config.seed)
    return model


def _resolved(wanted: Transformer) -> tuple[Transformer, Path | None]:
    """`pretrained` may be RUN/STAGE of ours: its weights, or for a LoRA its base and the adapters."""
    if not wanted.pretrained:
        return wanted, None
    folder = Path(wanted.pretrained).expanduser()
    weights = folder / "weights"
    if not (folder / "config.json").is_file() or not weights.is_dir():
        return wanted, None
    if (weights / adapters.FILE).is_file():
        base = read_config(folder.parent, folder.name).transformer
        found, below = _resolved(wanted.model_copy(update={"pretrained": base.pretrained}))
        if below:
            raise ValueError(
                f"transformer.pretrained: {folder} is a LoRA on a LoRA; name the run at the bottom, or "
                "train one with lora=null"
            )
        return found, weights
    return wanted.model_copy(update={"pretrained": str(weights)}), None


def base_identity(config: Config) -> list[Any]:
    """What stands for the weights below a LoRA."""
    if not config.lora:
        return []
    base, adapter = _resolved(config.transformer)
    assert base.pretrained is not None
    found = find(TRANSFORMER, base.pretrained, base.revision).identity()
    return [found, fingerprint(adapter) if adapter else None]


def export(
    model: nn.Module,
    config: Config,
    state: Mapping[str, Tensor],
    folder: Path,
    step: int,
    latents_hash: str = "",
) -> Path:
    """Write `weights/`, whole or not at all: the whole transformer, or the LoRA alone.

    latents_hash: what stands for the codec's weights, where others may take their place
    (`codecs.base.latents_hash`).
    """

    def write(aside: Path) -> Path:
        if config.lora:
            return adapters.save_state(model, state, aside)
        with disk_errors(aside):
            return cogvideox.save_state(model, state, aside / "transformer")

    return write_weights(config, folder, step, write, latents_hash)
