"""Checkpoints in the layout of SwissArmyTransformer, and the computation of the published networks.

The tests compare converted networks with these plain functions over the published names. The functions follow
the description of CogVideoX and FlashVideo (flashvideo.md, sections 1 to 3) and do not use diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

DIFFUSION = "model.diffusion_model."


@dataclass(frozen=True)
class Shape:
    layers: int = 2
    heads: int = 2
    head_dim: int = 16
    time: int = 24
    text: int = 20
    channels: int = 4
    patch: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


TINY = Shape()
TWO_B = Shape(layers=30, heads=30, head_dim=64, time=512, text=4096, channels=16)
FIVE_B = Shape(layers=42, heads=48, head_dim=64, time=512, text=4096, channels=16)


# ---- checkpoints


def drawn(shapes: dict[str, tuple[int, ...]], device: str) -> State:
    """Random tensors, each from a separate generator and scaled so that signals keep their size.

    On the device "meta", tensors have no values.
    """
    state = {}
    for k, (name, shape) in enumerate(shapes.items()):
        if device == "meta":
            state[name] = torch.empty(shape, device="meta", dtype=torch.bfloat16)
            continue
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(k))
        if len(shape) > 1:
            state[name] = draw / math.prod(shape[1:]) ** 0.5
        else:
            state[name] = 0.2 * draw + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return state


def _layer(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _adapted(name: str, out: int, into: int, pairs: int, rank: int) -> dict[str, tuple[int, ...]]:
    if not rank:
        return _layer(name, out, into)
    shapes = _layer(f"{name}.original", out, into)
    for k in range(pairs):
        shapes |= {f"{name}.matrix_A.{k}": (rank, into), f"{name}.matrix_B.{k}": (out // pairs, rank)}
    return shapes


def transformer(
    s: Shape = TINY, rank: int = 0, stage2: bool = False, device: str = "cpu", prefix: str = DIFFUSION
) -> State:
    """A checkpoint of CogVideoX. rank: adds FlashVideo's Stage I adapters; stage2: Stage II's embeddings."""
    d = s.width
    shapes: dict[str, tuple[int, ...]] = {
        "mixins.patch_embed.proj.weight": (d, s.channels, s.patch, s.patch),
        "mixins.patch_embed.proj.bias": (d,),
        **_layer("mixins.patch_embed.text_proj", d, s.text),
    }
    for name in ("time_embed", *(("ref_step_time_embedding", "time_size_embedding") if stage2 else ())):
        shapes |= {**_layer(f"{name}.0", s.time, d), **_layer(f"{name}.2", s.time, s.time)}
    for n in range(s.layers):
        layer, adaptive = f"transformer.layers.{n}", "mixins.adaln_layer"
        shapes |= {
            **norm(f"{layer}.input_layernorm", d),
            **norm(f"{layer}.post_attention_layernorm", d),
            **_adapted(f"{layer}.attention.query_key_value", 3 * d, d, 3, rank),
            **_adapted(f"{layer}.attention.dense", d, d, 1, rank),
            **_layer(f"{layer}.mlp.dense_h_to_4h", 4 * d, d),
            **_layer(f"{layer}.mlp.dense_4h_to_h", d, 4 * d),
            **_adapted(f"{adaptive}.adaLN_modulations.{n}.1", 12 * d, s.time, 1, rank),
            **norm(f"{adaptive}.query_layernorm_list.{n}", s.head_dim),
            **norm(f"{adaptive}.key_layernorm_list.{n}", s.head_dim),
        }
    shapes |= {
        **norm("transformer.final_layernorm", d),
        **norm("mixins.final_layer.norm_final", d),
        **_layer("mixins.final_layer.adaLN_modulation.1", 2 * d, s.time),
        **_layer("mixins.final_layer.linear", s.patch**2 * s.channels, d),
    }
    return {prefix + name: t for name, t in drawn(shapes, device).items()}


def absolute_positions(text: int, width: int, grid: tuple[int, int, int] = (13, 30, 45)) -> Tensor:
    """CogVideoX-2B's table, (1, text + t h w, width).

    Text has zeros. For video, a quarter of the width is for time, and three eighths each are for the column
    and the row, in steps of 1 / 1.875. Each part has sines, then cosines.
    """
    t, h, w = grid

    def waves(position: Tensor, dim: int) -> Tensor:
        angle = position.double()[:, None] / 10000 ** (torch.arange(dim // 2).double() / (dim / 2))
        return torch.cat([angle.sin(), angle.cos()], 1)

    side = width // 8 * 3
    times = waves(torch.arange(t), width // 4)[:, None, None].expand(t, h, w, -1)
    rows = waves(torch.arange(h) / 1.875, side)[None, :, None].expand(t, h, w, -1)
    columns = waves(torch.arange(w) / 1.875, side)[None, None].expand(t, h, w, -1)
    table = torch.cat([times, columns, rows], 3).reshape(t * h * w, width).float()
    return torch.cat([torch.zeros(text, width), table])[None]


# ---- the computation of the transformer


def _linear(s: State, name: str, x: Tensor, alpha: float = 1.0) -> Tensor:
    """A layer with unmerged adapters: x W + alpha / rank x A B, for each of the layer's equal parts."""
    if f"{name}.weight" in s:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]
    added = []
    while f"{name}.matrix_A.{len(added)}" in s:
        a, b = s[f"{name}.matrix_A.{len(added)}"], s[f"{name}.matrix_B.{len(added)}"]
        added.append(alpha / len(a) * x @ a.T @ b.T)
    return _linear(s, f"{name}.original", x) + torch.cat(added, -1)


