"""The transformer of both stages, diffusers' `CogVideoXTransformer3DModel`: initial weights, calls, costs.

Latents are (B, C, t, h, w) in all modules. Only `predict` changes latents to the library's (B, t, C, h, w).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Bucket, Config, Transformer
from generation.models import attention as kernels
from generation.models import rotary as _rotary
from generation.models.hub import find
from generation.models.pretrained import FLASHVIDEO, TRANSFORMER, check_fits, read, write

# These layers start at zero: each block is then the identity, the output is zero, and the noise strength has
# no effect. The other layers start as in DiT's `initialize_weights`.
_ZERO = re.compile(r"(norm1|norm2|norm_out)\.linear$|^proj_out$|^ofs_embedding\.linear_2$")
_NORMAL = re.compile(r"^(time|ofs)_embedding\.")


def tokens(grid: tuple[int, int, int], patch: int) -> int:
    """The number of video tokens of a latent grid (t, h, w).

    Raises `ValueError` where the patch does not divide height or width: diffusers would drop the remainder.
    """
    t, h, w = grid
    for name, length in (("height", h), ("width", w)):
        if length % patch:
            good = length // patch * patch
            advice = f"{good} or {good + patch}" if good else f"{patch}"
            raise ValueError(
                f"latent {name} {length} is no multiple of the transformer's patch {patch}; take {advice}"
            )
    return t * (h // patch) * (w // patch)


def skeleton(
    transformer: Transformer,
    channels: int,
    text_dim: int,
    max_tokens: int = 226,
    temporal_compression: int = 4,
    sample: tuple[int, int, int] | None = None,
) -> nn.Module:
    """The model of a configuration on the meta device, where weights take no memory."""
    from diffusers import CogVideoXTransformer3DModel

    t, h, w = sample or (13, 60, 90)
    with torch.device("meta"):
        model: Any = CogVideoXTransformer3DModel(
            num_layers=transformer.layers,
            num_attention_heads=transformer.heads,
            attention_head_dim=transformer.head_dim,
            in_channels=channels,
            out_channels=channels,
            time_embed_dim=transformer.time_embed_dim,
            # The noise-strength embedding is added to the time embedding, so both have the same width.
            ofs_embed_dim=transformer.time_embed_dim if transformer.noise_strength else None,
            text_embed_dim=text_dim,
            patch_size=transformer.patch,
            max_text_seq_length=max_tokens,
            temporal_compression_ratio=temporal_compression,
            sample_frames=(t - 1) * temporal_compression + 1,
            sample_height=h,
            sample_width=w,
            use_rotary_positional_embeddings=True,
        )
    result: nn.Module = model
    return result


def build(
    transformer: Transformer,
    channels: int,
    text_dim: int,
    max_tokens: int,
    temporal_compression: int = 4,
    sample: tuple[int, int, int] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The model of a configuration on the CPU, with pretrained weights or with initial weights.

    channels: of the latents; text_dim, max_tokens: of the text encoder; sample: the latent grid (t, h, w)
    that is the base of "resized" positions and the default size of diffusers' pipeline. Equal seeds give
    equal weights, and no global random state changes. Raises `ValueError` for pretrained weights that are
    missing or do not fit.
    """
    if transformer.pretrained:
        model = load(transformer.pretrained, transformer.revision, transformer.noise_strength, seed, dtype)
        check_fits(model, channels, text_dim, transformer.noise_strength, transformer)
        config: Any = model.config
        if not config.use_rotary_positional_embeddings and max_tokens != config.max_text_seq_length:
            raise ValueError(
                f"text.max_tokens: {max_tokens}, but {transformer.pretrained} has positions for exactly "
                f"{config.max_text_seq_length} text tokens; write that, and text.padded=true"
            )
    else:
        model = skeleton(transformer, channels, text_dim, max_tokens, temporal_compression, sample)
        model.to_empty(device="cpu")
        _initialise(model, seed)
        nn.Module.to(model, dtype)  # the library's own `to` prints a warning without a reason
    kernels.pin(model, transformer.attention)
    if transformer.gradient_checkpointing:
        checkpointing(model)
    return model


