"""The configuration of a stage: typed, and stored beside the weights as RUN/STAGE/config.json.

Presets are in `generation.presets`. A file and dotted overrides replace values of a preset. This module
validates everything once, before any work starts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
ADAPTIVE_NORM = ("norm1.linear", "norm2.linear")

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Named = Literal["patch", "slice", "cogvideox"]
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _codec_kind(value: Any) -> Any:
    if value not in get_args(_Named) and not (isinstance(value, str) and re.fullmatch(IMPORT_PATH, value)):
        raise ValueError(
            f"unknown {value!r}: there are {', '.join(get_args(_Named))}, and codecs of your own by their "
            "import path, such as mypackage.mine:MyCodec"
        )
    return value


_CodecKind = Annotated[
    str,
    BeforeValidator(_codec_kind),
    WithJsonSchema({"type": "string", "anyOf": [{"enum": list(get_args(_Named))}, {"pattern": IMPORT_PATH}]}),
]


class Codec(_Section):
    """The codec, which turns video into latents and latents into video.

    kind: patch, slice, cogvideox, or the import path of a codec of your own (`generation.codecs.own`).
    """

    kind: _CodecKind = "patch"
    own: dict[str, Any] = Field(default_factory=dict)  # parameters of a codec of your own
    model: str | None = None  # slice: RUN/vae of a training; cogvideox: folder or hub name
    revision: str | None = None
    temporal: Positive = 4  # frames per latent frame, after the first
    spatial: Positive = 8  # pixels per latent pixel, along each side
    std: Annotated[float, Field(gt=0)] = 0.5  # divisor of the latents (cogvideox: 1 / scaling factor)
    slice_latents: Positive = 2  # slice: number of latent frames that are computed at a time
    tile: Annotated[int, Field(ge=2)] | None = None  # slice, cogvideox: side in latent pixels; null: no tiles
    tile_overlap: Positive = 18  # latent pixels

    @property
    def frame_stride(self) -> int:
        """A video has frame_stride * n + 1 frames. CogVideoX's autoencoder would make other videos longer."""
        return 8 if self.kind == "cogvideox" else self.temporal

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Codecs of reelmill look, and are hashed, as before there were others."""
        return {key: value for key, value in plain(self).items() if key != "own" or value}

    @model_validator(mode="after")
    def _named(self) -> Codec:
        if self.own and ":" not in self.kind:
            raise ValueError(f"codec.own: parameters of a codec of your own, but codec.kind is {self.kind}")
        if self.kind == "slice" and not self.model:
            raise ValueError("codec.model: name the autoencoder that was trained, RUN/vae")
        if self.kind == "cogvideox" and not self.model:
            raise ValueError("codec.model: name a folder or a hub model, such as THUDM/CogVideoX-5b")
        if self.tile and self.tile_overlap >= self.tile:
            raise ValueError(
                f"codec.tile_overlap: {self.tile_overlap} is no less than codec.tile, {self.tile}"
            )
        return self


class SliceVae(_Section):
    """The sizes of the autoencoder that the stage `vae` trains."""

    channels: Positive = 16  # of the codes
    temporal: Literal[1, 2, 4, 8] = 4  # frames per latent frame; 1: each frame alone, no layer over time
    spatial: Literal[1, 2, 4, 8, 16] = 8  # pixels per latent pixel, along each side
    patch: Literal[1, 2, 4] = 1  # side in pixels of the network's smallest unit; larger: cheaper, coarser
    patch_frames: Literal[1, 2, 4] = 1  # length in frames of the same unit
    # Channels of each level, from pixels to codes. Between two levels, frames, sides or both are halved.
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (128, 256, 512, 512)
    blocks: Positive = 2  # residual blocks of each width in the encoder; the decoder has one more
    gradient_checkpointing: bool = False

    def factors(self, level: int) -> tuple[int, int]:
        """The divisors in time and in space, each 1 or 2, between the widths `level` and `level` + 1.

        Sides are halved first. Frames are halved last, because layers over time are cheapest there.
        """
        sides = (self.spatial // self.patch).bit_length() - 1
        times = (self.temporal // self.patch_frames).bit_length() - 1
        return 2 if level >= len(self.widths) - 1 - times else 1, 2 if level < sides else 1

    def time_kernel(self, level: int) -> int:
        """The kernel length in frames of a level. The level of single pixels is the most expensive level, so
        its kernel covers one frame."""
        single = self.patch == self.patch_frames == 1
        return 1 if self.temporal == 1 or (level == 0 and single) else 3

    @model_validator(mode="after")
    def _halves(self) -> SliceVae:
        if self.patch > self.spatial:
            raise ValueError(f"vae.patch: {self.patch} is more than vae.spatial, {self.spatial}")
        if self.patch_frames > self.temporal:
            raise ValueError(
                f"vae.patch_frames: {self.patch_frames} is more than vae.temporal, {self.temporal}"
            )
        sides, times = self.spatial // self.patch, self.temporal // self.patch_frames
        need = max(sides, times).bit_length()
        if len(self.widths) != need:
            raise ValueError(
                f"vae.widths: {len(self.widths)} of them, but between patches and codes sides shrink by "
                f"vae.spatial/vae.patch={sides} and frames by vae.temporal/vae.patch_frames={times}, "
                f"which takes {need}; write so many"
            )
        return self


class VaeLoss(_Section):
    """The weights of the losses that the autoencoder minimises, per value of the video."""

    l1: NotNegative = 1.0
    l2: NotNegative = 0.0
    kl: NotNegative = 1e-6
    perceptual: NotNegative = 0.0  # 0: no extractor is loaded
    extractor: str = "vgg16"  # or package.module:factory
    extractor_weights: str | None = None  # a file; null: torchvision downloads its own
    adversarial: NotNegative = 0.0  # weight after both gradients have equal length; 0: no discriminators
    discriminator_start: Annotated[int, Field(ge=0)] = 25_000  # first step with discriminators
    discriminator_width: Annotated[int, Field(ge=8, multiple_of=8)] = 64


class Text(_Section):
    """The text encoder, and how captions become tokens."""

    kind: Literal["minilm", "t5", "transformers"] = "minilm"
    model: str | None = None  # folder or hub name; null with minilm: the packaged model
    revision: str | None = None
    max_tokens: Positive = 226
    # True: captions are padded to max_tokens and pads are attended, as published weights expect.
    # False: only the real tokens.
    padded: bool = False
    dropout: Fraction = 0.1  # share of captions that zeros replace, for classifier-free guidance

    @model_validator(mode="after")
    def _named(self) -> Text:
        if self.kind != "minilm" and not self.model:
            raise ValueError(
                "text.model: name a folder or a hub model, such as google/t5-v1_1-xxl for text.kind=t5"
            )
        return self


class Transformer(_Section):
    """The transformer of Stage I or Stage II."""

    layers: Positive = 30
    heads: Positive = 30
    head_dim: Annotated[int, Field(ge=16, multiple_of=16)] = 64  # 1/4 for time, 3/8 for each side, in pairs
    time_embed_dim: Positive = 512
    patch: Positive = 2  # side in latent pixels
    # A diffusers folder, a hub name, or RUN/STAGE of a reelmill training; null: training from scratch.
    pretrained: str | None = None
    revision: str | None = None
    positions: Literal["integer", "resized"] = "integer"  # resized: as diffusers does for its checkpoints
    noise_strength: bool = False  # has the `ofs` embedding: Stage II's input says how noisy the start is
    gradient_checkpointing: bool = False
    compile: bool = False  # each block is compiled separately
    # Attention kernels on a GPU. fast: fast kernels, or an error; any: PyTorch's choice; else: one kernel.
    attention: Literal["fast", "cudnn", "flash", "efficient", "any"] = "fast"


class Lora(_Section):
    """Low-rank adapters of a frozen transformer."""

    rank: Positive = 128
    alpha: Annotated[float, Field(gt=0)] = 128.0  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD, *ADAPTIVE_NORM)


class Bucket(_Section):
    """A shape of batches. Frames are 4n + 1, or 8n + 1 with CogVideoX's autoencoder. 1 frame is an image."""

    frames: Positive
    height: Positive
    width: Positive
    crop: Literal["center", "random"] | None = None  # null: data.crop


