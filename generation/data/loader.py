"""Batches for training, in the order of the plan. A training that resumes gets the same batches.

One thread reads row groups once, in order. `data.workers` processes decode the clips. Batches keep the order
of the plan, so the number of workers changes only the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generation.cache import TensorCache
from generation.config import Bucket, Data
from generation.data.ahead import ahead
from generation.data.decode import BadClip, Job, open_decoder
from generation.data.plan import Plan, Selection, open_selection, plan_epoch, plan_validation
from generation.data.shards import GroupReader, Unreadable
from generation.data.transform import Sample, plan_sample
from generation.draws import uniform

_REPLACEMENTS = 8  # number of clips that are tried in place of a bad clip before the loader fails
_NAMED = 5  # number of bad clips in a message
Keys = Callable[[Sample], Sequence[str]]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank. The state of the loader after this batch is (epoch, index + 1)."""

    epoch: int
    index: int  # in the epoch's plan
    bucket: Bucket  # the shape of the videos; frames is 1 for images
    samples: list[Sample]
    video: Tensor | None  # (M, 3, T, H, W) uint8, of the M samples whose latents are None; None if M is 0
    latents: list[tuple[Tensor, ...] | None]  # of each sample: from the cache, in the order of its keys
    keys: list[tuple[str, ...]]  # of each sample: the keys of its latents in the cache
    bad: list[str]  # messages about clips that could not be read, and the clips that replaced them

    @property
    def clip_ids(self) -> list[str]:
        return [s.clip_id for s in self.samples]

    @property
    def captions(self) -> list[str | None]:
        """The caption of each sample. None: unconditional."""
        return [s.caption for s in self.samples]

    @property
    def positions(self) -> list[int]:
        """The position of each sample in the epoch's plan, over all ranks. It is the key of random draws."""
        return [s.position for s in self.samples]


@dataclass
class _Pending:
    """A batch whose clips are being decoded."""

    plan: Plan
    index: int
    samples: list[Sample]
    latents: list[tuple[Tensor, ...] | None] = field(default_factory=list)
    futures: list[Future[np.ndarray] | None] = field(default_factory=list)

    def cancel(self) -> None:
        for future in self.futures:
            if future:
                future.cancel()


