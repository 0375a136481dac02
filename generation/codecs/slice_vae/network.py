"""Slice VAE: a causal 3D autoencoder that processes a video in slices of time (after EasyAnimate's).

A latent frame covers `temporal` frames of video and is aligned at their end. T frames have ceil(T / temporal)
latent frames. If `temporal` does not divide T, the first frame is repeated in front. An image has one latent
frame. Convolutions use present and past frames, and normalisation uses one pixel, so slices give exactly the
same result as the whole video. A slice gets earlier frames from the tails of the previous slice
(`generation.codecs.slice_vae.causal`).

Differences from EasyAnimate's autoencoder:
- There is no attention in the middle. A pixel depends on a bounded neighbourhood, so tiles can be blended.
- There is no second stream that is shifted by half a slice.
- When a layer doubles the frames, the two frames of a pair have separate weights.
- A linear map from patches to codes and back runs beside the network. The map starts as a truncated DCT, and
  the output of an untrained network is zero. Brightness therefore needs no path through the norms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation import config
from generation.codecs.dct import dct_matrix
from generation.codecs.slice_vae.causal import CausalConv, Down, Norm, Past, Residual, Up, through

IMAGE = 3  # channels
FIRST_LOG_VARIANCE = -6.0


class Encoder(nn.Module):
    """Turns (B, 3, T, H, W) into mean and logarithm of variance of the codes, together (B, 2 C, t, h, w).

    T is a multiple of `temporal`.
    """

    def __init__(self, settings: config.SliceVae):
        super().__init__()
        widths = settings.widths
        self.recompute = settings.gradient_checkpointing
        self.patch = settings.patch_frames, settings.patch
        pixels = IMAGE * settings.patch_frames * settings.patch**2
        layers: list[nn.Module] = [CausalConv(pixels, widths[0], settings.time_kernel(0))]
        width = widths[0]
        for level, wider in enumerate(widths):
            time = settings.time_kernel(level)
            for _ in range(settings.blocks):
                layers.append(Residual(width, wider, time))
                width = wider
            if level < len(widths) - 1:
                layers.append(Down(width, *settings.factors(level)))
        layers += [Residual(width, width, time) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(width)
        self.out = nn.Conv3d(width, 2 * settings.channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias[: settings.channels])
        # With variance 1, the noise would hide the mean at the start.
        nn.init.constant_(self.out.bias[settings.channels :], FIRST_LOG_VARIANCE)
        block = settings.temporal, settings.spatial, settings.spatial
        self.linear = nn.Conv3d(IMAGE, settings.channels, block, block, bias=False)
        self.linear.weight.data.copy_(lowest_frequencies(settings.channels, *block[:2]))

    def forward(self, video: Tensor, past: Past = None) -> tuple[Tensor, Past]:
        x, past = through(self.layers, folded(video, *self.patch), past, self.recompute)
        mean, spread = self.out(functional.silu(self.norm(x))).chunk(2, dim=1)
        return torch.cat([mean + self.linear(video), spread], dim=1), past


class Decoder(nn.Module):
    """Turns codes (B, C, t, h, w) into video (B, 3, temporal * t, spatial * h, spatial * w)."""

    def __init__(self, settings: config.SliceVae):
        super().__init__()
        widths = settings.widths
        self.recompute = settings.gradient_checkpointing
        deepest = len(widths) - 1
        width, time = widths[-1], settings.time_kernel(deepest)
        layers: list[nn.Module] = [CausalConv(settings.channels, width, time)]
        layers += [Residual(width, width, time) for _ in range(2)]
        for level in reversed(range(len(widths))):
            if level < deepest:
                layers.append(Up(width, *settings.factors(level)))
            for _ in range(settings.blocks + 1):
                layers.append(Residual(width, widths[level], settings.time_kernel(level)))
                width = widths[level]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(width)
        self.patch = settings.patch_frames, settings.patch
        pixels = IMAGE * settings.patch_frames * settings.patch**2
        self.out = nn.Conv3d(width, pixels, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        block = settings.temporal, settings.spatial, settings.spatial
        self.linear = nn.ConvTranspose3d(settings.channels, IMAGE, block, block, bias=False)
        self.linear.weight.data.copy_(lowest_frequencies(settings.channels, *block[:2]))

    def forward(self, codes: Tensor, past: Past = None) -> tuple[Tensor, Past]:
        x, past = through(self.layers, codes, past, self.recompute)
        made = unfolded(self.out(functional.silu(self.norm(x))), *self.patch)
        return made + self.linear(codes), past


class SliceVAE(nn.Module):
    """Encoder and decoder, and the statistics of the codes, which are measured after training."""

    latent_mean: Tensor  # (C,)
    latent_std: Tensor  # (C,)

    def __init__(self, settings: config.SliceVae):
        super().__init__()
        self.settings = settings
        self.encoder, self.decoder = Encoder(settings), Decoder(settings)
        self.register_buffer("latent_mean", torch.zeros(settings.channels))
        self.register_buffer("latent_std", torch.ones(settings.channels))

    def encode(self, video: Tensor, slice_frames: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of variance of the codes, each (B, C, t, h, w), of a video in [-1, 1].

        slice_frames: frames of a slice, a multiple of `temporal`; None: all frames at once.
        """
        temporal = self.settings.temporal
        assert slice_frames is None or slice_frames % temporal == 0
        video = padded(video, temporal)
        moments, past = [], None
        for start, end in slices(video.shape[2], slice_frames):
            made, past = self.encoder(video[:, :, start:end], past)
            moments.append(made)
        mean, spread = torch.cat(moments, dim=2).float().chunk(2, dim=1)
        return mean, spread.clamp(-30.0, 20.0)

    def decode(self, codes: Tensor, frames: int, slice_latents: int | None = None) -> Tensor:
        """Turn codes (B, C, t, h, w) into video (B, 3, frames, H, W), not clamped.

        slice_latents: latent frames of a slice; None: all at once. Raises `ValueError` if `frames` needs
        another number of latent frames.
        """
        return torch.cat(list(self.pieces(codes, frames, slice_latents)), dim=2)

    def pieces(self, codes: Tensor, frames: int, slice_latents: int | None = None) -> Iterator[Tensor]:
        """The result of `decode` in pieces, one piece for each slice of `slice_latents` latent frames."""
        skip = surplus(frames, codes.shape[2], self.settings.temporal)
        past = None
        for start, end in slices(codes.shape[2], slice_latents):
            piece, past = self.decoder(codes[:, :, start:end], past)
            yield piece[:, :, skip:] if start == 0 else piece


