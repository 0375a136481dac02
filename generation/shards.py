"""Reading a dataset's shards for training: rows in file order, row group by row group, and their frames."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from decord import VideoReader


def shard_files(dataset: str | Path) -> list[Path]:
    """The shards of a dataset, in order. Raises `ValueError` when there are none."""
    files = sorted(p for p in (Path(dataset) / "shards").glob("*.parquet") if not p.name.startswith("_"))
    if not files:
        raise ValueError(f"{dataset} has no shards: reelmill build makes them")
    return files


def clips(
    dataset: str | Path, columns: Sequence[str] | None = None, *, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of the shards, one row group in memory at a time; row groups in an order that `seed` decides.

    Rows are shuffled inside a shard when it is written, so whole row groups are read in order: one read
    per row group, not per row.
    """
    groups = []
    for path in shard_files(dataset):
        with pq.ParquetFile(path) as file:
            groups += [(path, k) for k in range(file.num_row_groups)]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    for path, k in groups:
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(k, columns=list(columns) if columns else None)
        yield from table.to_pylist()


def frames(row: dict[str, Any], indices: Sequence[int] | None = None) -> np.ndarray:
    """Frames of one row's clip, (T, H, W, 3) uint8 RGB: all, or those at `indices`.

    Raises `ValueError` when the clip is not what its row says.
    """
    reader = VideoReader(io.BytesIO(row["video"]["bytes"]), num_threads=1)
    if len(reader) != row["frames"]:
        raise ValueError(f"clip {row['clip_id']}: {len(reader)} frames, its row says {row['frames']}")
    found = reader.get_batch(list(range(len(reader)) if indices is None else indices)).asnumpy()
    if found.shape[1:3] != (row["height"], row["width"]):
        raise ValueError(
            f"clip {row['clip_id']}: {found.shape[2]}x{found.shape[1]}, "
            f"its row says {row['width']}x{row['height']}"
        )
    return np.asarray(found)
