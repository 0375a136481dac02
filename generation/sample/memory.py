"""Will it fit? An estimate before sampling, of the network and of the codec before or after it.

Estimates are coarse: what kernels need within themselves, and what the allocator cannot use, come on top.
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

# Tensors of (tokens, width) that are alive at once in a block that keeps nothing: eight are the feed-forward
# layer's hidden ones, before and after its activation.
_LIVE_IN_BLOCK = 13

Offload = Literal["none", "model", "block"]


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
