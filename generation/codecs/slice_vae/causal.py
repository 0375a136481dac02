"""Causal layers of a video autoencoder. A layer receives and returns the data that slices share as a value.

Every layer maps (x, past) to (y, tail). x (B, C, T, H, W) is a slice of a video's features. `past` is the
tail that the layer returned for the previous slice, or None at the start of the video. A layer stores no
state. Slices of many videos can therefore be processed in turn, and gradient checkpointing can compute a
layer again with the same inputs. The first frame is repeated before the start of the video, so an image and a
still video give the same codes.
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
    """A 3D convolution without later frames. Output j uses input frames up to stride * j + stride - 1."""

    def __init__(
        self, inputs: int, outputs: int, time: int = 3, side: int = 3, stride: tuple[int, int] = (1, 1)
    ):
        """time, side: size of the kernel in frames and pixels; stride: in time, and along each side."""
        super().__init__()
        in_time, in_space = stride
        assert time >= in_time, "frames between two outputs would be left out"
        self.front = time - in_time  # number of frames before a slice that the first output uses
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
        # A copy, because a view would keep the slices of all layers in memory until the last layer is done.
        return self.conv(x), x[:, :, -self.front :].clone()


class Norm(nn.Module):
    """Divides each pixel by its root mean square over the channels, in float32 (Zhang and Sennrich 2019).

    The norm uses one pixel of one frame at a time, so slices and tiles give the same result as the whole.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype) * self.gain.to(x.dtype)


class Residual(nn.Module):
    """A residual block: two convolutions, and a shortcut beside them."""

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
    """Halves the frames (`time` 2), the sides (`side` 2), or both. The last frame ends the last pair."""

    def __init__(self, channels: int, time: int, side: int):
        super().__init__()
        self.pool = (time, side, side)
        self.conv = CausalConv(channels, channels, 3 if time > 1 else 1, 3, (time, side))

    def forward(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        y, tail = self.conv(x, past)
        return functional.avg_pool3d(x, self.pool) + y, tail


class Up(nn.Module):
    """Doubles the frames (`time` 2), the sides (`side` 2), or both.

    The two frames of a pair have separate weights. If frames were repeated and then convolved, both frames of
    the first pair would be equal, because only copies of the first frame precede the pair.
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
    """Apply one layer after the other. recompute: gradient checkpointing of each layer."""
    tails = []
    for k, layer in enumerate(layers):
        before = past[k] if past else None
        if recompute and torch.is_grad_enabled():
            x, tail = checkpoint(layer, x, before, use_reentrant=False)
        else:
            x, tail = layer(x, before)
        tails.append(tail)
    return x, tuple(tails)
