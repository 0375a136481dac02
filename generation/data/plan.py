"""Which rows are used for training, in which bucket and order. Only columns are read, and no video.

A plan is a pure function of (seed, phase, epoch, dataset, world size). A plan is not stored, and a position
in the plan is one number. Every epoch has another order of row groups, and another order of rows within a row
group. The sequence of rows is cut into one part per rank. A rank reads its row groups once, in order, and
keeps few rows in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from generation.config import Bucket, Data
from generation.data.shards import Index, UnknownColumn, read_index
from generation.data.transform import MOTION_COLUMN
from generation.draws import generator

_ASPECT_SLACK = 0.08  # of log(width / height): the difference that rounding sides to 16 can make
_MIN_ROWS_TO_HOLD_OUT = 4


@dataclass(frozen=True)
class Selection:
    """The rows of an index that a configuration of data can use."""

    index: Index
    data: Data
    bucket: np.ndarray  # (rows,) number of the bucket; -1: the row is not used
    held_out: np.ndarray  # (rows,) bool: for validation
    reasons: dict[str, int]  # reason -> number of rows that are not used

    def rows(self, validation: bool = False) -> np.ndarray:
        """The usable rows of the index for training or validation, in ascending order."""
        return np.flatnonzero((self.bucket >= 0) & (self.held_out == validation))

    @cached_property
    def hash(self) -> str:
        """A hash of the dataset and the selected rows. Other inputs of a plan are seed, epoch, world size."""
        digest = hashlib.blake2b(self.index.dataset_hash.encode(), digest_size=16)
        digest.update(repr([b.model_dump() for b in self.data.buckets]).encode())
        digest.update(self.bucket.astype("<i4").tobytes() + self.held_out.tobytes())
        return digest.hexdigest()

    def table(self) -> list[str]:
        """Lines for the user: the number of clips of each bucket, and why other clips are left out."""
        lines = ["frames  height x width   clips  held out"]
        for k, b in enumerate(self.data.buckets):
            used = self.bucket == k
            held = int((used & self.held_out).sum())
            size = f"{b.height} x {b.width}"
            lines.append(f"{b.frames:6d}  {size:>14s}  {int(used.sum()) - held:6d}  {held:8d}")
        if self.reasons:
            lines.append(f"left out: {sum(self.reasons.values())} of {len(self.index)} clips")
            lines += [f"{count:8d}  {why}" for why, count in sorted(self.reasons.items())]
        return lines


def open_selection(dataset: str, data: Data) -> Selection:
    """Read the columns of a dataset and select rows. Raises `ValueError`: see `read_index` and `select`."""
    keys = {MOTION_COLUMN: "data.motion_tag"} if data.motion_tag else {}
    keys |= dict.fromkeys(data.where, "data.where")
    try:
        index = read_index(dataset, list(keys))
    except UnknownColumn as error:
        text, column = error.args
        raise ValueError(f"{keys[column]}: {text}") from error
    return select(index, data)


def select(index: Index, data: Data) -> Selection:
    """Give every row of `index` a bucket, or a reason for leaving the row out. Hold out rows for validation.

    Raises `ValueError`, with the table of buckets and reasons, if no row is left for training.
    """
    why = np.full(len(index), "", dtype=object)
    frames, fps, width, height = (index.numbers[c] for c in ("frames", "fps", "width", "height"))
    for name, bounds in data.where.items():
        values = index.numbers[name]
        if len(index) and np.isnan(values).all():
            raise ValueError(
                f"data.where: {name} was not measured in {index.dataset}; "
                f"the measured columns are {', '.join(index.measured)}"
            )
        _mark(why, np.isnan(values), f"data.where: no {name}")
        if bounds.min is not None:
            _mark(why, values < bounds.min, f"data.where: {name} below {bounds.min:g}")
        if bounds.max is not None:
            _mark(why, values > bounds.max, f"data.where: {name} above {bounds.max:g}")
    _mark(why, ~((frames >= 1) & (width >= 1) & (height >= 1)), "no frames or no size")
    is_image = frames == 1
    _mark(why, ~is_image & ~((fps > 0) & np.isfinite(fps)), "no frame rate")

    fits = _fitting(frames, fps, is_image, data)
    shortest = min(data.buckets, key=lambda b: b.frames)
    needs = f"{shortest.frames} frames at {data.fps:g} a second need {(shortest.frames - 1) / data.fps:.3g} s"
    none = ~fits.any(0)
    _mark(why, none & is_image, "an image, and no bucket in data.buckets has 1 frame")
    _mark(why, none & ~is_image, f"too short: {needs}")
    if data.max_upscale is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.stack([np.maximum(b.width / width, b.height / height) for b in data.buckets])
        large = fits & (scale <= data.max_upscale)
        _mark(
            why,
            np.logical_not(large.any(0)),
            f"data.max_upscale: smaller than its bucket by more than {data.max_upscale:g}",
        )
        fits = large
    usable = why == ""
    bucket = np.where(usable, _nearest(fits, width, height, data.buckets), -1)
    selection = Selection(
        index=index,
        data=data,
        bucket=bucket,
        held_out=_held_out(index, usable, data.validation_fraction),
        reasons=dict(Counter(str(w) for w in why[~usable])),
    )
    if not len(selection.rows()):
        raise ValueError(
            f"{index.dataset} has no clip to train on: change data.buckets, data.fps or data.where\n"
            + "\n".join(selection.table())
        )
    return selection


def _mark(why: np.ndarray, rows: np.ndarray, reason: str) -> None:
    """Set the reason of rows that have no reason yet."""
    why[rows & (why == "")] = reason


def _fitting(frames: np.ndarray, fps: np.ndarray, is_image: np.ndarray, data: Data) -> np.ndarray:
    """Which buckets fit, (buckets, rows) bool. For a clip: the buckets with the most frames that it can fill.
    For an image: the buckets with one frame."""
    rate = np.where(is_image | ~(fps > 0), 1.0, fps)
    lengths = np.array([b.frames for b in data.buckets])
    # As in `transform.last_start`, half a source frame may be missing.
    spare = (frames - 0.5 + 1e-6) / rate - (lengths[:, None] - 1) / data.fps
    able = np.where(is_image, lengths[:, None] == 1, spare >= 0)
    most = np.where(able, lengths[:, None], 0).max(0)
    found: np.ndarray = able & (lengths[:, None] == most)
    return found


def _nearest(
    fits: np.ndarray, width: np.ndarray, height: np.ndarray, buckets: tuple[Bucket, ...]
) -> np.ndarray:
    """The best fitting bucket of each row, (rows,). -1: no bucket fits.

    The buckets of the nearest aspect are compared. The best bucket is the largest bucket that is not larger
    than the clip. If all buckets are larger than the clip, the smallest bucket is best.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        aspect = np.log(width / height)
    distance = np.stack([np.abs(np.log(b.width / b.height) - aspect) for b in buckets])
    distance = np.where(fits, distance, np.inf)
    close = fits & (distance <= distance.min(0) + _ASPECT_SLACK)
    best = np.full(len(width), -1)
    best_score = np.full(len(width), -np.inf)
    best_distance = np.full(len(width), np.inf)
    for k, b in enumerate(buckets):
        inside = (b.width <= width) & (b.height <= height)
        score = np.where(inside, 1.0, -1.0) * b.width * b.height
        better = (score > best_score) | ((score == best_score) & (distance[k] < best_distance))
        take = close[k] & better
        best[take], best_score[take], best_distance[take] = k, score[take], distance[k][take]
    return best