def checkpointing(model: nn.Module) -> None:
    """Switch on gradient checkpointing: the backward pass computes activations within blocks again."""
    library: Any = model
    library.enable_gradient_checkpointing()


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile each block separately, at its first call.

    All blocks except the first share one graph. Grids and texts of all sizes share it, too: sizes change from
    bucket to bucket and from prompt to prompt, so no length is compiled as a constant. A batch of one row, a
    mask and training need separate graphs.
    """
    for block in blocks:
        block.compile(backend=backend, dynamic=True)


@torch.no_grad()
def _initialise(model: nn.Module, seed: int, prefix: str = "") -> None:
    """Set every parameter. Each weight has a separate generator, so adding a layer changes no other layer."""
    done: set[int] = set()
    for path, module in model.named_modules():
        name = f"{prefix}{path}"
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            weight = torch.zeros(module.weight.shape)
            draw = draws.generator("initial weights", seed, name)
            if _ZERO.search(name):
                pass
            elif _NORMAL.search(name):
                nn.init.normal_(weight, std=0.02, generator=draw)
            else:
                nn.init.xavier_uniform_(weight.flatten(1), generator=draw)  # a patch counts as a vector
            module.weight.copy_(weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            continue
        done |= {id(p) for p in module.parameters(recurse=False)}
    missed = [name for name, p in model.named_parameters() if id(p) not in done]
    assert not missed, missed


def load(
    source: str | Path,
    revision: str | None = None,
    noise_strength: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A trained transformer on the CPU.

    source: the folder of a transformer, the folder of a pipeline with a part `transformer`, or a hub name of
    either. noise_strength: add the noise-strength embedding where the weights lack it, as when Stage II
    starts from Stage I's weights. Raises `ValueError`: see `hub.find` and `pretrained.read`.
    """
    model = read(find(TRANSFORMER, source, revision), dtype)
    config: Any = model.config
    if noise_strength and config.ofs_embed_dim is None:
        add_noise_strength(model, seed)
    return model


def add_noise_strength(model: nn.Module, seed: int = 0) -> None:
    """Add a noise-strength embedding to a model without one. The last layer is zero: outputs stay equal."""
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    library: Any = model
    config = library.config
    assert config.ofs_embed_dim is None
    width = config.time_embed_dim
    with torch.device("meta"):
        embedding = TimestepEmbedding(width, width, config.timestep_activation_fn)
    embedding.to_empty(device="cpu")
    _initialise(embedding, seed, "ofs_embedding.")
    like = library.time_embedding.linear_1.weight
    library.ofs_proj = Timesteps(width, config.flip_sin_to_cos, config.freq_shift)
    library.ofs_embedding = embedding.to(like.device, like.dtype)
    library.register_to_config(ofs_embed_dim=width)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write a folder for `load` and diffusers' `from_pretrained`. Returns the path of the weights."""
    return write(model, dict(model.named_parameters()), folder)


