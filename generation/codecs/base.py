"""The protocol of all codecs, which turn video into latents and back, and the rules of the latent grid.

Videos are float (B, 3, T, H, W) in [-1, 1] with T = temporal * n + 1. Latents are float32 (B, C, t, h, w)
with t = n + 1. Latent frame 0 holds only the first frame, so an image is a video of one frame. Every later
latent frame holds `temporal` frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from generation import config


class Codec(Protocol):
    """A codec as the stages use it. A codec may hold weights, and only `to` moves the weights.

    Inputs may be on any device. Results are on the codec's device. No gradient flows through a codec.
    """

    @property
    def settings(self) -> config.Codec:
        """Settings that open the same codec again. For a model of the hub, they hold the commit."""
        ...

    @property
    def channels(self) -> int:
        """C, the number of latent channels."""
        ...

    @property
    def temporal(self) -> int:
        """Frames per latent frame, after the first."""
        ...

    @property
    def spatial(self) -> int:
        """Pixels per latent pixel, along each side."""
        ...

    @property
    def hash(self) -> str:
        """A hash of everything that decides the meaning of latents."""
        ...

    @property
    def device(self) -> torch.device: ...

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of the latents of a video. Raises `ValueError` that names right sizes."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """Turn (B, 3, T, H, W) into (B, C, t, h, w). Samples of a batch do not affect one another."""
        ...

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Turn (B, C, t, h, w) into (B, 3, frames, H, W). Values are about [-1, 1] and are not clamped."""
        ...

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """The result of `decode` in pieces (B, 3, n, H, W) of few frames, equal bit for bit."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the codec, and return the same codec. `to("cpu")` frees the memory of an accelerator."""
        ...


def check_grid(
    frames: int, height: int, width: int, temporal: int, spatial: int, multiple: int = 1
) -> tuple[int, int, int]:
    """(t, h, w) of the latents of a causal codec. h and w must be multiples of `multiple`, too.

    Raises `ValueError` that names the nearest right lengths.
    """
    if frames < 1 or (frames - 1) % temporal:
        below = (frames - 1) // temporal * temporal + 1
        raise ValueError(
            f"{frames} frames are not {temporal}n + 1; take {_or(below, below + temporal, at_least=1)}"
        )
    check_sides(height, width, spatial * multiple)
    return (frames - 1) // temporal + 1, height // spatial, width // spatial


def check_sides(height: int, width: int, multiple: int) -> None:
    """Check that both sides are multiples of `multiple`. A `ValueError` names the nearest multiples."""
    for name, length in (("height", height), ("width", width)):
        if length < 1 or length % multiple:
            below = length // multiple * multiple
            nearest = _or(below, below + multiple, at_least=multiple)
            raise ValueError(f"{name} {length} is no multiple of {multiple}; take {nearest}")


def _or(low: int, high: int, at_least: int) -> str:
    return f"{low} or {high}" if low >= at_least else str(max(high, at_least))


def latents_hash(codec: Codec) -> str:
    """The hash of a Slice VAE's weights, which a later training may replace. "" for other codecs."""
    return codec.hash if codec.settings.kind == "slice" else ""


def check_latents_hash(before: str, codec: Codec, folder: Path) -> None:
    """Raises `ValueError` if the stage in `folder` was trained on the latents of other codec weights.

    before: the hash at the time of the training.
    """
    if before and before != latents_hash(codec):
        raise ValueError(
            f"{folder} was trained on the latents of other weights than {codec.settings.model} holds now "
            "(codec.model was trained further, or replaced); restore the earlier weights, or train the stage "
            "again with another --out"
        )
