"""The autoencoder in training: it learns to reconstruct the clips of a dataset."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from generation import draws
from generation import run as runs
from generation.codecs.slice import grid, save_network
from generation.codecs.slice_vae.network import SliceVAE
from generation.codecs.slice_vae.perceptual import open_extractor
from generation.codecs.slice_vae.task import VaeTask
from generation.config import Config, SliceVae
from generation.data.loader import Batch, Loader
from generation.device import uses_bf16
from generation.media import to_uint8, write_grid
from generation.train import memory
from generation.train.parallel import World
from generation.train.stage import Stage

VALIDATION_CLIPS = 16
SHOWN = 4  # clips in a grid of samples
STATISTICS_CLIPS = 64  # clips for mean and deviation of the codes, about
_KEPT_PER_LAYER = 10  # tensors that the backward pass of a residual layer needs


@dataclass(frozen=True)
class Clips:
    """A micro-batch that is ready for the loss, on the device."""

    video: Tensor  # (B, 3, T, H, W) in [-1, 1]
    noise: Tensor  # (B, C, t, h, w), for the codes
    judged: bool  # by the discriminators, which start later
    decoder_only: bool  # the encoder gets no gradient


def training_need(config: Config, world_size: int, bf16: bool) -> memory.Need:
    """The memory of one training step in the largest bucket."""
    with torch.device("meta"):
        model = VaeTask(config.vae, config.vae_loss)
    count = sum(p.numel() for p in model.parameters())
    largest = memory.largest_bucket(config)
    copies = 4 if config.train.ema_decay else 3  # gradient, two moments, average, in float32
    kept = activation_bytes(model, config, (largest.frames, largest.height, largest.width))
    return memory.Need(
        weights=count * 4 / world_size,
        training=count * 4 * copies / world_size,
        activations=kept * (0.5 if bf16 else 1.0),
    )


def activation_bytes(model: VaeTask, config: Config, shape: tuple[int, int, int]) -> float:
    """Bytes that a micro-batch of shape (T, H, W) keeps for its backward pass, in float32.

    model: on the device `meta`.
    """
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # keeps storages alive, so that no other storage gets the same address
    own = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    count = config.train.batch_size
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        noise = torch.empty((count, config.vae.channels, *grid(config.vae, *shape)))
        model(torch.empty((count, 3, *shape)), noise, judged=True)
    # With gradient checkpointing, the tensors of one layer at a time are computed again and kept.
    again = _KEPT_PER_LAYER * max(storages.values()) if config.vae.gradient_checkpointing else 0
    return float(sum(storages.values()) + again)


def open_vae(
    config: Config, device: torch.device, world_size: int, say: Callable[[str], None] | None
) -> VaeStage:
    """Open the autoencoder for training. See `train.open.open_stage`."""
    loss = config.vae_loss
    extract = open_extractor(loss.extractor, loss.extractor_weights, device) if loss.perceptual else None
    if say:
        bf16 = uses_bf16(config.train.precision, device)
        say(memory.check(training_need(config, world_size, bf16), device, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = VaeTask(config.vae, loss, extract)
    return VaeStage(config, model)


class VaeStage(Stage[Clips]):
    """The autoencoder as a stage. With `phases`, the last phases may train the decoder alone.

    In such a phase the encoder is frozen, so the meaning of latents no longer changes.
    """

    model: VaeTask

    def __init__(self, config: Config, model: VaeTask):
        super().__init__(config, model)
        self._decoder_only = False
        self._parts: list[dict[str, Tensor]] = []

    @property
    def blocks(self) -> Sequence[nn.Module]:
        vae = self.model.vae
        return [*vae.encoder.layers, *vae.decoder.layers]

    def begin_phase(self, phase: int) -> list[str]:
        self._decoder_only = bool(self.config.phases) and self.config.phases[phase].decoder_only
        if not self._decoder_only:
            return []
        return [f"vae.encoder.{name}" for name, _ in self.model.vae.encoder.named_parameters()]

    # ---- a step

    def prepare(self, batch: Batch, phase: int, step: int) -> Clips:
        keys = [(self.config.seed, phase, batch.epoch, position) for position in batch.positions]
        assert batch.video is not None  # as this stage has no cache
        video = self._pixels(batch.video)
        noise = torch.stack([draws.normal(self._codes_shape(video), "codes", *key) for key in keys])
        judged = step >= self.config.vae_loss.discriminator_start
        return Clips(video, noise.to(video.device), judged, self._decoder_only)

    def _codes_shape(self, video: Tensor) -> tuple[int, int, int, int]:
        """The shape (C, t, h, w) of the codes of one of the videos (B, 3, T, H, W)."""
        return self.config.vae.channels, *grid(self.config.vae, *video.shape[2:])

    def _pixels(self, video: Tensor) -> Tensor:
        return video.to(next(self.model.parameters()).device).float() / 127.5 - 1

    def losses(self, prepared: Clips) -> Tensor:
        total, parts, _ = self.model(prepared.video, prepared.noise, prepared.judged, prepared.decoder_only)
        parts["psnr"] = 10 * torch.log10(4 / parts.pop("l2").clamp(min=1e-10))
        self._parts.append(parts)
        losses: Tensor = total
        return losses

    def parts(self) -> dict[str, float]:
        """The parts of the loss, and PSNR in dB. PSNR is taken over all frames of a clip."""
        names = dict.fromkeys(name for parts in self._parts for name in parts)
        found = {n: float(torch.cat([p[n] for p in self._parts if n in p]).mean()) for n in names}
        self._parts.clear()
        return found

    def flops(self, prepared: Clips) -> float:
        """The FLOP of the autoencoder alone. A backward pass costs two forward passes."""
        return 3 * _forward_flops(self.config.vae, tuple(prepared.video.shape))

    # ---- between the steps

    def validation(self, loader: Loader) -> Iterator[Clips]:
        """Held-out clips, without noise and without discriminators, as in the exported codec."""
        for batch in loader.validation(max(1, VALIDATION_CLIPS // loader.batch_size)):
            assert batch.video is not None
            video = self._pixels(batch.video)
            noise = torch.zeros((len(video), *self._codes_shape(video)), device=video.device)
            yield Clips(video, noise, judged=False, decoder_only=False)

    @torch.no_grad()
    def show(self, loader: Loader, path: Path, autocast: Callable[[], torch.autocast], write: bool) -> None:
        """Write a grid of held-out clips, each beside its reconstruction."""
        for clips in self.validation(loader):
            video = clips.video[:SHOWN]
            with autocast():
                _, _, made = self.model(video, clips.noise[:SHOWN])
            if write:
                path.parent.mkdir(parents=True, exist_ok=True)
                pairs = [to_uint8(x.float().cpu()) for pair in zip(video, made, strict=True) for x in pair]
                write_grid(path, pairs, self.config.data.fps, columns=2)
            break  # a grid needs videos of one shape, which one batch has

    def is_exported(self, name: str) -> bool:
        return name.startswith("vae.")

    def export(self, weights: Mapping[str, Tensor], dataset: str, folder: Path, step: int) -> None:
        """Write the autoencoder, and the mean and deviation of its codes over clips of the first phase."""
        state = {n.removeprefix("vae."): t for n, t in weights.items() if self.is_exported(n)}
        vae = SliceVAE(self.config.vae)
        vae.load_state_dict(state)
        device = next(self.model.parameters()).device
        mean, std = statistics(vae.to(device), self._some_clips(dataset))
        state |= {"latent_mean": mean.cpu(), "latent_std": std.cpu()}
        runs.write_weights(
            self.config, folder, step, lambda aside: save_network(self.config.vae, state, aside)
        )

    def _some_clips(self, dataset: str) -> Iterator[Tensor]:
        """Videos (B, 3, T, H, W) for the statistics, at most an epoch."""
        alone = World(0, 1, torch.device("cpu"))
        with self.loader(dataset, self.config.phase(0)[1], 0, alone) as loader:
            batches = min(len(loader.plan(0)), -(-STATISTICS_CLIPS // loader.batch_size))
            for batch in itertools.islice(loader.batches(), batches):
                assert batch.video is not None
                yield self._pixels(batch.video)


@torch.no_grad()
def statistics(vae: SliceVAE, videos: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (C,) and standard deviation (C,) of each channel of the codes.

    A code is the mean that `encode` returns, without noise. videos: (B, 3, T, H, W). An image and a video
    count the same. Sums are in float64.
    """
    firsts, seconds = [], []
    for batch in videos:
        for video in batch:
            codes = vae.encode(video[None])[0][0].flatten(1).double()
            firsts.append(codes.mean(1))
            seconds.append(codes.square().mean(1))
    mean, square = torch.stack(firsts).mean(0), torch.stack(seconds).mean(0)
    # The floor keeps an unused channel from being scaled up.
    return mean.float(), (square - mean.square()).clamp(min=1e-6).sqrt().float()


@functools.lru_cache
def _forward_flops(settings: SliceVae, shape: tuple[int, ...]) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        vae, video = SliceVAE(settings), torch.empty(shape)
        vae.decode(vae.encode(video)[0], shape[2])
    return float(counter.get_total_flops())