def lowest_frequencies(channels: int, time: int, side: int) -> Tensor:
    """The lowest `channels` vectors of the orthonormal DCT of a patch: (C, 3, time, side, side).

    The order is by the sum of the frequencies over time, height and width, with grey before colour.
    """
    bases = dct_matrix(time), dct_matrix(side), dct_matrix(side)
    orders = itertools.product(range(time), range(side), range(side), range(IMAGE))
    colours = dct_matrix(IMAGE)
    found = torch.zeros(channels, IMAGE, time, side, side)
    by_frequency = sorted(orders, key=lambda o: (o[0] / time + (o[1] + o[2]) / side, o[3], o))
    for k, (t, y, x, colour) in enumerate(by_frequency[:channels]):
        vectors = colours[colour], bases[0][t], bases[1][y], bases[2][x]
        found[k] = torch.einsum("c,t,y,x->ctyx", *vectors)
    return found


def latent_frames(frames: int, temporal: int) -> int:
    """The number of latent frames of a video of `frames` frames."""
    return math.ceil(frames / temporal)


def surplus(frames: int, latents: int, temporal: int) -> int:
    """The number of extra frames that decoding makes in front of a video of `frames` frames.

    Raises `ValueError` if the video has another number of latent frames than `latents`.
    """
    if frames < 1 or latent_frames(frames, temporal) != latents:
        raise ValueError(
            f"{latents} latent frames are {(latents - 1) * temporal + 1} to {latents * temporal} frames of "
            f"video, not {frames}"
        )
    return latents * temporal - frames


def padded(video: Tensor, temporal: int) -> Tensor:
    """Repeat the first frame in front, up to a multiple of `temporal` frames."""
    missing = -video.shape[2] % temporal
    return torch.cat([video[:, :, :1].expand(-1, -1, missing, -1, -1), video], dim=2) if missing else video


def folded(video: Tensor, frames: int, side: int) -> Tensor:
    """Turn (B, C, T, H, W) into (B, C f s s, T / f, H / s, W / s). A patch has f frames and s x s pixels."""
    stacked = video.unflatten(2, (-1, frames)).transpose(2, 3).flatten(1, 2)  # (B, C f, T / f, H, W)
    return functional.pixel_unshuffle(stacked.transpose(1, 2), side).transpose(1, 2)


def unfolded(patches: Tensor, frames: int, side: int) -> Tensor:
    """The inverse of `folded`."""
    stacked = functional.pixel_shuffle(patches.transpose(1, 2), side).transpose(1, 2)
    return stacked.unflatten(1, (-1, frames)).transpose(2, 3).flatten(2, 3)


def slices(length: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Start and end of each slice of `size` frames. size None: one slice."""
    return pairwise([*range(0, length, size or length), length])