class Between(_Section):
    """Inclusive bounds of a column. null: no bound."""

    min: float | None = None
    max: float | None = None


class Data(_Section):
    """Which clips are used, and which frames, window and caption each clip gives."""

    fps: Annotated[float, Field(gt=0)] = 8.0  # clips are sampled by time at this rate
    buckets: Annotated[tuple[Bucket, ...], Field(min_length=1)] = (Bucket(frames=49, height=256, width=480),)
    crop: Literal["center", "random"] = "center"  # random: a window at native scale; else scaled to cover
    max_upscale: Annotated[float, Field(ge=1)] | None = None  # clips that need more upscaling are left out
    single_frame_fraction: Fraction = 0.0  # share of the video batches that give one frame of each clip
    random_start: bool = False  # False: the middle of the clip
    motion_tag: bool = False  # prefix the caption with "low motion, " or a similar tag, from motion.speed
    motion_bounds: tuple[float, float, float, float] = (0.01, 0.03, 0.1, 0.3)  # frame widths per second
    where: dict[str, Between] = Field(default_factory=dict)  # only rows whose columns are within the bounds
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.02  # held out, by hash of clip_id
    workers: Annotated[int, Field(ge=0)] = 2
    max_bad_fraction: Fraction = 0.05  # largest allowed share of unreadable rows, per epoch


