"""The memory that a codec needs, measured on a few pixels."""

from __future__ import annotations

import torch

from generation.codecs.base import Codec
from generation.codecs.footprint import Footprint
from generation.config import Bucket


def codec_bytes(codec: Codec, shape: Bucket, actions: tuple[str, ...]) -> tuple[float, float]:
    """The bytes of a codec's weights, and the peak bytes of the most expensive of `actions`.

    shape: the shape of the video; actions: "encode", "decode", or both. The peak is measured by running the
    codec on a few pixels, and scaled up, because the peak is proportional to the area.
    """
    t, h, w = codec.grid(shape.frames, shape.height, shape.width)
    settings = codec.settings
    few = min(t, 2 * max(settings.slice_latents, 2) + 1)  # enough for a piece that has an earlier piece
    tile = settings.tile or max(h, w)
    found = [_per_latent(codec, few, action) for action in actions]
    return max(weights for weights, _ in found), max(alive for _, alive in found) * min(h, tile) * min(
        w, tile
    )


_measured: dict[tuple[object, ...], tuple[float, float]] = {}


def _per_latent(codec: Codec, few: int, action: str) -> tuple[float, float]:
    """The bytes of the weights, and the peak bytes per latent pixel of a video of `few` latent frames."""
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
