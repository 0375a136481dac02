"""The published autoencoder in SAT's layout: a checkpoint and its computation, as in `sat`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.generation.published.sat import State, drawn, norm

LEVELS = 4
WIDTHS = (32, 64, 64, 128)  # published: 128, 256, 256, 512
CODES = 4  # published: 16


def _conv(name: str, out: int, into: int, kernel: int, dims: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into, *[kernel] * dims), f"{name}.bias": (out,)}


def _res(name: str, into: int, out: int, codes: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a block. codes: the latent channels that the decoder's norms read; 0: encoder."""
    shapes = {**_norms(f"{name}.norm1", into, codes), **_norms(f"{name}.norm2", out, codes)}
    shapes |= {**_conv(f"{name}.conv1.conv", out, into, 3), **_conv(f"{name}.conv2.conv", out, out, 3)}
    return shapes | (_conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def _norms(name: str, width: int, codes: int) -> dict[str, tuple[int, ...]]:
    if not codes:
        return norm(name, width)
    return {
        **norm(f"{name}.norm_layer", width),
        **_conv(f"{name}.conv_y.conv", width, codes, 1),
        **_conv(f"{name}.conv_b.conv", width, codes, 1),
    }


def autoencoder(
    widths: tuple[int, ...] = WIDTHS, codes: int = CODES, blocks: int = 1, device: str = "cpu"
) -> State:
    shapes = _conv("encoder.conv_in.conv", widths[0], 3, 3)
    width = widths[0]
    for i, out in enumerate(widths):
        for j in range(blocks):
            shapes |= _res(f"encoder.down.{i}.block.{j}", width, out, 0)
            width = out
        if i < LEVELS - 1:
            shapes |= _conv(f"encoder.down.{i}.downsample.conv", out, out, 3, 2)
    for j in (1, 2):
        shapes |= _res(f"encoder.mid.block_{j}", width, width, 0)
    shapes |= {**norm("encoder.norm_out", width), **_conv("encoder.conv_out.conv", 2 * codes, width, 3)}
    shapes |= _conv("decoder.conv_in.conv", width, codes, 3)
    for j in (1, 2):
        shapes |= _res(f"decoder.mid.block_{j}", width, width, codes)
    for i in reversed(range(LEVELS)):
        for j in range(blocks + 1):
            shapes |= _res(f"decoder.up.{i}.block.{j}", width, widths[i], codes)
            width = widths[i]
        if i:
            shapes |= _conv(f"decoder.up.{i}.upsample.conv", width, width, 3, 2)
    shapes |= {**_norms("decoder.norm_out", width, codes), **_conv("decoder.conv_out.conv", 3, width, 3)}
    return drawn(shapes, device)


# ---- the computation


def _causal(s: State, name: str, x: Tensor) -> Tensor:
    """A causal convolution. Time is padded with the first frame, and space with zeros."""
    weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
    k = weight.shape[2]
    x = torch.cat([x[:, :, :1]] * (k - 1) + [x], 2)
    return F.conv3d(F.pad(x, [k // 2] * 4), weight, bias)


def _frames(s: State, name: str, x: Tensor, **how: int) -> Tensor:
    """A convolution of each frame."""
    b, c, t, h, w = x.shape
    x = F.conv2d(x.transpose(1, 2).reshape(b * t, c, h, w), s[f"{name}.weight"], s[f"{name}.bias"], **how)
    return x.unflatten(0, (b, t)).transpose(1, 2)


def _group_norm(s: State, name: str, x: Tensor) -> Tensor:
    """A group norm with 32 groups, over space and time."""
    grouped = x.reshape(x.shape[0], 32, -1)
    grouped = grouped - grouped.mean(2, keepdim=True)
    x = (grouped / (grouped.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
    return x * s[f"{name}.weight"][:, None, None, None] + s[f"{name}.bias"][:, None, None, None]


def _enlarged(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Nearest-neighbour upsampling. For an odd number of frames, the first frame is treated separately."""

    def nearest(x: Tensor, t: int) -> Tensor:
        for dim, length in ((2, t), (3, size[1]), (4, size[2])):
            x = x.repeat_interleave(length // x.shape[dim], dim)
        return x

    if size[0] > 1 and size[0] % 2:
        return torch.cat([nearest(x[:, :, :1], 1), nearest(x[:, :, 1:], size[0] - 1)], 2)
    return nearest(x, size[0])


def _normed(s: State, name: str, x: Tensor, z: Tensor | None) -> Tensor:
    if z is None:
        return _group_norm(s, name, x)
    z = _enlarged(z, (x.shape[2], x.shape[3], x.shape[4]))
    x = _group_norm(s, f"{name}.norm_layer", x)
    return x * _causal(s, f"{name}.conv_y.conv", z) + _causal(s, f"{name}.conv_b.conv", z)


def _res_block(s: State, name: str, x: Tensor, z: Tensor | None) -> Tensor:
    y = _causal(s, f"{name}.conv1.conv", F.silu(_normed(s, f"{name}.norm1", x, z)))
    y = _causal(s, f"{name}.conv2.conv", F.silu(_normed(s, f"{name}.norm2", y, z)))
    return y + (_causal(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def _blocks(s: State, name: str, x: Tensor, z: Tensor | None) -> Tensor:
    k = 0
    while f"{name}.{k}.conv1.conv.weight" in s:
        x = _res_block(s, f"{name}.{k}", x, z)
        k += 1
    return x


def encode(s: State, video: Tensor) -> Tensor:
    """The means and logarithms of variances, (B, 2 codes, t, h, w), of a video (B, 3, T, H, W)."""
    x = _causal(s, "encoder.conv_in.conv", video)
    for i in range(LEVELS):
        x = _blocks(s, f"encoder.down.{i}.block", x, None)
        if i < 2 and x.shape[2] > 1:  # time is halved by averaging pairs; the first frame stays
            x = torch.cat([x[:, :, :1], (x[:, :, 1::2] + x[:, :, 2::2]) / 2], 2)
        if i < LEVELS - 1:
            x = _frames(s, f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    for j in (1, 2):
        x = _res_block(s, f"encoder.mid.block_{j}", x, None)
    return _causal(s, "encoder.conv_out.conv", F.silu(_group_norm(s, "encoder.norm_out", x)))


def decode(s: State, z: Tensor) -> Tensor:
    """A video (B, 3, T, H, W) from codes (B, codes, t, h, w)."""
    x = _causal(s, "decoder.conv_in.conv", z)
    for j in (1, 2):
        x = _res_block(s, f"decoder.mid.block_{j}", x, z)
    for i in reversed(range(LEVELS)):
        x = _blocks(s, f"decoder.up.{i}.block", x, z)
        if i:
            t = x.shape[2]
            longer = 2 * t - 1 if i >= LEVELS - 2 and t > 1 else t
            x = _enlarged(x, (longer, 2 * x.shape[3], 2 * x.shape[4]))
            x = _frames(s, f"decoder.up.{i}.upsample.conv", x, padding=1)
    return _causal(s, "decoder.conv_out.conv", F.silu(_normed(s, "decoder.norm_out", x, z)))
