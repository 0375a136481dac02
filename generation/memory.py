"""Will it fit? An estimate before the start, so that a training does not end at its first step.

Weights, gradients, optimiser and average are counted; activations are estimated from the shapes that live at
once in a block of the transformer. The estimate is coarse and meant for "ten times too much".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from generation.config import Bucket, Config, Sampling
from generation.parallel import uses_bf16
from generation.transformer import tokens

# Tensors of (tokens, width) that one block keeps for its backward pass: norms, modulation, query, key, value,
# attention's output, and the feed-forward layer's hidden ones, which are four wide each.
_KEPT_PER_BLOCK = 24


@dataclass(frozen=True)
class Need:
    """Bytes on one device, per process."""

    weights: float
    training: float  # gradients, optimiser, average
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.training + self.activations


def video_tokens(config: Config, bucket: Bucket) -> int:
    return tokens(config.latent_grid(bucket), config.transformer.patch)


def largest_bucket(config: Config) -> Bucket:
    """Of all phases."""
    return max(
        (b for k in range(max(1, len(config.phases))) for b in config.phase(k)[1].buckets),
        key=lambda b: b.frames * b.height * b.width,
    )


def training_need(
    config: Config, channels: int, parameters: int, trained: int, bucket: Bucket, world: int, bf16: bool
) -> Need:
    """Of one training step in `bucket`. Attention's own matrices never exist as a whole (flash kernels)."""
    model = config.transformer
    width = model.heads * model.head_dim
    grid = config.latent_grid(bucket)
    length = video_tokens(config, bucket) + config.text.max_tokens
    element = 2 if bf16 else 4
    rows = config.train.batch_size * length * width * element
    kept = model.layers * (1 if model.gradient_checkpointing else _KEPT_PER_BLOCK) + _KEPT_PER_BLOCK
    latents = config.train.batch_size * channels * grid[0] * grid[1] * grid[2] * 4 * 8
    video = config.train.batch_size * 3 * bucket.frames * bucket.height * bucket.width * 4 * 4
    copies = 4 if config.train.ema_decay else 3  # gradient, two moments, average, in float32
    return Need(
        weights=(trained * 4 + (parameters - trained) * element) / world,
        training=trained * 4 * copies / world,
        activations=float(rows * kept + latents + video),
    )


def check_sampling(
    config: Config,
    channels: int,
    shape: Bucket,
    sampling: Sampling,
    device: torch.device,
    offload: bool = False,
) -> None:
    """Raises `ValueError` when one evaluation at this shape, beside the weights, does not fit the device.

    offload: a block's weights at a time are there, and the others in the CPU's memory.
    """
    model = config.transformer
    width = model.heads * model.head_dim
    element = 2 if uses_bf16(config.train.precision, device) else 4
    length = video_tokens(config, shape) + config.text.max_tokens
    rows = (1 if sampling.guidance == 1.0 else 2) * length * width
    # A block's attention and feed-forward layers, and its two adaptive norms.
    block = 12.0 * width**2 + 12.0 * width * model.time_embed_dim
    need = Need(
        weights=block * element * (2 if offload and device.type != "cpu" else model.layers),
        training=0.0,
        activations=float(rows * element * _KEPT_PER_BLOCK)
        + 3.0 * shape.frames * shape.height * shape.width * 4 * 4,
    )
    have = available(device)
    if need.total > have:
        raise ValueError(
            f"too little memory on {device} for {shape.frames} frames of {shape.width}x{shape.height}: about "
            f"{_gb(need.total)} (weights {_gb(need.weights)}, activations {_gb(need.activations)}) of "
            f"{_gb(have)}. What would help: fewer frames, a smaller size, guidance 1, --offload, or a larger "
            "GPU"
        )


def available(device: torch.device) -> float:
    """Bytes that a process may take on a device: the GPU's, or its share of the machine's or container's."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = float(psutil.virtual_memory().available)
    left = left_in_container(Path("/sys/fs/cgroup"))
    return min(free, left if left is not None else free) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def left_in_container(group: Path) -> float | None:
    """Bytes that a control group (version 2) has left; None: no limit, or none that can be read."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = float((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        stat = {name: float(value) for name, value in map(str.split, lines)}
        # Pages of files that were read count as used, and are given up when memory is wanted.
        return float(limit) - used + stat.get("inactive_file", 0.0) + stat.get("active_file", 0.0)
    except (OSError, ValueError):
        return None


def check(need: Need, device: torch.device, config: Config) -> str:
    """One line that says what it takes. Raises `ValueError` when that is more than there is."""
    have = available(device)
    line = (
        f"memory: about {_gb(need.total)} (weights {_gb(need.weights)}, optimiser {_gb(need.training)}, "
        f"activations {_gb(need.activations)}) of {_gb(have)}"
    )
    if need.total <= have:
        return line
    ways = []
    section = "vae" if config.stage == "vae" else "transformer"
    if not getattr(config, section).gradient_checkpointing:
        ways.append(f"{section}.gradient_checkpointing=true")
    if config.train.batch_size > 1:
        ways.append(f"train.batch_size={config.train.batch_size // 2} with train.accumulate doubled")
    ways += ["smaller data.buckets", "more processes (--workers)", "a smaller --preset"]
    raise ValueError(f"too little memory on {device}. {line}. What would help: {'; '.join(ways)}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