def _held_out(index: Index, usable: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are held out, (rows,) bool. The hash of the clip id decides, so a clip stays held out when
    the dataset grows."""
    chosen = np.zeros(len(index), dtype=bool)
    rows = np.flatnonzero(usable)
    if not fraction or len(rows) < _MIN_ROWS_TO_HOLD_OUT:
        return chosen
    ids = index.clip_ids.take(rows).to_pylist()
    hashes = np.array([hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids]).view(">u8")
    limit = min(int(fraction * 2**64), 2**64 - 1)
    chosen[rows[(hashes < np.uint64(limit)) | (hashes == hashes.min())]] = True
    return chosen


@dataclass(frozen=True)
class Plan:
    """The batches of one rank in one epoch, in order. Batch k has the same bucket on every rank."""

    selection: Selection
    epoch: int
    rank: int
    world: int
    bucket: np.ndarray  # (batches,) number of the bucket
    rows: np.ndarray  # (batches, batch size) rows of the index
    single_frame: np.ndarray  # (batches,) bool: one frame of each clip, as images
    group_rank: np.ndarray  # (row groups,) position of each row group in the order of reading

    def __len__(self) -> int:
        return len(self.bucket)

    def shape(self, batch: int) -> Bucket:
        """The shape of the samples in a batch."""
        bucket = self.selection.data.buckets[self.bucket[batch]]
        return bucket.model_copy(update={"frames": 1}) if self.single_frame[batch] else bucket

    def position(self, batch: int, i: int) -> int:
        """The number of sample `i` of a batch, which is unique in the epoch over all ranks."""
        size = self.rows.shape[1]
        return (batch * self.world + self.rank) * size + i


def plan_epoch(
    selection: Selection,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    phase: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Plan:
    """The plan of one rank for one epoch.

    A clip is used at most once. Only if the clips of a bucket do not fill one batch on every rank, this batch
    repeats clips. Clips that do not fill a last batch are left out of this epoch. Every epoch leaves out
    other clips. Raises `ValueError`, with the table, if there is no batch.
    """
    groups = len(selection.index.group_file)
    key = ("order", seed, phase, epoch)
    group_rank = torch.randperm(groups, generator=generator("groups", *key)).numpy()
    rows = selection.rows()
    within = torch.randperm(len(selection.index), generator=generator("rows", *key)).numpy()
    sequence = rows[np.lexsort((within[rows], group_rank[selection.index.group[rows]]))]
    plan = _plan(selection, sequence, batch_size, epoch, rank, world, group_rank, fill=False)
    draw = torch.rand(len(plan), generator=generator("single frame", *key)).numpy()
    frames = np.array([b.frames for b in selection.data.buckets])[plan.bucket]
    plan.single_frame[:] = (draw < selection.data.single_frame_fraction) & (frames > 1)
    return plan


def plan_validation(selection: Selection, batch_size: int, *, rank: int = 0, world: int = 1) -> Plan:
    """The plan of held-out clips, always with the same batches. The plan may be empty.

    The last batch of a bucket may repeat clips.
    """
    order = np.arange(len(selection.index.group_file))
    rows = selection.rows(validation=True)
    return _plan(selection, rows, batch_size, 0, rank, world, order, fill=True)


def _plan(
    selection: Selection,
    sequence: np.ndarray,
    batch_size: int,
    epoch: int,
    rank: int,
    world: int,
    group_rank: np.ndarray,
    *,
    fill: bool,
) -> Plan:
    assert batch_size >= 1
    assert 0 <= rank < world
    bounds = np.arange(world + 1) * len(sequence) // world
    of_bucket = selection.bucket[sequence]
    numbers, complete, mine = [np.empty(0, int)], [np.empty(0, int)], [np.empty((0, batch_size), int)]
    for k in range(len(selection.data.buckets)):
        shares = _shares(np.flatnonzero(of_bucket == k), bounds, batch_size, fill)
        count = len(shares[0])
        # A rank can build a batch when the last row of the batch is read. The batch is due when the slowest
        # rank can build it.
        due = np.max([s.max(1, initial=0) - b for s, b in zip(shares, bounds[:-1], strict=True)], axis=0)
        numbers.append(np.full(count, k))
        complete.append(due)
        mine.append(sequence[shares[rank]])
    bucket = np.concatenate(numbers)
    if not len(bucket) and not fill:
        raise ValueError(
            f"{selection.index.dataset} gives no batch to {world} processes: every bucket has fewer clips. "
            "Use fewer processes, or more data\n" + "\n".join(selection.table())
        )
    order = np.lexsort((bucket, np.concatenate(complete)))  # stable: batches of a bucket keep their order
    return Plan(
        selection=selection,
        epoch=epoch,
        rank=rank,
        world=world,
        bucket=bucket[order],
        rows=np.concatenate(mine)[order],
        single_frame=np.zeros(len(bucket), dtype=bool),
        group_rank=group_rank,
    )


def _shares(places: np.ndarray, bounds: np.ndarray, batch_size: int, fill: bool) -> list[np.ndarray]:
    """The batches of one bucket for each rank: places in the sequence, (batches, batch size).

    Every rank gets the same number of batches. places: the places of the bucket's rows in the sequence;
    bounds: (ranks + 1,), where the part of each rank starts and ends.
    """
    world = len(bounds) - 1
    shares = [places[a:b] for a, b in pairwise(np.searchsorted(places, bounds))]
    if len(places) >= world and min(map(len, shares)) == 0:
        # A rare bucket is cut separately. Two ranks may then read the same row group.
        shares = [places[a:b] for a, b in pairwise(np.arange(world + 1) * len(places) // world)]
    elif fill and 0 < len(places) < world:
        shares = [places] * world
    if fill:
        count = max(-(-len(s) // batch_size) for s in shares)
    elif min(map(len, shares)) == 0:
        count = 0
    else:
        count = max(1, min(len(s) // batch_size for s in shares))
    return [np.resize(s, (count, batch_size)).astype(int) for s in shares]