def _layernorm(s: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def _mlp(s: State, name: str, numbers: Tensor, width: int) -> Tensor:
    """An embedding of numbers: sinusoids (cosines, then sines), and two layers."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angle = numbers[:, None] * rates
    wave = torch.cat([angle.cos(), angle.sin()], 1)
    return _linear(s, f"{name}.2", F.silu(_linear(s, f"{name}.0", wave)))


def _angles(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """The angle of every video token and pair of neighbouring dimensions: (t h w, head_dim / 2)."""
    places = torch.cartesian_prod(*(torch.arange(n).float() for n in grid))  # (t h w, 3)
    dims = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    parts = [
        places[:, axis : axis + 1] * 10000 ** (-torch.arange(0, dim, 2) / dim)
        for axis, dim in enumerate(dims)
    ]
    return torch.cat(parts, 1)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack(
        [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1
    ).flatten(-2)


def predict(
    state: State,
    latents: Tensor,
    text: Tensor,
    time: Tensor,
    strength: Tensor | None = None,
    heads: int = 2,
    patch: int = 2,
    alpha: float = 1.0,
) -> Tensor:
    """The published network's output for latents (B, C, t, h, w), text (B, L, D), time and strength (B,)."""
    s = {name.removeprefix(DIFFUSION): t for name, t in state.items()}
    b, c, t, h, w = latents.shape
    grid = (t, h // patch, w // patch)
    frames = latents.transpose(1, 2).reshape(b * t, c, h, w)
    video = F.conv2d(
        frames, s["mixins.patch_embed.proj.weight"], s["mixins.patch_embed.proj.bias"], stride=patch
    )
    d = video.shape[1]
    video = video.reshape(b, t, d, -1).transpose(2, 3).reshape(b, -1, d)
    words = text.shape[1]
    x = torch.cat([_linear(s, "mixins.patch_embed.text_proj", text), video], 1)
    table = s.get("mixins.pos_embed.pos_embedding")
    if table is not None:
        x = x + table[:, : x.shape[1]]  # at CogVideoX's own size: the first frames of the table
    emb = _mlp(s, "time_embed", time, d)
    if strength is not None:
        emb = emb + _mlp(s, "ref_step_time_embedding", strength, d)
        emb = emb + _mlp(s, "time_size_embedding", torch.full((b,), float(t)), d)
    angles = None if table is not None else _angles(grid, d // heads)
    layer = 0
    while f"transformer.layers.{layer}.input_layernorm.weight" in s:
        x = _block(s, layer, x, words, emb, angles, heads, alpha)
        layer += 1
    x = _layernorm(s, "transformer.final_layernorm", x, 1e-5)[:, words:]
    shift, scale = _linear(s, "mixins.final_layer.adaLN_modulation.1", F.silu(emb))[:, None].chunk(2, -1)
    x = _layernorm(s, "mixins.final_layer.norm_final", x, 1e-6) * (1 + scale) + shift
    x = _linear(s, "mixins.final_layer.linear", x)  # (B, t h' w', C p p)
    x = x.reshape(b, *grid, -1, patch, patch).permute(0, 4, 1, 2, 5, 3, 6)  # B, C, t, h', p, w', p
    return x.reshape(b, -1, t, h, w)


def _block(
    s: State, n: int, x: Tensor, words: int, emb: Tensor, angles: Tensor | None, heads: int, alpha: float
) -> Tensor:
    layer, norm = f"transformer.layers.{n}", "mixins.adaln_layer"
    twelve = _linear(s, f"{norm}.adaLN_modulations.{n}.1", F.silu(emb), alpha)[:, None].chunk(12, -1)
    is_text = (torch.arange(x.shape[1]) < words)[None, :, None]

    def of(k: int) -> Tensor:
        """Number k of shift, scale, gate (attention), shift, scale, gate (feed-forward), of each token."""
        return torch.where(is_text, twelve[6 + k], twelve[k])

    y = _layernorm(s, f"{layer}.input_layernorm", x, 1e-5) * (1 + of(1)) + of(0)
    qkv = _linear(s, f"{layer}.attention.query_key_value", y, alpha)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    q = _layernorm(s, f"{norm}.query_layernorm_list.{n}", q, 1e-6)
    k = _layernorm(s, f"{norm}.key_layernorm_list.{n}", k, 1e-6)
    if angles is not None:
        q, k = (torch.cat([z[:, :, :words], _turned(z[:, :, words:], angles)], 2) for z in (q, k))
    seen = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
    y = _linear(s, f"{layer}.attention.dense", seen.transpose(1, 2).flatten(2), alpha)
    x = x + of(2) * y
    y = _layernorm(s, f"{layer}.post_attention_layernorm", x, 1e-5) * (1 + of(4)) + of(3)
    y = F.gelu(_linear(s, f"{layer}.mlp.dense_h_to_4h", y), approximate="tanh")
    return x + of(5) * _linear(s, f"{layer}.mlp.dense_4h_to_h", y)
