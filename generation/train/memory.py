"""An estimate, before a training starts, of whether a training step fits the memory of the device.

Weights, gradients, optimiser and average are counted. Activations are estimated from the shapes that exist
at the same time in a block of the transformer. The estimate is coarse: kernels need some memory of their own,
and the allocator loses some.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generation.config import Bucket, Config
from generation.device import available, gigabytes
from generation.models.cogvideox import video_tokens

# The number of tensors (tokens, width) that a block keeps for its backward pass: norms, modulation, query,
# key, value, the output of attention, and the hidden tensors of the feed-forward layer, 4 times as wide each.
_KEPT_PER_BLOCK = 24


@dataclass(frozen=True)
class Need:
    """Memory that one process needs on its device, in bytes."""

    weights: float
    training: float  # gradients, optimiser, average
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.training + self.activations


def largest_bucket(config: Config) -> Bucket:
    """The bucket with the most pixels of all phases."""
    return max(
        (b for k in range(max(1, len(config.phases))) for b in config.phase(k)[1].buckets),
        key=lambda b: b.frames * b.height * b.width,
    )


def training_need(
    config: Config,
    channels: int,
    parameters: int,
    trained: int,
    bucket: Bucket,
    world: int,
    bf16: bool,
    codec: tuple[float, float] = (0.0, 0.0),
) -> Need:
    """The memory of one training step in `bucket`.

    Matrices of attention are not counted, as flash kernels never hold them whole.
    channels: of the latents. parameters, trained: numbers of all and of trained parameters. world: number of
    processes. codec: the bytes that `codec_bytes` returns; the codec encodes before the network keeps
    activations.
    """
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
        weights=(trained * 4 + (parameters - trained) * element) / world + codec[0],
        training=trained * 4 * copies / world,
        activations=float(max(rows * kept + latents, codec[1]) + video),
    )


def check(need: Need, device: torch.device, config: Config) -> str:
    """A line that reports the memory that is needed. Raises `ValueError` when the device has less."""
    have = available(device)
    line = (
        f"memory: about {gigabytes(need.total)} (weights {gigabytes(need.weights)}, "
        f"optimiser {gigabytes(need.training)}, activations {gigabytes(need.activations)}) "
        f"of {gigabytes(have)}"
    )
    if need.total <= have:
        return line
    ways = []
    section = "vae" if config.stage == "vae" else "transformer"
    if not getattr(config, section).gradient_checkpointing:
        ways.append(f"{section}.gradient_checkpointing=true")
    if config.train.batch_size > 1:
        ways.append(f"train.batch_size={config.train.batch_size // 2} with train.accumulate doubled")
    if config.stage != "vae" and config.codec.kind != "patch" and not config.codec.tile:
        ways.append("codec.tile=64")
    ways += ["smaller data.buckets", "more processes (--workers)", "a smaller --preset"]
    raise ValueError(f"too little memory on {device}. {line}. What would help: {'; '.join(ways)}")
