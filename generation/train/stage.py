"""What the trainer knows of a stage: what a batch becomes, what is minimised, and what is exported.

A stage holds everything that is loaded for training, on one process.
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

P = TypeVar("P")  # a micro-batch as the loss wants it, on the device


class Stage(ABC, Generic[P]):
    """The part that all stages share: the data, and the network's place."""

    def __init__(self, config: Config, model: nn.Module):
        self.config, self.model = config, model
        self._selections: dict[tuple[str, str], Selection] = {}

    # ---- before the start

    @property
    def latents_hash(self) -> str:
        """What stands for the weights of an own autoencoder below, which may change; or nothing."""
        return ""

    def check_latents_hash(self, before: str, folder: Path) -> None:
        """Raises `ValueError` where FOLDER's training began with other ones."""

    def notes(self) -> list[str]:
        """What the configuration lets one expect, and should not surprise."""
        return []

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The parts of the network that are compiled, and sharded, each by itself."""

    @property
    def compiles(self) -> bool:
        return False

    def set_up(self, world: World) -> None:
        """Put the network where it computes: on the device, sharded, compiled."""
        bf16 = uses_bf16(self.config.train.precision, world.device)
        self.model.to(world.device)
        if self.compiles:
            compile_blocks(self.blocks)
        parallel.shard(self.model, self.blocks, world, bf16)
        self.model.train()

    def check_data(self, dataset: str, world: World) -> None:
        """Every phase must have batches: raises `ValueError` now, and not when its turn has come."""
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
        """The clips that `data` can use. The dataset's columns are read once for it, however often it is
        asked for. Raises `ValueError` when there are none."""
        key = (dataset, data.model_dump_json())
        if key not in self._selections:
            self._selections[key] = open_selection(dataset, data)
        return self._selections[key]

    def loader(self, dataset: str, data: Data, phase: int, world: World) -> Loader:
        """Batches of a phase. Raises `ValueError` when nothing in the dataset can be used."""
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
        """Where samples are looked up before they are decoded, and under which keys; or nothing."""
        return None, None

    def begin_phase(self, phase: int) -> list[str]:
        """The names of the parameters that get no gradients from this phase on."""
        return []

    # ---- a step

    @abstractmethod
    def prepare(self, batch: Batch, phase: int, step: int) -> P:
        """What a micro-batch of step `step`, counted from 0, becomes; with its draws."""

    @abstractmethod
    def losses(self, prepared: P) -> Tensor:
        """The loss of each sample: (B,)."""

    def times(self, prepared: P) -> list[float]:
        """In [0, 1), of each sample, by which its loss is reported; or nothing."""
        return []

    @abstractmethod
    def flops(self, prepared: P) -> float:
        """That a forward and backward pass takes."""

    def parts(self) -> dict[str, float]:
        """What the losses since the last call were made of, on average, for the log."""
        return {}

    # ---- now and then

    @abstractmethod
    def validation(self, loader: Loader) -> Iterator[P]:
        """Held-out clips with fixed draws: the same whenever they are wanted."""

    @abstractmethod
    def show(self, loader: Loader, path: Path, autocast: Callable[[], torch.autocast], write: bool) -> None:
        """A video that lets one see what has been learnt, at `path` if this process is to write it."""

    def is_exported(self, name: str) -> bool:
        """Whether a parameter is a part of what was trained for, and so is averaged."""
        return True

    @abstractmethod
    def export(self, weights: Mapping[str, Tensor], dataset: str, folder: Path, step: int) -> None:
        """Write FOLDER/weights, which sampling uses, of whole weights by name."""