def save_state(model: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> Path:
    """Write a folder as `save` does, with the weights `state`: averages, or weights from many processes."""
    return write(model, state, folder)


def rotary(
    model: nn.Module,
    grid: tuple[int, int, int],
    positions: str = "integer",
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines for a latent grid (t, h, w), or None for a model with absolute positions.

    Each table is (video tokens, head_dim) float32. positions: "integer" or "resized", see
    `generation.models.rotary.tables`.
    """
    assert positions in {"integer", "resized"}, positions
    config: Any = model.config
    if not config.use_rotary_positional_embeddings:
        return None
    patch = config.patch_size
    tokens(grid, patch)
    base = (config.sample_height // patch, config.sample_width // patch) if positions == "resized" else None
    cells = (grid[0], grid[1] // patch, grid[2] // patch)
    return _rotary.tables(config.attention_head_dim, cells, base, device)


def predict(
    model: nn.Module,
    latents: Tensor,
    text: Tensor,
    mask: Tensor | None,
    time: Tensor,
    strength: Tensor | None = None,
    positions: str = "integer",
) -> Tensor:
    """The network's output for latents (B, C, t, h, w), in the shape and precision of the latents.

    text: (B, L, D); mask: (B, L) bool, True where a token is real; None: all tokens are real. time: (B,), the
    network time, which is 1000 at the noisy end. strength: (B,), the noise step of Stage II's start, if the
    model has the embedding. The mask hides padding, so the result of a row does not depend on the padding.

    Raises `ValueError` for sizes that the patch does not divide, for a text length that does not fit absolute
    positions, and where attention would need a forbidden kernel (`generation.models.attention`).
    """
    config: Any = model.config
    grid = (latents.shape[2], latents.shape[3], latents.shape[4])
    count = tokens(grid, config.patch_size)
    assert (strength is not None) == (config.ofs_embed_dim is not None), (
        "noise strength: the input and the embedding must exist together"
    )
    if strength is not None and config.get(FLASHVIDEO):
        strength = torch.stack([strength, torch.full_like(strength, grid[0])], dim=1)  # (B, 2)
    if not config.use_rotary_positional_embeddings and text.shape[1] != config.max_text_seq_length:
        raise ValueError(
            f"{text.shape[1]} text tokens, but this transformer has positions for exactly "
            f"{config.max_text_seq_length}; write text.padded=true and that number as text.max_tokens"
        )
    attention: dict[str, Tensor] | None = None
    if mask is not None and not bool(mask.all()):
        # Only where a token is hidden: with a mask tensor, attention cannot use the fastest kernel.
        video = torch.ones(len(mask), count, dtype=torch.bool, device=latents.device)
        attention = {"attention_mask": torch.cat([mask.to(latents.device), video], dim=1)}
    library: Any = model
    dtype = library.patch_embed.proj.weight.dtype
    try:
        (out,) = library(
            hidden_states=latents.transpose(1, 2).to(dtype),
            encoder_hidden_states=text.to(latents.device, dtype),
            timestep=time,
            ofs=strength,
            image_rotary_emb=rotary(model, grid, positions, latents.device),
            attention_kwargs=attention,
            return_dict=False,
        )
    except RuntimeError as error:
        what = kernels.remedy(error, masked=attention is not None)
        if what is None:
            raise
        raise ValueError(what) from error
    result: Tensor = out.transpose(1, 2).to(latents.dtype)
    return result


def parameters(transformer: Transformer, channels: int, text_dim: int) -> int:
    """The number of parameters of a configuration. No weights are created."""
    return sum(p.numel() for p in skeleton(transformer, channels, text_dim).parameters())


def flops(
    transformer: Transformer, channels: int, video_tokens: int, text_tokens: int, text_dim: int
) -> float:
    """Floating-point operations of the forward pass of one sample. A multiply-add counts as two operations.

    The main terms are 2 P N + 4 L d N^2 for N tokens, width d and L layers of P / L = 12 d^2 weights. Smaller
    terms are the patch, text and output projections, the time embedding and the adaptive norms. Training
    takes three times as many operations, and four times with gradient checkpointing. Guidance doubles a step
    of sampling.
    """
    layers, time = transformer.layers, transformer.time_embed_dim
    width = transformer.heads * transformer.head_dim
    n = video_tokens + text_tokens
    patch = channels * transformer.patch**2
    blocks = layers * (24 * width**2 * n + 4 * width * n**2 + 24 * time * width)
    ends = 4 * patch * width * video_tokens + 2 * text_dim * width * text_tokens
    embeddings = 2 * time * (width + time) + 4 * time * width
    if transformer.noise_strength:
        embeddings += 4 * time**2
    return float(blocks + ends + embeddings)


def video_tokens(config: Config, bucket: Bucket) -> int:
    """The number of video tokens of one sample of a bucket."""
    return tokens(config.latent_grid(bucket), config.transformer.patch)
