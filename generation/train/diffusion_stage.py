"""Stages I and II in training: a batch becomes latents, text tokens and draws, and then a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from generation import draws
from generation.cache import TensorCache, cache_key
from generation.codecs.base import Codec, check_latents_hash, latents_hash
from generation.codecs.memory import codec_bytes
from generation.codecs.open import open_codec
from generation.config import Config, Degradation
from generation.data.loader import Batch, Keys, Loader
from generation.data.transform import Sample
from generation.device import uses_bf16
from generation.media import to_uint8, write_grid
from generation.models import cogvideox, network
from generation.models import lora as adapters
from generation.models.cogvideox import tokens
from generation.process import stage1, stage2
from generation.process.degrade import degrade_pixels
from generation.process.stage1 import Key
from generation.text.cache import TextCache
from generation.text.open import open_text
from generation.text.tokens import null_like
from generation.train import memory
from generation.train.stage import Stage

VALIDATION_CLIPS = 8
SHOWN = 4


@dataclass(frozen=True)
class Prepared:
    """A micro-batch that is ready for the loss, on the device."""

    latents: Tensor  # (B, C, t, h, w)
    low_quality: Tensor | None  # Stage II: latents of the degraded video, in the same shape
    text: list[Tensor]  # token states (L, D) of each sample
    times: list[float]  # of each sample, in [0, 1)
    noise_steps: list[int]  # Stage II: of each sample
    keys: list[Key]  # keys of the random draws of each sample


class DiffusionStage(Stage[Prepared]):
    """Stage I or II: a transformer makes latents from text, and in Stage II also from degraded latents."""

    model: nn.Module

    def __init__(self, config: Config, model: nn.Module, codec: Codec, text: TextCache, folder: Path):
        super().__init__(config, model)
        self.codec, self.text = codec, text
        self.degradation: Degradation = config.degradation
        self.cache = TensorCache(folder / "cache" / "latents") if config.train.cache_latents else None

    @property
    def latents_hash(self) -> str:
        return latents_hash(self.codec)

    def check_latents_hash(self, before: str, folder: Path) -> None:
        check_latents_hash(before, self.codec, folder)

    @property
    def is_second(self) -> bool:
        return self.config.stage == "stage2"

    # ---- before the start

    def notes(self) -> list[str]:
        model = self.config.transformer
        numbers, width = self.codec.channels * model.patch**2, model.heads * model.head_dim
        if numbers <= width:
            return []
        return [
            f"note: a patch of latents has {numbers} numbers, but the transformer is {width} wide, so it "
            "cannot remove all of the noise. Take a wider transformer, or a codec or patch of "
            "fewer numbers"
        ]

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.transformer_blocks)  # type: ignore[arg-type]

    @property
    def compiles(self) -> bool:
        return self.config.transformer.compile

    def caching(self) -> tuple[TensorCache | None, Keys | None]:
        cacheable = self.cache is not None and (not self.is_second or self.degradation.variants > 0)
        return (self.cache, self._cache_keys) if cacheable else (None, None)

    def begin_phase(self, phase: int) -> list[str]:
        self.degradation = self.config.phase(phase)[2]
        return []

    def _cache_keys(self, sample: Sample) -> list[str]:
        """Cache keys of the clip's latents, and in Stage II also of its degraded copy."""
        parts = (sample.clip_id, sample.transform, f"{self.codec.hash} on {self.codec.device.type}")
        keys = [cache_key(*parts)]
        if self.is_second:
            shape = self.degradation.model_dump_json(exclude={"noise_steps", "noise_range"})
            keys.append(cache_key(*parts, shape, self.config.seed, self._variant(sample)))
        return keys

    def _variant(self, sample: Sample) -> int:
        """The number of the fixed degradation that this sample of a clip gets."""
        draw = draws.uniform("variant", self.config.seed, sample.clip_id, sample.position)
        return int(draw * self.degradation.variants)

    # ---- a step

    def prepare(self, batch: Batch, phase: int, step: int) -> Prepared:
        """Latents, text and draws of a micro-batch. See `Stage.prepare`."""
        order: Key = (self.config.seed, phase, batch.epoch)
        keys: list[Key] = [(*order, p) for p in batch.positions]
        at = [stage1.training_time(self.config.objective, p, *order) for p in batch.positions]
        text = [
            null_like(tokens) if draws.uniform("drop caption", *key) < self.config.text.dropout else tokens
            for tokens, key in zip(self._text(batch), keys, strict=True)
        ]
        return self._prepared(batch, keys, at, text, order)

    def _text(self, batch: Batch) -> list[Tensor]:
        return self.text.get([caption or "" for caption in batch.captions])

    def _prepared(
        self, batch: Batch, keys: list[Key], at: list[float], text: list[Tensor], order: Key
    ) -> Prepared:
        latents = self._latents(batch, keys)
        clean = torch.stack([pair[0] for pair in latents]).to(self.codec.device)
        if not self.is_second:
            return Prepared(clean, None, text, at, [], keys)
        low_quality = torch.stack([pair[1] for pair in latents]).to(self.codec.device)
        span = stage2.noise_steps(self.degradation, self.video_tokens(clean))
        steps = [stage2.draw_noise_step(span, p, *order) for p in batch.positions]
        return Prepared(clean, low_quality, text, at, steps, keys)

    def video_tokens(self, latents: Tensor) -> int:
        t, h, w = latents.shape[-3:]
        return tokens((t, h, w), self.config.transformer.patch)

    @torch.no_grad()
    def _latents(self, batch: Batch, keys: Sequence[Key]) -> list[tuple[Tensor, ...]]:
        """Latents (C, t, h, w) of each clip, and in Stage II of its degraded copy too.

        Each clip is encoded alone. So its bits do not depend on the other clips, which may be cached or not.
        """
        found: list[tuple[Tensor, ...]] = []
        pixels = iter(batch.video if batch.video is not None else ())
        for i, cached in enumerate(batch.latents):
            if cached is not None:
                found.append(cached)
                continue
            video = next(pixels)[None].to(self.codec.device).float() / 127.5 - 1
            made = [self.codec.encode(video)[0]]
            if self.is_second:
                sample = batch.samples[i]
                fixed = ("variant", self.config.seed, sample.clip_id, self._variant(sample))
                draw = fixed if self.degradation.variants else ("degrade", *keys[i])
                made.append(self.codec.encode(degrade_pixels(video, self.degradation, *draw))[0])
            if self.cache is not None:
                for key, latents in zip(batch.keys[i], made, strict=False):
                    self.cache.put(key, latents.cpu())
            found.append(tuple(made))
        return found

    def losses(self, prepared: Prepared) -> Tensor:
        positions = self.config.transformer.positions
        if prepared.low_quality is None:
            return stage1.loss(
                self.model,
                self.config.objective,
                prepared.latents,
                prepared.text,
                prepared.times,
                prepared.keys,
                positions,
            )
        return stage2.loss(
            self.model,
            prepared.latents,
            prepared.low_quality,
            prepared.text,
            prepared.times,
            prepared.noise_steps,
            prepared.keys,
            positions,
        )

    def times(self, prepared: Prepared) -> list[float]:
        return prepared.times

    def flops(self, prepared: Prepared) -> float:
        text, channels = prepared.text, prepared.latents.shape[1]
        video = self.video_tokens(prepared.latents)
        longest = max(map(len, text))
        forward = cogvideox.flops(self.config.transformer, channels, video, longest, text[0].shape[1])
        # A backward pass costs two forward passes, or about one if the weights are frozen (LoRA).
        return (2 if self.config.lora else 3) * forward * len(text)

    # ---- between the steps

    def validation(self, loader: Loader) -> Iterator[Prepared]:
        """Held-out clips with fixed times, noise and degradations."""
        count = 0
        for batch in loader.validation(max(1, VALIDATION_CLIPS // loader.batch_size)):
            keys: list[Key] = [("validation", s.clip_id) for s in batch.samples]
            at = [((count + i) % VALIDATION_CLIPS + 0.5) / VALIDATION_CLIPS for i in range(len(keys))]
            count += len(keys)
            yield self._prepared(batch, keys, at, self._text(batch), ("validation",))

    @torch.no_grad()
    def show(self, loader: Loader, path: Path, autocast: Callable[[], torch.autocast], write: bool) -> None:
        """Write a grid of videos for the captions of held-out clips.

        Stage I shows samples. Stage II shows the degraded, the enhanced and the true video of each clip.
        """
        rows: list[list[Tensor]] = []
        for prepared in self.validation(loader):
            for i, text in enumerate(prepared.text):
                frames = (prepared.latents.shape[2] - 1) * self.codec.temporal + 1
                with autocast():
                    latents = self._sampled(prepared, i, text)
                rows.append([video.cpu() for video in self.codec.decode(latents, frames)])
                if len(rows) == SHOWN:
                    break
            break  # a grid needs videos of one shape, which one batch has
        if write and rows:
            path.parent.mkdir(parents=True, exist_ok=True)
            columns = len(rows[0]) if self.is_second else None  # the three videos of a clip are in one row
            videos = [to_uint8(video) for row in rows for video in row]
            write_grid(path, videos, self.config.data.fps, columns)

    def _sampled(self, prepared: Prepared, i: int, text: Tensor) -> Tensor:
        """Latents (1, C, t, h, w) of Stage I; (3, C, t, h, w) of Stage II: degraded, enhanced and true."""
        config, clean = self.config, prepared.latents[i : i + 1]
        positions = config.transformer.positions
        if prepared.low_quality is None:
            shape = (clean.shape[1], clean.shape[2], clean.shape[3], clean.shape[4])
            return stage1.sample(
                self.model,
                config.objective,
                config.sampling,
                shape,
                text,
                None,
                "show",
                i,
                positions=positions,
                device=clean.device,
            )
        low_quality = prepared.low_quality[i : i + 1]
        step = stage2.noise_step(self.degradation, config.sampling, self.video_tokens(clean))
        made = stage2.sample(
            self.model, config.sampling, low_quality, step, text, None, "show", i, positions=positions
        )
        return torch.cat([low_quality, made, clean])

    def export(self, weights: Mapping[str, Tensor], dataset: str, folder: Path, step: int) -> None:
        network.export(self.model, self.config, weights, folder, step, self.latents_hash)


def open_diffusion(
    config: Config, device: torch.device, folder: Path, world_size: int, say: Callable[[str], None] | None
) -> DiffusionStage:
    """Open Stage I or II for training. See `train.open.open_stage`."""
    codec = open_codec(config.codec, device)
    encoder = open_text(config.text, device)
    if say:
        say(_memory(config, codec, encoder.dim, device, world_size))
    text = TextCache(folder / "cache" / "text" if config.train.cache_text else None, encoder)
    # Frozen weights below a LoRA are stored in the computing precision. Trained weights are float32.
    frozen = config.lora is not None and uses_bf16(config.train.precision, device)
    model = network.build_model(
        config, codec.channels, encoder.dim, torch.bfloat16 if frozen else torch.float32
    )
    return DiffusionStage(config, model, codec, text, folder)


def _memory(config: Config, codec: Codec, text_dim: int, device: torch.device, world_size: int) -> str:
    skeleton = cogvideox.skeleton(config.transformer, codec.channels, text_dim)
    count = sum(p.numel() for p in skeleton.parameters())
    lora = adapters.parameters(skeleton, config.lora) if config.lora else 0
    largest = memory.largest_bucket(config)
    bf16 = uses_bf16(config.train.precision, device)
    need = memory.training_need(
        config,
        codec.channels,
        count + lora,
        lora or count,
        largest,
        world_size,
        bf16,
        codec_bytes(codec, largest, ("encode",)),
    )
    return memory.check(need, device, config)
