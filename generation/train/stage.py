"""The interface of a stage to the trainer: preparing batches, computing the loss, exporting the weights.

A stage holds everything that one process has loaded for training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from generation.cache import TensorCache
from generation.config import Config, Data
from generation.data.loader import Batch, Keys, Loader
from generation.data.plan import Selection, open_selection, plan_epoch
from generation.device import uses_bf16
from generation.models.cogvideox import compile_blocks
from generation.train import parallel
from generation.train.parallel import World

P = TypeVar("P")  # a micro-batch that is ready for the loss, on the device


class Stage(ABC, Generic[P]):
    """The base of all stages, with the code that they share: data, and placing the network on the device."""

    def __init__(self, config: Config, model: nn.Module):
        self.config, self.model = config, model
        self._selections: dict[tuple[str, str], Selection] = {}

    # ---- before the start

    @property
    def latents_hash(self) -> str:
        """A hash of the weights of a trained autoencoder that this stage uses. Empty without such weights."""
        return ""

    def check_latents_hash(self, before: str, folder: Path) -> None:
        """Raises `ValueError` when the training in FOLDER began with another hash, `before`."""

    def notes(self) -> list[str]:
        """Warnings about the configuration, for the user."""
        return []

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The parts of the network that are compiled and sharded one by one."""

    @property
    def compiles(self) -> bool:
        return False

    def set_up(self, world: World) -> None:
        """Move the network to the device, compile it and shard it."""
        bf16 = uses_bf16(self.config.train.precision, world.device)
        self.model.to(world.device)
        if self.compiles:
            compile_blocks(self.blocks)
        parallel.shard(self.model, self.blocks, world, bf16)
        self.model.train()

    def check_data(self, dataset: str, world: World) -> None:
        """Raises `ValueError` when a phase has no batches. The check comes before the first phase starts."""
        for k in range(max(1, len(self.config.phases))):
            plan_epoch(
                self.selection(dataset, self.config.phase(k)[1]),
                self.config.train.batch_size,
                seed=self.config.seed,
                epoch=0,
                phase=k,
                rank=world.rank,
                world=world.size,
            )

    def selection(self, dataset: str, data: Data) -> Selection:
        """The clips that `data` can use. Each selection is made once and kept.

        Raises `ValueError` when there are no such clips.
        """
        key = (dataset, data.model_dump_json())
        if key not in self._selections:
            self._selections[key] = open_selection(dataset, data)
        return self._selections[key]

    def loader(self, dataset: str, data: Data, phase: int, world: World) -> Loader:
        """The batches of a phase. Raises `ValueError` when the dataset has no clip that can be used."""
        cache, keys = self.caching()
        return Loader(
            self.selection(dataset, data),
            self.config.train.batch_size,
            seed=self.config.seed,
            phase=phase,
            rank=world.rank,
            world=world.size,
            cache=cache,
            keys=keys,
        )

    def caching(self) -> tuple[TensorCache | None, Keys | None]:
        """The cache of latents and the keys of a sample in this cache; (None, None) without a cache."""
        return None, None

    def begin_phase(self, phase: int) -> list[str]:
        """Begin a phase. Returns the names of the parameters that are frozen from this phase on."""
        return []

    # ---- a step

    @abstractmethod
    def prepare(self, batch: Batch, phase: int, step: int) -> P:
        """Make a micro-batch ready for the loss, with its random draws. step: counted from 0."""

    @abstractmethod
    def losses(self, prepared: P) -> Tensor:
        """The loss of each sample, (B,)."""

    def times(self, prepared: P) -> list[float]:
        """The time of each sample, in [0, 1), by which losses are reported. Empty: there are no times."""
        return []

    @abstractmethod
    def flops(self, prepared: P) -> float:
        """The FLOP of a forward and a backward pass."""

    def parts(self) -> dict[str, float]:
        """The named parts of the loss, as means since the last call, for the log."""
        return {}

    # ---- between the steps

    @abstractmethod
    def validation(self, loader: Loader) -> Iterator[P]:
        """Held-out clips with fixed draws, so that each validation uses the same inputs."""

    @abstractmethod
    def show(self, loader: Loader, path: Path, autocast: Callable[[], torch.autocast], write: bool) -> None:
        """Make a video that shows what the network has learnt. It is written to `path` if `write` is true."""

    def is_exported(self, name: str) -> bool:
        """Whether a parameter belongs to the exported network. Such parameters are averaged."""
        return True

    @abstractmethod
    def export(self, weights: Mapping[str, Tensor], dataset: str, folder: Path, step: int) -> None:
        """Write FOLDER/weights, which sampling uses. weights: whole tensors by name."""
