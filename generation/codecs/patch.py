"""A fixed and lossless patch transform as a codec. The transform has no learned weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from generation import config
from generation.codecs.base import check_grid
from generation.codecs.dct import dct_matrix


class PatchCodec:
    """A fixed, orthonormal, lossless and causal transform of space-time patches, without learned weights.

    First, temporal - 1 copies of the first frame are put in front. Then a separable DCT-II transforms each
    block of (temporal, spatial, spatial) samples of a colour. The coefficients, divided by `std`, become the
    channels in the order (colour, time, y, x). White noise stays white. Squared errors in latents are squared
    errors in pixels divided by std^2. decode(encode(x)) equals x. A sampler may make a latent frame 0 that no
    video has: the decoded first frame is then the mean of its temporal copies.

    Sums are in float64, over one latent frame of one sample at a time. Results therefore do not depend on the
    batch, on the pieces, or on autocast and TF32, which do not change float64. No latent depends on a later
    frame.
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
        """One piece per latent frame. The first piece has one frame, every other piece `temporal` frames."""
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
        """Turn a block of frames (3, a, H, W) into a latent frame (C, h, w). `a` is `temporal`."""
        a, s = self.temporal, self.spatial
        h, w = block.shape[2] // s, block.shape[3] // s
        x = block.to(self.device, torch.float64).reshape(3, a, h, s, w, s)
        x = torch.einsum("cahiwj,xj->cahiwx", x, self._side)
        x = torch.einsum("cahiwx,yi->cahywx", x, self._side)
        x = torch.einsum("cahywx,ta->ctyxhw", x, self._time)
        return (x.reshape(self.channels, h, w) / self.std).float()

    def _inverse(self, latent: Tensor, first: bool) -> Tensor:
        """Turn a latent frame (C, h, w) into frames (3, a, H, W), or (3, 1, H, W) for the first frame."""
        a, s = self.temporal, self.spatial
        h, w = latent.shape[1:]
        x = latent.to(self.device, torch.float64).reshape(3, a, s, s, h, w) * self.std
        # The copies of the first frame are equal, so their mean is the frame.
        time = self._time.mean(1, keepdim=True) if first else self._time  # (t, 1) or (t, a)
        x = torch.einsum("ctyxhw,ta->cahywx", x, time)
        x = torch.einsum("cahywx,yi->cahiwx", x, self._side)
        x = torch.einsum("cahiwx,xj->cahiwj", x, self._side)
        return x.reshape(3, -1, h * s, w * s).float()
