"""Will it fit? An estimate before the start, so that a training does not end at its first step.

Weights, gradients, optimiser and average are counted; activations are estimated from the shapes that live at
once in a block of the transformer. Estimates are coarse: what kernels need within themselves, and what the
allocator cannot use, come on top.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from generation.codecs.base import Codec
from generation.codecs.footprint import Footprint
from generation.config import Bucket, Config, Sampling
from generation.models.cogvideox import parameters, tokens
from generation.train.parallel import uses_bf16

# Tensors of (tokens, width) that one block keeps for its backward pass: norms, modulation, query, key, value,
# attention's output, and the feed-forward layer's hidden ones, which are four wide each.
_KEPT_PER_BLOCK = 24
# Of these, what is alive at once in a block that keeps nothing: eight are the feed-forward layer's hidden
# ones, before and after its activation.
_LIVE_IN_BLOCK = 13

Offload = Literal["none", "model", "block"]


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
    config: Config,
    channels: int,
    parameters: int,
    trained: int,
    bucket: Bucket,
    world: int,
    bf16: bool,
    codec: tuple[float, float] = (0.0, 0.0),
) -> Need:
    """Of one training step in `bucket`. Attention's own matrices never exist as a whole (flash kernels).

    codec: what `codec_bytes` says; it encodes while the network keeps nothing.
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


@dataclass(frozen=True)
class SamplingNeed:
    """Bytes on the device while the network computes, and while the codec does: never both at once."""

    weights: float  # of the network
    block: float  # what one block has alive
    latents: float
    codec_weights: float
    codec: float  # what it has alive
    pixels: float  # of the whole video
    offload: Offload

    @property
    def network_phase(self) -> float:
        codec = self.codec_weights if self.offload == "none" else 0.0
        return self.weights + self.block + self.latents + codec

    @property
    def codec_phase(self) -> float:
        network = self.weights if self.offload == "none" else 0.0
        return self.codec_weights + self.codec + self.pixels + self.latents + network

    @property
    def total(self) -> float:
        return max(self.network_phase, self.codec_phase)

    def told(self, have: float) -> str:
        beside = f", the codec's beside it {_gb(self.codec_weights)}" if self.offload == "none" else ""
        network = (
            f"{_gb(self.network_phase)} for the network (weights {_gb(self.weights)}{beside}, one block "
            f"{_gb(self.block)}, latents {_gb(self.latents)})"
        )
        codec = (
            f"{_gb(self.codec_phase)} for the codec (weights {_gb(self.codec_weights)}, at work "
            f"{_gb(self.codec)}, pixels {_gb(self.pixels)})"
        )
        return f"memory: about {_gb(self.total)} of {_gb(have)}: {network}, {codec}"


