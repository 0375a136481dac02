"""A trained Slice VAE as a codec, and the weights of a Slice VAE on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from generation import config
from generation.codecs.base import check_sides
from generation.codecs.slice_vae.network import SliceVAE, latent_frames, slices, surplus
from generation.codecs.tiles import Tiling
from generation.disk import save_tensors

NETWORK, WEIGHTS, ABOUT = "vae.json", "vae.safetensors", "weights.json"


def save_network(settings: config.SliceVae, state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write FOLDER/vae.json and FOLDER/vae.safetensors, and return the path of vae.safetensors.

    state: the weights, including the statistics `latent_mean` and `latent_std`.
    """
    (folder / NETWORK).write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    path = folder / WEIGHTS
    save_tensors(dict(state), path)
    return path


def load_network(folder: Path) -> SliceVAE:
    """Read the folder that `save_network` wrote. Raises `ValueError` if the folder is missing or damaged."""
    try:
        text = (folder / NETWORK).read_text(encoding="utf-8")
        network = SliceVAE(config.SliceVae.model_validate_json(text))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder}: the weights of a Slice VAE cannot be read ({error})") from error
    return network


def find_network(model: str) -> Path:
    """The folder with the weights of `codec.model`, which is RUN/vae of a training or the folder of weights.

    Raises `ValueError` that names a remedy.
    """
    folder = Path(model).expanduser()
    for found in (folder / "weights", folder):
        if (found / NETWORK).is_file():
            return found
    if (folder / "vae" / "weights" / NETWORK).is_file():
        raise ValueError(f"codec.model: {model} is a run; name its autoencoder, {folder / 'vae'}")
    raise ValueError(
        f"codec.model: {model} holds no Slice VAE; train a Slice VAE with `reelmill train vae --data DATASET "
        "--out RUN`, and write codec.model=RUN/vae"
    )


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of the codes, per channel. Latents are (codes - mean) / std."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)


class SliceCodec:
    """A trained Slice VAE. Latents are the mean of the codes, normalised by the statistics in the weights.

    Nothing is random. Videos may have any number of frames. The network processes `codec.slice_latents`
    latent frames at a time. With `codec.tile`, large pictures are divided into tiles. Videos are encoded one
    after the other, in bfloat16 on a GPU that supports it.
    """

    def __init__(self, settings: config.Codec):
        assert settings.model is not None
        self.settings = settings
        folder = find_network(settings.model)
        self._vae = load_network(folder).eval().requires_grad_(False)
        own = self._vae.settings
        for name, value, right in (
            ("temporal", settings.temporal, own.temporal),
            ("spatial", settings.spatial, own.spatial),
        ):
            if value != right:
                raise ValueError(
                    f"codec.{name}: {value}, but {settings.model} has {right}; write codec.{name}={right}"
                )
        self.channels, self.temporal, self.spatial = own.channels, own.temporal, own.spatial
        self.statistics = Statistics(self._vae.latent_mean.clone(), self._vae.latent_std.clone())
        self._slice, self._tile, self._overlap = settings.slice_latents, settings.tile, settings.tile_overlap
        weights = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["hash"]
        tiles = [self._tile, self._overlap] if self._tile else None
        self.hash = config.content_hash(["slice", 1, tiles, weights])

    @property
    def device(self) -> torch.device:
        return self.statistics.mean.device

    def to(self, device: torch.device | str) -> Self:
        where = torch.device(device)
        bf16 = where.type == "cuda" and torch.cuda.is_bf16_supported()
        self._vae.to(where, torch.bfloat16 if bf16 else torch.float32)
        self.statistics = Statistics(self.statistics.mean.to(where), self.statistics.std.to(where))
        return self

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return grid(self._vae.settings, frames, height, width)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._vae.parameters()).dtype

    def _scale(self) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        return self.statistics.mean.view(shape), self.statistics.std.view(shape)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        _, h, w = self.grid(*video.shape[2:])
        tiling = Tiling(h, w, self._tile, self._overlap)
        mean, std = self._scale()
        found = []
        for clip in video:
            parts = (self._codes(tile.of(clip, self.spatial)) for tile in tiling.tiles)
            found.append((tiling.blend(parts) - mean) / std)
        return torch.stack(found)

    def _codes(self, clip: Tensor) -> Tensor:
        """Turn pixels (3, T, H, W) into codes (C, t, h, w)."""
        pixels = clip[None].to(self.device, self._dtype)
        return self._vae.encode(pixels, self._slice * self.temporal)[0][0]

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        return torch.cat(list(self.decode_stream(latents, frames)), dim=2)

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """Each piece has temporal * slice_latents frames. The first and the last piece may be shorter."""
        skip = surplus(frames, latents.shape[2], self.temporal)
        return self._pieces(latents, skip)

    def _pieces(self, latents: Tensor, skip: int) -> Iterator[Tensor]:
        mean, std = self._scale()
        tiling = Tiling(latents.shape[3], latents.shape[4], self._tile, self._overlap)
        pasts = [None] * len(tiling.tiles)
        for start, end in slices(latents.shape[2], self._slice):
            with torch.no_grad():
                codes = (latents[:, :, start:end].to(self.device) * std + mean).to(self._dtype)

                def part(k: int, codes: Tensor = codes) -> Tensor:
                    made, pasts[k] = self._vae.decoder(tiling.tiles[k].of(codes), pasts[k])
                    return made.float()

                piece = tiling.blend([part(k) for k in range(len(pasts))], self.spatial)
            yield piece[:, :, skip:] if start == 0 else piece


def grid(settings: config.SliceVae, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(t, h, w) of the codes of a video of any length. Raises `ValueError` for sides of other sizes."""
    if frames < 1:
        raise ValueError(f"{frames} frames are not a video; take at least 1")
    side = settings.spatial
    check_sides(height, width, side)
    return latent_frames(frames, settings.temporal), height // side, width // side
