"""Between video and latents: the protocol that the stages talk to, and the rules of its grid.

Videos are float (B, 3, T, H, W) in [-1, 1] with T = temporal * n + 1, latents float32 (B, C, t, h, w) with
t = n + 1. Latent frame 0 stands for the first frame alone, so an image is a video of one frame; a later one
stands for `temporal` frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from generation import config


class Codec(Protocol):
    """What the stages know of a codec. It may hold weights: `to` moves it, and nothing else does.

    Inputs may lie on any device, results lie on the codec's own, and no gradient flows through it.
    """

    @property
    def settings(self) -> config.Codec:
        """What opens it again, the same: of a hub's model, the commit."""
        ...

    @property
    def channels(self) -> int: ...

    @property
    def temporal(self) -> int:
        """Frames per latent frame, after the first."""
        ...

    @property
    def spatial(self) -> int:
        """Pixels per latent pixel, each way."""
        ...

    @property
    def hash(self) -> str:
        """Stands for everything that decides what latents mean."""
        ...

    @property
    def device(self) -> torch.device: ...

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of the latents of such a video. `ValueError` says what size would be right."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, t, h, w), each sample as if it were alone."""
        ...

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """(B, C, t, h, w) to (B, 3, frames, H, W), about [-1, 1] and not clamped."""
        ...

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """The pieces (B, 3, n, H, W) that make up `decode`, bit for bit, each of few frames."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Itself, moved. `to("cpu")` frees an accelerator's memory."""
        ...


def check_grid(
    frames: int, height: int, width: int, temporal: int, spatial: int, multiple: int = 1
) -> tuple[int, int, int]:
    """(t, h, w) of a causal codec's latents; h and w must be multiples of `multiple`, too.

    `ValueError` names the nearest lengths that are right.
    """
    if frames < 1 or (frames - 1) % temporal:
        below = (frames - 1) // temporal * temporal + 1
        raise ValueError(
            f"{frames} frames are not {temporal}n + 1; take {_or(below, below + temporal, at_least=1)}"
        )
    check_sides(height, width, spatial * multiple)
    return (frames - 1) // temporal + 1, height // spatial, width // spatial


def check_sides(height: int, width: int, multiple: int) -> None:
    """`ValueError` names the nearest multiples."""
    for name, length in (("height", height), ("width", width)):
        if length < 1 or length % multiple:
            below = length // multiple * multiple
            nearest = _or(below, below + multiple, at_least=multiple)
            raise ValueError(f"{name} {length} is no multiple of {multiple}; take {nearest}")


def _or(low: int, high: int, at_least: int) -> str:
    return f"{low} or {high}" if low >= at_least else str(max(high, at_least))


def latents_hash(codec: Codec) -> str:
    """What stands for the weights of an autoencoder of one's own, which a later training may replace."""
    return codec.hash if codec.settings.kind == "slice" else ""


def check_latents_hash(before: str, codec: Codec, folder: Path) -> None:
    """Raises `ValueError` where a stage was trained on what other weights of the codec gave."""
    if before and before != latents_hash(codec):
        raise ValueError(
            f"{folder} was trained on the latents of other weights than {codec.settings.model} holds now "
            "(codec.model: it was trained on, or replaced); put those of then back, or train the stage anew "
            "with another --out"
        )
