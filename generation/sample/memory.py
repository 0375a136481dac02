"""An estimate of whether sampling fits the memory of the device: for the network, and for the codec.

The estimate is coarse: kernels need some memory of their own, and the allocator loses some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from generation.codecs.base import Codec
from generation.codecs.memory import codec_bytes
from generation.config import Bucket, Config, Sampling
from generation.device import available, gigabytes, uses_bf16
from generation.models.cogvideox import parameters, video_tokens

# The number of tensors (tokens, width) that exist at once in a block without a backward pass. Eight of them
# are the hidden tensors of the feed-forward layer, before and after its activation.
_LIVE_IN_BLOCK = 13

Offload = Literal["none", "model", "block"]


@dataclass(frozen=True)
class SamplingNeed:
    """Bytes on the device. Network and codec never compute at the same time."""

    weights: float  # of the network
    block: float  # activations of one block
    latents: float
    codec_weights: float
    codec: float  # activations of the codec
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
        beside = f", the codec's beside it {gigabytes(self.codec_weights)}" if self.offload == "none" else ""
        network = (
            f"{gigabytes(self.network_phase)} for the network (weights {gigabytes(self.weights)}{beside}, "
            f"one block {gigabytes(self.block)}, latents {gigabytes(self.latents)})"
        )
        codec = (
            f"{gigabytes(self.codec_phase)} for the codec (weights {gigabytes(self.codec_weights)}, at work "
            f"{gigabytes(self.codec)}, pixels {gigabytes(self.pixels)})"
        )
        return f"memory: about {gigabytes(self.total)} of {gigabytes(have)}: {network}, {codec}"


def sampling_need(
    config: Config,
    codec: Codec,
    text_dim: int,
    shape: Bucket,
    rows: int,
    bf16: bool,
    offload: Offload = "none",
) -> SamplingNeed:
    """The memory of a stage's network with `rows` samples at a time, and of the codec.

    The text encoder is not counted, as it is released before the network is loaded.
    """
    model = config.transformer
    width = model.heads * model.head_dim
    element = 2 if bf16 else 4
    length = video_tokens(config, shape) + config.text.max_tokens
    count = parameters(model, codec.channels, text_dim)
    if offload == "block":
        ends = parameters(model.model_copy(update={"layers": 1}), codec.channels, text_dim)
        count = min(count, ends + (count - ends) // max(1, model.layers - 1))  # two blocks and the rest
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
        pixels=video * (2 if second else 1 if codec.settings.tile else 0),  # else in pieces
        offload=offload,
    )


@dataclass(frozen=True)
class Fit:
    """A way of sampling that fits the memory."""

    apart: bool  # both predictions of guidance one after the other
    told: str  # a line about the memory, for the user


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
    """Find a way of sampling this shape that fits the memory of the device.

    guidance: "together" computes both predictions in one batch, "apart" one after the other. "auto" takes
    "apart" only if both rows do not fit. Raises `ValueError` when no way fits.
    """
    bf16 = uses_bf16(config.train.precision, device)
    elsewhere: Offload = offload if device.type != "cpu" else "none"  # a CPU has one memory
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
        remedies.insert(0, f"codec.tile{smaller}, set in the stage's training (latents depend on it)")
    raise ValueError(
        f"too little memory on {device} for {shape.frames} frames of {shape.width}x{shape.height}. {told}. "
        f"What would help: {'; '.join(remedies)}; or a larger GPU"
    )
