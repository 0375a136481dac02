"""How sampling computes: what lies on the device when, and in which pieces.

It decides time and memory, and of the result nothing but the rounding.
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
    """none: network and codec stay on the device. model: one of them at a time is there, and the other in the
    CPU's memory. block: as model, and of the network one block at a time."""

    offload: Offload = "none"
    guidance: Literal["auto", "together", "apart"] = "auto"  # auto: together where memory holds both rows
    compile: bool = False  # each block

    def __post_init__(self) -> None:
        if self.compile and self.offload == "block":
            raise ValueError(
                "--compile: not with --offload block, which exchanges the weights; take --offload model"
            )


def make_ready(model: nn.Module, device: torch.device, how: Execution) -> nn.Module:
    """A network on the CPU, made ready: on the device, or to come there when it is used (`visiting`)."""
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
    """Within, a network or a codec is on the device; before and after it is where `how` wants it."""
    library: Any = part
    if isinstance(part, nn.Module):
        stays = how.offload in {"none", "block"}  # blocks come by themselves
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
