"""The published CogVideoX autoencoder as a codec. It turns 8 x 8 pixels and 4 frames into 16 channels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from generation import config
from generation.codecs.base import check_grid
from generation.codecs.tiles import Tiling
from generation.models.hub import find
from generation.models.pretrained import VAE, read


class CogVideoXCodec:
    """diffusers' `AutoencoderKLCogVideoX`. The latents of a clip are the posterior's mean: nothing is random.

    Latents are the codes divided by `std`, which is 1 / the published scaling factor. Like the library, this
    codec works in chunks of 8 frames and 2 latent frames. The first chunk has one more. Only videos of 8n + 1
    frames keep their length, so other lengths are refused. The group norms use the statistics of a chunk, so
    the chunks must not change. Videos are encoded one after the other, in bfloat16 on a GPU that supports it.
    """

    temporal, spatial = 4, 8

    def __init__(self, settings: config.Codec):
        assert settings.model is not None
        for name, value, own in (("temporal", settings.temporal, 4), ("spatial", settings.spatial, 8)):
            if value != own:
                raise ValueError(f"codec.{name}: {value}, but codec.kind=cogvideox has {own}")
        location = find(VAE, settings.model, settings.revision)
        vae: Any = read(location)
        self._vae = vae.eval().requires_grad_(False)
        self.settings = settings.model_copy(update={"revision": location.commit})
        self.channels = int(self._vae.config.latent_channels)
        self.std = settings.std
        self._tile, self._overlap = settings.tile, settings.tile_overlap
        tiles = [[self._tile, self._overlap]] if self._tile else []
        self.hash = config.content_hash(["cogvideox", 2, settings.std, location.identity(), *tiles])

    @property
    def device(self) -> torch.device:
        device: torch.device = self._vae.device
        return device

    def to(self, device: torch.device | str) -> Self:
        where = torch.device(device)
        bf16 = where.type == "cuda" and torch.cuda.is_bf16_supported()
        torch.nn.Module.to(self._vae, where, torch.bfloat16 if bf16 else torch.float32)
        return self

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of the latents. Raises `ValueError` for lengths other than 8n + 1, which would change."""
        if (frames - 1) % 8:
            below = (frames - 1) // 8 * 8 + 1
            raise ValueError(
                f"{frames} frames are not 8n + 1, as codec.kind=cogvideox needs; take {below} or {below + 8}"
            )
        return check_grid(frames, height, width, self.temporal, self.spatial)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        _, h, w = self.grid(*video.shape[2:])
        tiling = Tiling(h, w, self._tile, self._overlap)
        codes = [
            tiling.blend(self._codes(tile.of(clip, self.spatial)) for tile in tiling.tiles) for clip in video
        ]
        return torch.cat(codes).float() / self.std

    def _codes(self, clip: Tensor) -> Tensor:
        """Turn pixels (3, T, H, W) into codes (1, C, t, h, w)."""
        codes: Tensor = self._vae.encode(clip[None].to(self.device, self._vae.dtype)).latent_dist.mode()
        return codes

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        return torch.cat(list(self.decode_stream(latents, frames)), dim=2)

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """The first piece has 9 frames, or 1 frame for an image. The other pieces have 8 frames each.

        With tiles, each tile is decoded over the whole time before the next tile, because a tile stores much
        data for its next piece. The first piece appears after the last tile.
        """
        t, h, w = latents.shape[2:]
        if self.grid(frames, h * self.spatial, w * self.spatial)[0] != t:
            raise ValueError(
                f"{t} latent frames are {(t - 1) * self.temporal + 1} frames of video, not {frames}"
            )
        tiling = Tiling(h, w, self._tile, self._overlap)
        if len(tiling.tiles) == 1:
            return self._pieces(latents)
        return self._tiled(latents, tiling)

    @torch.no_grad()
    def _tiled(self, latents: Tensor, tiling: Tiling) -> Iterator[Tensor]:
        parts = (torch.cat(list(self._pieces(tile.of(latents))), dim=2) for tile in tiling.tiles)
        whole = tiling.blend(parts, self.spatial)
        frames = whole.shape[2]
        for start, end in pairwise([0, *range(min(9, frames), frames + 1, 8)]):
            yield whole[:, :, start:end]

    def _pieces(self, latents: Tensor) -> Iterator[Tensor]:
        codes = (latents.to(self.device) * self.std).to(self._vae.dtype)
        count = codes.shape[2]
        bounds = [0, *range(min(3, count), count + 1, 2)]
        cache: Any = None
        for start, end in pairwise(bounds):
            with torch.no_grad():
                part = codes[:, :, start:end]
                if self._vae.post_quant_conv is not None:
                    part = self._vae.post_quant_conv(part)
                piece, cache = self._vae.decoder(part, conv_cache=cache)
            yield piece.float()
