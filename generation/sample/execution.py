"""How sampling computes: which parts are on the device at which time.

This decides time and memory. In the result it changes only the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from generation.codecs.base import Codec
from generation.device import free
from generation.models.cogvideox import compile_blocks
from generation.sample.memory import Offload


@dataclass(frozen=True)
class Execution:
    """How sampling computes.

    offload: `none`: network and codec stay on the device. `model`: one of the two is on the device, and the
    other is in the memory of the CPU. `block`: as `model`, and the network is on the device block by block.
    """

    offload: Offload = "none"
    guidance: Literal["auto", "together", "apart"] = "auto"  # auto: together if both rows fit the memory
    compile: bool = False  # compile each block

    def __post_init__(self) -> None:
        if self.compile and self.offload == "block":
            raise ValueError(
                "--compile does not work with --offload block, which exchanges weights; take --offload model"
            )


def make_ready(model: nn.Module, device: torch.device, how: Execution) -> nn.Module:
    """Prepare a network that is on the CPU: move it to the device, or leave that to `visiting`."""
    library: Any = model
    if how.compile:
        compile_blocks(library.transformer_blocks)
    if how.offload == "none":
        nn.Module.to(model, device)
    elif how.offload == "block":
        library.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )
    return model


@contextmanager
def visiting(part: nn.Module | Codec, device: torch.device, how: Execution) -> Iterator[None]:
    """Within this context, a network or codec is on the device. Outside it is where `how` places it."""
    library: Any = part
    if isinstance(part, nn.Module):
        stays = how.offload in {"none", "block"}  # with `block`, diffusers moves the blocks
    else:
        stays = how.offload == "none"
    if stays:
        yield
        return
    library.to(device)
    try:
        yield
    finally:
        library.to("cpu")
        free(device)
