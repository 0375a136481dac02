"""Slice VAE: a causal 3D autoencoder that works through a video in slices, exactly (after EasyAnimate's).

A latent frame covers `temporal` frames of video and is aligned at their end: of T frames there are
ceil(T / temporal) latent ones, the first frame being repeated in front where T is no multiple; so an image
has one latent frame. Convolutions see the present and the past, normalisation one pixel: sliced is whole, and
what a slice cuts off comes from the tails of the one before (`generation.codecs.slice_vae.causal`).

Against EasyAnimate's: no attention in the middle, so that a pixel depends on a bounded neighbourhood and
tiles can be blended; no second stream that is shifted by half a slice; both frames that one is decoded to
have weights of their own; and beside the network runs a linear map from patches to codes and back, which
starts as a truncated DCT: an untrained network adds nothing to it, and brightness need not pass its norms.
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
    """(B, 3, T, H, W), T a multiple of `temporal`, to mean and logarithm of variance (B, 2 C, t, h, w)."""

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
        # Codes of variance 1 would drown in it what the mean says at first.
        nn.init.constant_(self.out.bias[settings.channels :], FIRST_LOG_VARIANCE)
        block = settings.temporal, settings.spatial, settings.spatial
        self.linear = nn.Conv3d(IMAGE, settings.channels, block, block, bias=False)
        self.linear.weight.data.copy_(lowest_frequencies(settings.channels, *block[:2]))

    def forward(self, video: Tensor, past: Past = None) -> tuple[Tensor, Past]:
        x, past = through(self.layers, folded(video, *self.patch), past, self.recompute)
        mean, spread = self.out(functional.silu(self.norm(x))).chunk(2, dim=1)
        return torch.cat([mean + self.linear(video), spread], dim=1), past


class Decoder(nn.Module):
    """(B, C, t, h, w) to (B, 3, temporal * t, spatial * h, spatial * w)."""

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
    """Encoder and decoder, and the statistics of their codes, which are measured after training."""

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

        slice_frames: frames at a time, a multiple of `temporal`; None: all at once.
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
        """(B, C, t, h, w) to (B, 3, frames, H, W), not clamped. Raises `ValueError` for another t."""
        return torch.cat(list(self.pieces(codes, frames, slice_latents)), dim=2)

    def pieces(self, codes: Tensor, frames: int, slice_latents: int | None = None) -> Iterator[Tensor]:
        """What `decode` gives, in pieces of some latent frames each; None: all at once."""
        skip = surplus(frames, codes.shape[2], self.settings.temporal)
        past = None
        for start, end in slices(codes.shape[2], slice_latents):
            piece, past = self.decoder(codes[:, :, start:end], past)
            yield piece[:, :, skip:] if start == 0 else piece


def lowest_frequencies(channels: int, time: int, side: int) -> Tensor:
    """The first so many vectors of the orthonormal DCT of a patch (C, 3, time, side, side), by the sum of
    their frequencies in cycles per frame and pixel; grey before colour."""
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
    return math.ceil(frames / temporal)


def surplus(frames: int, latents: int, temporal: int) -> int:
    """Frames that decoding makes in front of a video of `frames`. `ValueError`: they have other latents."""
    if frames < 1 or latent_frames(frames, temporal) != latents:
        raise ValueError(
            f"{latents} latent frames are {(latents - 1) * temporal + 1} to {latents * temporal} frames of "
            f"video, not {frames}"
        )
    return latents * temporal - frames


def padded(video: Tensor, temporal: int) -> Tensor:
    """With the first frame repeated in front, up to a multiple of `temporal`."""
    missing = -video.shape[2] % temporal
    return torch.cat([video[:, :, :1].expand(-1, -1, missing, -1, -1), video], dim=2) if missing else video


def folded(video: Tensor, frames: int, side: int) -> Tensor:
    """(B, C, T, H, W) to (B, C f s s, T / f, H / s, W / s) for patches of f frames and s pixels a side."""
    stacked = video.unflatten(2, (-1, frames)).transpose(2, 3).flatten(1, 2)  # (B, C f, T / f, H, W)
    return functional.pixel_unshuffle(stacked.transpose(1, 2), side).transpose(1, 2)


def unfolded(patches: Tensor, frames: int, side: int) -> Tensor:
    """Undoes `folded`."""
    stacked = functional.pixel_shuffle(patches.transpose(1, 2), side).transpose(1, 2)
    return stacked.unflatten(1, (-1, frames)).transpose(2, 3).flatten(2, 3)


def slices(length: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Start and end of each slice."""
    return pairwise([*range(0, length, size or length), length])
