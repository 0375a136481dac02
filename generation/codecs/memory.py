"""What a codec takes of memory, measured at a few pixels."""

from __future__ import annotations

import torch

from generation.codecs.base import Codec
from generation.codecs.footprint import Footprint
from generation.config import Bucket


def codec_bytes(codec: Codec, shape: Bucket, actions: tuple[str, ...]) -> tuple[float, float]:
    """Of its weights, and what it has alive in the hungriest of `actions`, "encode" or "decode".

    Measured at a few pixels, at which it is really done, and scaled up: all of it goes with the area.
    """
    t, h, w = codec.grid(shape.frames, shape.height, shape.width)
    settings = codec.settings
    few = min(t, 2 * max(settings.slice_latents, 2) + 1)  # every later piece finds what the one before left
    tile = settings.tile or max(h, w)
    found = [_per_latent(codec, few, action) for action in actions]
    return max(weights for weights, _ in found), max(alive for _, alive in found) * min(h, tile) * min(
        w, tile
    )


_measured: dict[tuple[object, ...], tuple[float, float]] = {}


def _per_latent(codec: Codec, few: int, action: str) -> tuple[float, float]:
    """Of the weights, and for each latent pixel, in so many latent frames."""
    key = (codec.hash, str(codec.device), codec.settings.slice_latents, few, action)
    if key not in _measured:
        side, frames = 2, (few - 1) * codec.temporal + 1
        with Footprint() as counted:
            if action == "encode":
                pixels = side * codec.spatial
                codec.encode(torch.zeros((1, 3, frames, pixels, pixels), device=codec.device))
            else:
                latents = torch.zeros((1, codec.channels, few, side, side), device=codec.device)
                for piece in codec.decode_stream(latents, frames):
                    del piece
        _measured[key] = float(counted.given), counted.peak / side**2
    return _measured[key]
