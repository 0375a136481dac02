"""Between video and latents: the protocol that the stages talk to, and a fixed patch transform behind it.

Videos are float (B, 3, T, H, W) in [-1, 1] with T = temporal * n + 1, latents float32 (B, C, t, h, w) with
t = n + 1. Latent frame 0 stands for the first frame alone, so an image is a video of one frame; a later one
stands for `temporal` frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from generation import config


@dataclass(frozen=True)
class Statistics:
    """Of a codec's own codes, per channel: latents are (codes - mean) / std."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)


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

    @property
    def statistics(self) -> Statistics: ...

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


def open_codec(settings: config.Codec, device: torch.device | str = "cpu") -> Codec:
    """The codec that a configuration names. Raises `ValueError` for weights that are not there."""
    if settings.kind == "cogvideox":
        from generation.codecs.cogvideox import CogVideoXCodec

        return CogVideoXCodec(settings).to(device)
    if settings.kind == "slice":
        from generation.codecs.slice import SliceCodec

        return SliceCodec(settings).to(device)
    return PatchCodec(settings).to(device)


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


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 (n, n): row k is c_k cos(pi (2 j + 1) k / 2 n), row 0 is constant."""
    index = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * index[:, None] * (2 * index + 1) / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


class PatchCodec:
    """A fixed, orthonormal, lossless and causal transform of space-time patches. Nothing is learned.

    The first frame is repeated temporal - 1 times in front; each block of (temporal, spatial, spatial)
    samples of a colour goes through a separable DCT-II, and its coefficients, divided by `std`, become the
    channels, ordered (colour, time, y, x). White noise stays white, squared errors in latents are those in
    pixels over std^2, and decode(encode(x)) = x. A latent frame 0 of other origin (a sampler's) is projected
    on those that a video can have: the first frame is the mean of its copies.

    Sums are in float64, one latent frame of one sample at a time: results depend neither on the batch, nor on
    the pieces, nor on autocast and TF32, which leave float64 alone; and no latent sees a later frame.
    """

    def __init__(self, settings: config.Codec = config.Codec()):  # noqa: B008 (frozen)
        self.settings = settings
        self.temporal = settings.temporal
        self.spatial = settings.spatial
        self.channels = 3 * settings.temporal * settings.spatial**2
        self.std = settings.std
        self.hash = config.content_hash(["patch", 1, settings.temporal, settings.spatial, settings.std])
        self._time = dct_matrix(self.temporal)  # (a, a)
        self._side = dct_matrix(self.spatial)  # (s, s)

    @property
    def device(self) -> torch.device:
        return self._time.device

    @property
    def statistics(self) -> Statistics:
        shape = (self.channels,)
        return Statistics(
            torch.zeros(shape, device=self.device), torch.full(shape, self.std, device=self.device)
        )

    def to(self, device: torch.device | str) -> Self:
        self._time, self._side = self._time.to(device), self._side.to(device)
        return self

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        return check_grid(frames, height, width, self.temporal, self.spatial)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        assert video.ndim == 5, f"a video is (B, 3, T, H, W), not {tuple(video.shape)}"
        assert video.shape[1] == 3, f"a video is (B, 3, T, H, W), not {tuple(video.shape)}"
        assert video.is_floating_point(), f"a video is float in [-1, 1], not {video.dtype}"
        batch, _, frames, height, width = video.shape
        t, h, w = self.grid(frames, height, width)
        latents = torch.empty((batch, self.channels, t, h, w), device=self.device)
        for sample in range(batch):
            for k in range(t):
                last = k * self.temporal
                block = video[sample, :, max(0, last - self.temporal + 1) : last + 1]  # (3, a, H, W)
                latents[sample, :, k] = self._forward(block.expand(3, self.temporal, height, width))
        return latents

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        return torch.cat(list(self.decode_stream(latents, frames)), dim=2)

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """One piece per latent frame: the first frame, then `temporal` frames each."""
        assert latents.ndim == 5, f"latents are (B, C, t, h, w), not {tuple(latents.shape)}"
        assert latents.shape[1] == self.channels, f"{latents.shape[1]} channels, not {self.channels}"
        t, h, w = latents.shape[2:]
        expected = self.grid(frames, h * self.spatial, w * self.spatial)[0]
        if t != expected:
            raise ValueError(
                f"{t} latent frames are {(t - 1) * self.temporal + 1} frames of video, not {frames}"
            )
        return self._pieces(latents)

    def _pieces(self, latents: Tensor) -> Iterator[Tensor]:
        for k in range(latents.shape[2]):
            with torch.no_grad():
                piece = torch.stack([self._inverse(sample[:, k], first=k == 0) for sample in latents])
            yield piece

    def _forward(self, block: Tensor) -> Tensor:
        """(3, a, H, W) to (C, h, w)."""
        a, s = self.temporal, self.spatial
        h, w = block.shape[2] // s, block.shape[3] // s
        x = block.to(self.device, torch.float64).reshape(3, a, h, s, w, s)
        x = torch.einsum("cahiwj,xj->cahiwx", x, self._side)
        x = torch.einsum("cahiwx,yi->cahywx", x, self._side)
        x = torch.einsum("cahywx,ta->ctyxhw", x, self._time)
        return (x.reshape(self.channels, h, w) / self.std).float()

    def _inverse(self, latent: Tensor, first: bool) -> Tensor:
        """(C, h, w) to (3, a, H, W), or (3, 1, H, W) for the first frame."""
        a, s = self.temporal, self.spatial
        h, w = latent.shape[1:]
        x = latent.to(self.device, torch.float64).reshape(3, a, s, s, h, w) * self.std
        # The mean of equal frames is what the constant row of the transform gives back.
        time = self._time.mean(1, keepdim=True) if first else self._time  # (t, 1) or (t, a)
        x = torch.einsum("ctyxhw,ta->cahywx", x, time)
        x = torch.einsum("cahywx,yi->cahiwx", x, self._side)
        x = torch.einsum("cahiwx,xj->cahiwj", x, self._side)
        return x.reshape(3, -1, h * s, w * s).float()