class Objective(_Section):
    """What the transformer learns to predict."""

    # v: v-prediction with zero terminal SNR. flow: a velocity, from noise or from a degraded latent.
    kind: Literal["v", "flow"] = "v"
    snr_shift: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0)] = 1.0  # flow: training times warped towards the start


class Degradation(_Section):
    """The degradation of Stage II's training pairs. All draws are constant within a clip."""

    scale: tuple[float, float] = (4.0, 8.0)  # smallest and largest factor for scaling down and up again
    strong_probability: Fraction = 0.5  # of two rounds of blur, resize, noise and codec; else resize alone
    noise_steps: tuple[int, int] | None = None  # of the zero-SNR schedule; null: by the number of tokens
    noise_range: Literal["wide", "narrow"] = "wide"  # by tokens: 600 to 900 or 650 to 750 at 1080p
    variants: Annotated[int, Field(ge=0)] = 0  # > 0: number of fixed degradations per clip, for the cache

    @model_validator(mode="after")
    def _ordered(self) -> Degradation:
        if not 1 <= self.scale[0] <= self.scale[1]:
            raise ValueError(
                f"degradation.scale: two factors of at least 1, the smaller first, not {self.scale}"
            )
        if self.noise_steps and not 0 <= self.noise_steps[0] <= self.noise_steps[1] <= 999:
            raise ValueError(
                "degradation.noise_steps: two steps between 0 and 999, the smaller first, "
                f"not {self.noise_steps}"
            )
        return self


class Phase(_Section):
    """A part of the training. Its data and degradation settings replace those of the configuration."""

    steps: Positive
    data: dict[str, Any] = Field(default_factory=dict)
    degradation: dict[str, Any] = Field(default_factory=dict)
    decoder_only: bool = False  # vae: the encoder does not change, so the meaning of latents stays


class Train(_Section):
    """The training loop: length, optimiser, checkpoints, validation and caches."""

    steps: Positive = 1000
    batch_size: Positive = 1  # per worker and micro-batch
    accumulate: Positive = 1  # micro-batches per step
    learning_rate: Annotated[float, Field(gt=0)] = 4e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    decay_steps: Annotated[int, Field(ge=0)] = 0  # last steps, in which the rate falls to 0; 0: no decay
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip_norm: Annotated[float, Field(gt=0)] = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # 0: no average is kept
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where there is a GPU
    checkpoint_every: Positive = 500
    keep_last: Positive = 3
    validate_every: Annotated[int, Field(ge=0)] = 500  # 0: never
    sample_every: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 10
    cache_latents: bool = False
    cache_text: bool = True


class Sampling(_Section):
    """Defaults of sampling. Options of the command line replace them."""

    steps: Positive = 50
    guidance: Annotated[float, Field(ge=0)] = 6.0
    guidance_ramp: Literal["constant", "dynamic", "published"] = "constant"
    timesteps: Literal["trailing", "floored"] = "trailing"  # of v-prediction; floored: FlashVideo's code
    shift: Annotated[float, Field(gt=0)] = 1.0  # of a flow's time grid
    noise_step: Annotated[int, Field(ge=0, le=999)] | None = None  # Stage II; null: by the number of tokens
    negative_prompt: str = ""
    prompt_prefix: str = ""  # put unchanged before every prompt, such as "medium motion, "

    def told(self, prompt: str) -> str:
        """The text that the text encoder reads for a prompt."""
        return self.prompt_prefix + prompt


