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
    """The network of a stage, ready for training: from scratch or from `transformer.pretrained`, with LoRA.

    channels: of the latents; text_dim: of the text tokens. Raises `ValueError` when the checkpoint is
    missing, or when its sizes do not fit the configuration, the codec and the text encoder.
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
    """The base weights and the folder of adapters, if `pretrained` is RUN/STAGE of a reelmill training.

    A stage that was trained without LoRA has no folder of adapters (None). The same holds for checkpoints.
    """
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
                f"transformer.pretrained: {folder} is a LoRA on a LoRA; name the run of the first LoRA, or "
                "train a run with lora=null"
            )
        return found, weights
    return wanted.model_copy(update={"pretrained": str(weights)}), None


def base_identity(config: Config) -> list[Any]:
    """Hashes that identify the weights below a LoRA. An empty list: no LoRA."""
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
    """Write `weights/` completely or not at all: the whole transformer, or only the LoRA.

    latents_hash: identifies the codec's weights, where a later training may replace the codec
    (`codecs.base.latents_hash`). Returns the folder `weights/`.
    """

    def write(aside: Path) -> Path:
        if config.lora:
            return adapters.save_state(model, state, aside)
        with disk_errors(aside):
            return cogvideox.save_state(model, state, aside / "transformer")

    return write_weights(config, folder, step, write, latents_hash)