class Loader:
    """The batches of one rank. Callers must close the loader, or use it in a `with` statement.

    cache, keys: `keys` gives the cache keys of a sample. A sample is not decoded if the cache has all its
    keys. timeout_s: the time limit for decoding one clip; `data.workers=0` has no limit.
    """

    def __init__(
        self,
        selection: Selection,
        batch_size: int,
        *,
        seed: int,
        phase: int = 0,
        rank: int = 0,
        world: int = 1,
        cache: TensorCache | None = None,
        keys: Keys | None = None,
        timeout_s: float = 120.0,
    ):
        assert (cache is None) == (keys is None), "a cache needs keys"
        self.selection, self.batch_size = selection, batch_size
        self.seed, self.phase, self.rank, self.world = seed, phase, rank, world
        self.reader = GroupReader(selection.index)  # for batches; the thread that reads ahead uses it
        self._aside = GroupReader(selection.index)  # for validation and for replacements of bad clips
        self._sources: list[Generator[_Pending, None, None]] = []
        self._cache, self._keys = cache, keys
        self._decoder = open_decoder(selection.data.workers, timeout_s)
        self._held_out: dict[int, bytes | str] = {}  # clips for validation, kept because they are used often
        self._bad: dict[int, dict[int, str]] = {}  # epoch -> row -> the error

    @classmethod
    def open(cls, dataset: str | Path, data: Data, batch_size: int, **kwargs: Any) -> Loader:
        """A loader for a dataset's folder or address. Raises `ValueError`: see `plan.select`."""
        return cls(open_selection(str(dataset), data), batch_size, **kwargs)

    @property
    def dataset_hash(self) -> str:
        """The hash of the selected clips. Equal hashes mean that equal plans have equal clips."""
        return self.selection.hash

    def table(self) -> list[str]:
        """Lines for the user: the number of clips of each bucket, and why other clips are left out."""
        return self.selection.table()

    def plan(self, epoch: int) -> Plan:
        """The plan of this rank for an epoch. Raises `ValueError` if the plan has no batch."""
        return plan_epoch(
            self.selection,
            self.batch_size,
            seed=self.seed,
            phase=self.phase,
            epoch=epoch,
            rank=self.rank,
            world=self.world,
        )

    def batches(self, epoch: int = 0, index: int = 0) -> Iterator[Batch]:
        """Batches without end, starting with batch `index` of `epoch`.

        The iterator ends when the loader is closed. Raises `ValueError` when too many clips cannot be read,
        when the shards have changed, or when `index` is beyond the epoch. Raises `RuntimeError` when a worker
        cannot start.
        """
        source = self._endless(epoch, index)
        if workers := self.selection.data.workers:
            source = ahead(source, max(2, -(-2 * workers // self.batch_size)), _Pending.cancel)
        self._sources.append(source)
        try:
            for pending in source:
                yield self._finish(pending)
        finally:
            source.close()
            self._sources.remove(source)

    def validation(self, batches: int = 8) -> Iterator[Batch]:
        """The first `batches` batches of held-out clips.

        The batches are always the same, with middle frames and middle windows. Every rank has the same number
        of batches. The bytes of the clips stay in memory after the first validation.
        """
        plan = plan_validation(self.selection, self.batch_size, rank=self.rank, world=self.world)
        for pending in self._pending(plan, 0, min(batches, len(plan)), self._held_out, self._aside):
            yield self._finish(pending)

    def close(self) -> None:
        """Stop reading ahead, and end the decoding processes."""
        for source in list(self._sources):
            source.close()
        self._decoder.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- reading ahead

    def _endless(self, epoch: int, index: int) -> Generator[_Pending, None, None]:
        plan = self.plan(epoch)
        if index > len(plan):
            raise ValueError(
                f"epoch {epoch} has {len(plan)} batches, so training cannot resume at batch {index}"
            )
        while True:
            yield from self._pending(plan, index, len(plan), {}, self.reader)
            epoch, index = epoch + 1, 0
            plan = self.plan(epoch)

    def _pending(
        self, plan: Plan, first: int, end: int, held: dict[int, bytes | str], reader: GroupReader
    ) -> Iterator[_Pending]:
        """Read the clips of batches `first` to `end` of a plan, and give them to the decoder.

        held: the bytes of clips by row, or the error of a clip. Clips are removed after their batch, except
        clips for validation.
        """
        index, size = self.selection.index, self.batch_size
        flat = plan.rows[first:end].ravel()
        step = plan.group_rank[index.group[flat]]
        by_group = np.argsort(step, kind="stable")  # places in `flat`, in the order of reading row groups
        starts = np.flatnonzero(np.diff(step[by_group], prepend=-1))
        runs = iter(np.split(by_group, starts[1:]) if len(flat) else [])
        last_read = -1
        keep = held is self._held_out
        for k in range(first, end):
            due = int(step[(k - first) * size : (k - first + 1) * size].max())
            while last_read < due:
                places = next(runs)
                last_read = int(step[places[0]])
                wanted = {int(flat[p]) for p in places if not self._is_cached(plan, first, int(p))}
                wanted -= held.keys()
                if wanted:
                    held |= self._read(reader, int(index.group[flat[places[0]]]), wanted)
            pending = _Pending(plan, k, [self._sample(plan, k, i) for i in range(size)])
            for sample in pending.samples:
                latents = self._from_cache(sample)
                pending.latents.append(latents)
                pending.futures.append(self._submit(sample, held, reader) if latents is None else None)
            if not keep:
                for sample in pending.samples:
                    held.pop(sample.row, None)
            yield pending

    def _sample(self, plan: Plan, batch: int, i: int, row: int | None = None) -> Sample:
        """Sample `i` of a batch. row: another row in place of the planned row."""
        position = plan.position(batch, i)
        row = int(plan.rows[batch, i]) if row is None else row

        def draw(name: str) -> float:
            return uniform(name, self.seed, self.phase, plan.epoch, position)

        fixed = bool(self.selection.held_out[row])
        data, bucket = self.selection.data, self.selection.data.buckets[plan.bucket[batch]]
        single = bool(plan.single_frame[batch])
        return plan_sample(
            self.selection.index, row, data, bucket, single, position, (lambda _: 0.5) if fixed else draw
        )

    def _is_cached(self, plan: Plan, first: int, place: int) -> bool:
        if self._cache is None or self._keys is None:
            return False
        sample = self._sample(plan, first + place // self.batch_size, place % self.batch_size)
        return all(self._cache.has(key) for key in self._keys(sample))

    def _from_cache(self, sample: Sample) -> tuple[Tensor, ...] | None:
        if self._cache is None or self._keys is None:
            return None
        found = []
        for key in self._keys(sample):
            tensor = self._cache.get(key)
            if tensor is None:
                return None
            found.append(tensor)
        return tuple(found)

    def _read(self, reader: GroupReader, group: int, rows: set[int]) -> dict[int, bytes | str]:
        try:
            found = reader.read(group, rows)
        except Unreadable as error:
            return dict.fromkeys(rows, str(error))
        return {row: str(mp4) if isinstance(mp4, Unreadable) else mp4 for row, mp4 in found.items()}

    def _submit(
        self, sample: Sample, held: dict[int, bytes | str], reader: GroupReader
    ) -> Future[np.ndarray]:
        row = sample.row
        if row not in held:  # the tensor in the cache is damaged, or this row replaces a bad clip
            held |= self._read(reader, int(self.selection.index.group[row]), {row})
        mp4 = held[row]
        if isinstance(mp4, str):
            future: Future[np.ndarray] = Future()
            future.set_exception(BadClip(mp4))
            return future
        number = {c: int(self.selection.index.numbers[c][row]) for c in ("frames", "width", "height")}
        return self._decoder.submit(
            Job({"clip_id": sample.clip_id, "video": {"bytes": mp4}, **number}, sample)
        )

    # ---- finishing

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the clips of a batch, and replace bad clips."""
        samples, latents = list(pending.samples), list(pending.latents)
        pixels: list[np.ndarray | None] = []
        wrong: dict[int, str] = {}
        for i, future in enumerate(pending.futures):
            try:
                pixels.append(future.result() if future else None)
            except BadClip as error:
                pixels.append(None)
                wrong[i] = str(error)
        good = [i for i in range(len(samples)) if i not in wrong]
        bad = []
        for i, reason in wrong.items():
            lost, position = samples[i], samples[i].position
            key = ("instead", self.seed, self.phase, pending.plan.epoch, position)
            if good:  # use another clip of the batch, so that nothing must be read
                j = good[int(uniform(*key) * len(good))]
                samples[i], pixels[i] = replace(samples[j], position=position), pixels[j]
                latents[i] = latents[j]
            else:
                samples[i], pixels[i] = self._instead(pending, i, key)
            path = self.selection.index.file(lost.row)
            text = f"clip {lost.clip_id} of {path}: {reason}"
            bad.append(f"{text}; {samples[i].clip_id} took its place")
            if not self.selection.held_out[lost.row]:  # held-out clips would count again at every validation
                self._count(pending.plan, lost.row, text)
        decoded = [p for p in pixels if p is not None]
        return Batch(
            epoch=pending.plan.epoch,
            index=pending.index,
            bucket=pending.plan.shape(pending.index),
            samples=samples,
            video=torch.from_numpy(np.stack(decoded)) if decoded else None,
            latents=latents,
            keys=[tuple(self._keys(s)) if self._keys else () for s in samples],
            bad=bad,
        )

    def _instead(self, pending: _Pending, i: int, key: tuple[int | str, ...]) -> tuple[Sample, np.ndarray]:
        """Another clip of the bucket, for a batch in which all clips are bad."""
        plan = pending.plan
        rows = self.selection.rows(validation=bool(self.selection.held_out[pending.samples[i].row]))
        rows = rows[self.selection.bucket[rows] == plan.bucket[pending.index]]
        for attempt in range(_REPLACEMENTS):
            row = int(rows[int(uniform(*key, attempt) * len(rows))])
            sample = self._sample(plan, pending.index, i, row)
            try:
                return sample, self._submit(sample, {}, self._aside).result()
            except BadClip as error:
                last = f"clip {sample.clip_id} of {self.selection.index.file(row)}: {error}"
        raise ValueError(
            f"{self.selection.index.dataset}: {_REPLACEMENTS + 1} clips of a bucket were tried, and none can "
            f"be read. The last error: {last}. reelmill verify finds damaged clips"
        )

    def _count(self, plan: Plan, row: int, text: str) -> None:
        """Count a bad clip. Raises `ValueError` if too many clips of an epoch are bad."""
        bad = self._bad.setdefault(plan.epoch, {})
        bad[row] = text
        limit = self.selection.data.max_bad_fraction
        if len(bad) > limit * plan.rows.size:
            more = f"\n... and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
            raise ValueError(
                f"{len(bad)} of {plan.rows.size} clips of epoch {plan.epoch} cannot be read, more than "
                f"data.max_bad_fraction={limit:g} allows. reelmill verify {self.selection.index.dataset} "
                "finds damaged clips:\n" + "\n".join(list(bad.values())[:_NAMED]) + more
            )