class Config(_Section):
    """All settings that decide what one stage learns."""

    stage: Literal["vae", "stage1", "stage2"]
    preset: str = ""
    seed: int = 0
    vae: SliceVae = SliceVae()
    vae_loss: VaeLoss = VaeLoss()
    codec: Codec = Codec()
    text: Text = Text()
    transformer: Transformer = Transformer()
    lora: Lora | None = None
    data: Data = Data()
    objective: Objective = Objective()
    degradation: Degradation = Degradation()
    phases: tuple[Phase, ...] = ()
    train: Train = Train()
    sampling: Sampling = Sampling()

    @model_validator(mode="before")
    @classmethod
    def _phases_are_valid(cls, data: Any) -> Any:
        """Check the overrides of each phase now. An error in a late phase must not appear after days."""
        phases = data.get("phases") if isinstance(data, dict) else None
        wrong: list[Any] = []
        for k, phase in enumerate(phases if isinstance(phases, list | tuple) else ()):
            for section, model in (("data", Data), ("degradation", Degradation)):
                over = _plain(_plain(phase).get(section))
                try:
                    model.model_validate({**_plain(data.get(section)), **over})
                except ValidationError as error:
                    # Keep only errors of the overrides, and name the place of the phase. Errors of the base
                    # section are reported there.
                    found = [
                        e for e in error.errors(include_url=False) if not e["loc"] or e["loc"][0] in over
                    ]
                    wrong += [{**e, "loc": ("phases", k, section, *e["loc"])} for e in found]
        if wrong:
            raise ValidationError.from_exception_data("Config", wrong)
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        alone = [phase.decoder_only for phase in self.phases]
        if any(alone) and self.stage != "vae":
            raise ValueError(f"phases.{alone.index(True)}.decoder_only: only the vae has a decoder")
        if alone != sorted(alone):
            raise ValueError(
                f"phases.{alone.index(True) + 1}.decoder_only: an earlier phase trains the decoder alone and "
                "so fixes the meaning of latents; every later phase must train the decoder alone, too"
            )
        if self.stage == "vae":
            return self._consistent_vae()
        if self.stage == "stage2" and self.objective.kind != "flow":
            raise ValueError("objective.kind: stage2 is a flow; write flow")
        if self.stage == "stage2" and not self.transformer.noise_strength:
            raise ValueError("transformer.noise_strength: stage2 needs it; write true")
        if self.stage == "stage2" and self.sampling.guidance_ramp != "constant":
            raise ValueError("sampling.guidance_ramp: stage2 has few evaluations and a constant guidance")
        if self.stage == "stage2" and self.train.cache_latents and not self.degradation.variants:
            raise ValueError(
                "train.cache_latents: stage2 degrades each clip differently every time, so a cache would be "
                "useless; write false, or give the number of fixed degradations per clip with "
                "degradation.variants"
            )
        if self.objective.kind == "flow" and self.sampling.timesteps != "trailing":
            raise ValueError("sampling.timesteps: a flow's times are set by sampling.shift; write trailing")
        if self.stage == "stage1" and self.transformer.noise_strength:
            raise ValueError("transformer.noise_strength: only stage2 has a degraded start; write false")
        if self.lora and not self.transformer.pretrained:
            raise ValueError(
                "lora: it adapts a trained model; name one in transformer.pretrained (a diffusers folder, a "
                "hub name, or RUN/stage1 of an earlier training), or write lora=null to train all weights"
            )
        self._check_buckets()
        return self

    def _consistent_vae(self) -> Config:
        if self.lora:
            raise ValueError("lora: adapters need a transformer, but the vae has none; write lora=null")
        if self.train.cache_latents:
            raise ValueError("train.cache_latents: the vae makes the latents; write false")
        self._check_buckets()
        return self

    def _check_buckets(self) -> None:
        for k in range(max(1, len(self.phases))):
            own = bool(self.phases) and "buckets" in self.phases[k].data
            for bucket in self.phase(k)[1].buckets:
                self.check_shape(bucket, f"phases.{k}.data.buckets" if own else "data.buckets")

    def check_shape(self, bucket: Bucket, what: str = "data.buckets") -> None:
        """Raises `ValueError` for frames or sizes that are no multiple of latent frames, pixels or patches.

        what: the name of the bucket in the message.
        """
        if self.stage == "vae":
            self._check_sides(bucket, what, self.vae.spatial, "vae.spatial")
            return
        stride = self.codec.frame_stride
        if (bucket.frames - 1) % stride:
            good = (bucket.frames - 1) // stride * stride + 1
            raise ValueError(
                f"{what}: {bucket.frames} frames are not {stride}n + 1; take {good} or {good + stride}"
            )
        why = (
            f"the codec's {self.codec.spatial} pixels times the transformer's patch {self.transformer.patch}"
        )
        self._check_sides(bucket, what, self.codec.spatial * self.transformer.patch, why)

    def _check_sides(self, bucket: Bucket, what: str, side: int, why: str) -> None:
        for name, length in (("height", bucket.height), ("width", bucket.width)):
            if length % side:
                good = max(side, length // side * side)
                raise ValueError(
                    f"{what}: {name} {length} is no multiple of {side} ({why}); take {good} or {good + side}"
                )

    def latent_grid(self, bucket: Bucket) -> tuple[int, int, int]:
        """(t, h, w) of the latents of a video of this shape; t is frames / temporal, rounded up."""
        codec = self.codec
        t = -(-bucket.frames // codec.temporal)
        return t, bucket.height // codec.spatial, bucket.width // codec.spatial

    @property
    def steps(self) -> int:
        """The number of steps of all phases together."""
        return sum(phase.steps for phase in self.phases) or self.train.steps

    def phase(self, k: int) -> tuple[int, Data, Degradation]:
        """Steps, data and degradation of phase `k`. A configuration without phases counts as one phase."""
        if not self.phases:
            return self.train.steps, self.data, self.degradation
        phase = self.phases[k]
        data = Data.model_validate({**self.data.model_dump(), **phase.data})
        degradation = Degradation.model_validate({**self.degradation.model_dump(), **phase.degradation})
        return phase.steps, data, degradation


def _plain(section: Any) -> dict[str, Any]:
    """A section as a mapping. For other values: {}, because the validation refuses them elsewhere."""
    section = section.model_dump() if isinstance(section, BaseModel) else section
    return section if isinstance(section, dict) else {}


# Keys that a resumed training may change: how the training runs and when it ends. The learning rate is among
# them, because a lower rate can save a training that has diverged.
HARMLESS = frozenset(
    {f"train.{k}" for k in ("steps", "checkpoint_every", "keep_last", "log_every")}
    | {f"train.{k}" for k in ("validate_every", "sample_every", "cache_latents", "cache_text")}
    | {f"sampling.{k}" for k in Sampling.model_fields}
    | {"train.learning_rate", "transformer.gradient_checkpointing", "transformer.compile"}
    | {"transformer.attention"}
    | {"vae.gradient_checkpointing"}
    | {"data.workers", "data.max_bad_fraction", "preset"}
)


def differences(old: Config, new: Config, *, harmless: bool = False) -> list[str]:
    """The differences that forbid a resume, as `key: old -> new`. harmless: the allowed differences."""
    before, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    return changed(before, now, lambda key: (key in HARMLESS) == harmless)


def changed(old: Any, new: Any, counts: Callable[[str], bool] = lambda _: True) -> list[str]:
    """The differences between nested mappings, as `key: old -> new` with dotted keys.

    counts: whether a key is compared.
    """
    a, b = _flat(old), _flat(new)
    keys = [k for k in sorted({*a, *b}) if counts(k) and a.get(k) != b.get(k)]
    return [f"{k}: {json.dumps(a.get(k))} -> {json.dumps(b.get(k))}" for k in keys]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        k: v for name, x in value.items() for k, v in _flat(x, f"{prefix}.{name}" if prefix else name).items()
    }


def content_hash(value: Any) -> str:
    """A hash of plain data: 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
