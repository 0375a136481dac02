"""Causal layers of a video autoencoder: what a slice needs of the one before goes in and out as a value.

Every layer maps (x, past) to (y, tail): x (B, C, T, H, W) is a slice of a video's features, `past` the tail
that the layer gave for the slice before, None at the video's start. A layer has no state of its own, so
slices of many videos can be under way at once, and recomputing for gradient checkpointing sees what the first
time saw. Before the start stands the first frame, repeated: a still image and its still video are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Past = Any  # nested tuples of tensors and None, in the shape of the layers


class CausalConv(nn.Module):
    """A 3D convolution that sees no later frame: output j ends with input frame stride * j + stride - 1."""

    def __init__(
        self, inputs: int, outputs: int, time: int = 3, side: int = 3, stride: tuple[int, int] = (1, 1)
    ):
        """time, side: of the kernel; stride: in time, and each way in space."""
        super().__init__()
        in_time, in_space = stride
        assert time >= in_time, "frames between two outputs would be left out"
        self.front = time - in_time  # frames before a slice that its first output sees
        self.conv = nn.Conv3d(
            inputs,
            outputs,
            (time, side, side),
            (in_time, in_space, in_space),
            padding=(0, side // 2, side // 2),
        )

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.front:
            return self.conv(x), None
        before = x[:, :, :1].expand(-1, -1, self.front, -1, -1) if past is None else past
        x = torch.cat([before, x], dim=2)
        # A copy: a view would keep the slice of every layer in memory until the last one is done.
        return self.conv(x), x[:, :, -self.front :].clone()


class Norm(nn.Module):
    """Root mean square over the channels of each pixel, in float32 (Zhang and Sennrich 2019).

    It looks at neither other frames nor other pixels: a slice and a tile are normalised as the whole is.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype) * self.gain.to(x.dtype)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.norm1, self.conv1 = Norm(inputs), CausalConv(inputs, outputs, time)
        self.norm2, self.conv2 = Norm(outputs), CausalConv(outputs, outputs, time)
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        first, second = past or (None, None)
        y, first = self.conv1(functional.silu(self.norm1(x)), first)
        y, second = self.conv2(functional.silu(self.norm2(y)), second)
        return self.shortcut(x) + y, (first, second)


class Down(nn.Module):
    """A half of the frames (`time` 2) in pairs aligned at their end, of the sides (`side` 2), or of both."""

    def __init__(self, channels: int, time: int, side: int):
        super().__init__()
        self.pool = (time, side, side)
        self.conv = CausalConv(channels, channels, 3 if time > 1 else 1, 3, (time, side))

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        y, tail = self.conv(x, past)
        return functional.avg_pool3d(x, self.pool) + y, tail


class Up(nn.Module):
    """Twice the frames (`time` 2), the sides (`side` 2), or both.

    Both frames of a pair have weights of their own: frames repeated and then convolved would be equal to one
    another throughout the first pair, before which nothing but itself stands.
    """

    def __init__(self, channels: int, time: int, side: int):
        super().__init__()
        self.side = side
        self.pairs = CausalConv(channels, 2 * channels, 3, 1) if time > 1 else None
        self.conv = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        tail = None
        if self.pairs is not None:
            y, tail = self.pairs(x, past)
            y = torch.stack(y.chunk(2, dim=1), dim=3).flatten(2, 3)  # (B, C, 2 T, H, W)
            x = x.repeat_interleave(2, dim=2) + y
        if self.side > 1:
            x = functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        return x + self.conv(x), tail


def through(
    layers: Sequence[nn.Module] | nn.ModuleList, x: Tensor, past: Past, recompute: bool
) -> tuple[Tensor, Past]:
    """One layer after the other. recompute: keep no activations inside of a layer for the backward pass."""
    tails = []
    for k, layer in enumerate(layers):
        before = past[k] if past else None
        if recompute and torch.is_grad_enabled():
            x, tail = checkpoint(layer, x, before, use_reentrant=False)
        else:
            x, tail = layer(x, before)
        tails.append(tail)
    return x, tuple(tails)
