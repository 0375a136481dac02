"""Opens the stage that a configuration names, for training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from generation.config import Config
from generation.train.diffusion_stage import open_diffusion
from generation.train.stage import Stage
from generation.train.vae_stage import open_vae


def open_stage(
    config: Config,
    device: torch.device,
    folder: Path,
    world_size: int = 1,
    say: Callable[[str], None] | None = None,
) -> Stage[Any]:
    """Load or make everything that training a stage needs. Raises `ValueError` for missing parts.

    say: is called with a line about the memory that training needs, before the network is made. With `say`,
    too little memory raises `ValueError` as well.
    """
    if config.stage == "vae":
        return open_vae(config, device, world_size, say)
    return open_diffusion(config, device, folder, world_size, say)