def sampling_need(
    config: Config,
    codec: Codec,
    text_dim: int,
    shape: Bucket,
    rows: int,
    bf16: bool,
    offload: Offload = "none",
) -> SamplingNeed:
    """Of a stage's network with `rows` samples at a time, and of the codec before or after it.

    The text encoder is not in it: it is used, and let go of, before the network is loaded.
    """
    model = config.transformer
    width = model.heads * model.head_dim
    element = 2 if bf16 else 4
    length = video_tokens(config, shape) + config.text.max_tokens
    count = parameters(model, codec.channels, text_dim)
    if offload == "block":
        ends = parameters(model.model_copy(update={"layers": 1}), codec.channels, text_dim)
        count = min(count, ends + (count - ends) // max(1, model.layers - 1))  # two blocks, and the ends
    numbers = codec.channels * math.prod(config.latent_grid(shape))
    second = config.stage == "stage2"
    codec_weights, codec_alive = codec_bytes(codec, shape, ("decode", "encode") if second else ("decode",))
    video = 3.0 * shape.frames * shape.height * shape.width * 4
    return SamplingNeed(
        weights=float(count * element),
        block=float(rows * length * width * element * _LIVE_IN_BLOCK),
        latents=numbers * 4.0 * 8,
        codec_weights=codec_weights,
        codec=codec_alive,
        pixels=video * (2 if second else 1 if codec.settings.tile else 0),  # else they come in pieces
        offload=offload,
    )


def codec_bytes(codec: Codec, shape: Bucket, actions: tuple[str, ...]) -> tuple[float, float]:
    """Of its weights, and what it has alive in the hungriest of `actions`, "encode" or "decode".

    Measured at a few pixels, at which it is really done, and scaled up: all of it goes with the area.
    """
    t, h, w = codec.grid(shape.frames, shape.height, shape.width)
    settings = codec.settings
    few = min(t, 2 * max(settings.slice_latents, 2) + 1)  # every later piece finds what the one before left
    tile = settings.tile or max(h, w)
    found = [_per_latent(codec, few, action) for action in actions]
    return max(weights for weights, _ in found), max(alive for _, alive in found) * min(h, tile) * min(
        w, tile
    )


_measured: dict[tuple[object, ...], tuple[float, float]] = {}


def _per_latent(codec: Codec, few: int, action: str) -> tuple[float, float]:
    """Of the weights, and for each latent pixel, in so many latent frames."""
    key = (codec.hash, str(codec.device), codec.settings.slice_latents, few, action)
    if key not in _measured:
        side, frames = 2, (few - 1) * codec.temporal + 1
        with Footprint() as counted:
            if action == "encode":
                pixels = side * codec.spatial
                codec.encode(torch.zeros((1, 3, frames, pixels, pixels), device=codec.device))
            else:
                latents = torch.zeros((1, codec.channels, few, side, side), device=codec.device)
                for piece in codec.decode_stream(latents, frames):
                    del piece
        _measured[key] = float(counted.given), counted.peak / side**2
    return _measured[key]


@dataclass(frozen=True)
class Fit:
    """A way of sampling that memory holds."""

    apart: bool  # both predictions of guidance one after the other
    told: str


def check_sampling(
    config: Config,
    codec: Codec,
    text_dim: int,
    shape: Bucket,
    sampling: Sampling,
    device: torch.device,
    offload: Offload = "none",
    guidance: str = "auto",
) -> Fit:
    """Whether one evaluation at this shape, and the codec, fit the device; and in one batch or apart.

    guidance: "auto" goes apart only where memory does not hold both rows. Raises `ValueError` when nothing
    fits.
    """
    bf16 = uses_bf16(config.train.precision, device)
    elsewhere: Offload = offload if device.type != "cpu" else "none"  # the CPU has nowhere else to put it
    guided = sampling.guidance != 1.0
    ways = {"auto": [False, True], "together": [False], "apart": [True]}[guidance] if guided else [False]
    have = available(device)
    for apart in ways:
        rows = 2 if guided and not apart else 1
        need = sampling_need(config, codec, text_dim, shape, rows, bf16, elsewhere)
        told = need.told(have) + (", guidance apart" if apart else "")
        if need.total <= have:
            return Fit(apart, told)
    remedies = ["fewer frames", "a smaller size"]
    if need.network_phase > have and rows == 2:
        remedies.insert(0, "--guidance-batch apart")
    if device.type != "cpu" and offload != "block":
        remedies.insert(0, "--offload model" if offload == "none" else "--offload block")
    if need.codec_phase > have and codec.settings.kind != "patch":
        smaller = f", smaller than {codec.settings.tile}" if codec.settings.tile else ""
        remedies.insert(0, f"codec.tile{smaller}, in the stage's training (what latents mean goes with it)")
    raise ValueError(
        f"too little memory on {device} for {shape.frames} frames of {shape.width}x{shape.height}. {told}. "
        f"What would help: {'; '.join(remedies)}; or a larger GPU"
    )


def available(device: torch.device) -> float:
    """Bytes that a process may take on a device: the GPU's, or its share of the machine's or container's."""
    if device.type == "cuda":
        # What is free, and what this process holds already: estimates are of all that it will hold.
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
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
    if config.stage != "vae" and config.codec.kind != "patch" and not config.codec.tile:
        ways.append("codec.tile=64")
    ways += ["smaller data.buckets", "more processes (--workers)", "a smaller --preset"]
    raise ValueError(f"too little memory on {device}. {line}. What would help: {'; '.join(ways)}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
