"""A clip is what was written, or it is not used: pages by their checksums, clips by the hash in their row.

A checksum of a page is written anew when a shard is rewritten. The hash of a clip is made once, when the clip
is encoded, and goes with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from curation.store.dataset import Dataset, DatasetError
from curation.store.schema import VIDEO_HASH

_REMEDY = "remove that file, and reelmill build encodes its clips again"


class Damaged(DatasetError):
    """A shard, or a clip in it, is not what was written."""


def video_hash(mp4: bytes) -> str:
    return hashlib.blake2b(mp4, digest_size=16).hexdigest()


def sound_groups(dataset: Dataset, part: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a shard, one in memory at a time. Raises `Damaged`."""
    file = open_shard(dataset, part)
    try:
        for group in range(file.num_row_groups):
            yield sound_group(file, part, group, columns)
    finally:
        file.close(force=True)


def open_shard(dataset: Dataset, part: str) -> pq.ParquetFile:
    """Raises `Damaged`."""
    try:
        return dataset.open_part("shards", part)
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) is not None:
            raise  # of the disk or the store, not of what is in the file
        said = " ".join(str(error).split())
        raise Damaged(f"shards/{part}.parquet cannot be read: {said}; {_REMEDY}") from error


def sound_group(
    file: pq.ParquetFile, part: str, group: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """One row group; with `video` also the hashes, where there are any. Raises `Damaged`."""
    known = file.schema_arrow.names
    missing = [c for c in columns or ("clip_id", "video") if c not in known]
    if missing:
        raise Damaged(f"shards/{part}.parquet has no column {', '.join(missing)}; {_REMEDY}")
    if columns and "video" in columns and VIDEO_HASH in known:
        columns = [*columns, VIDEO_HASH]
    try:
        table = file.read_row_group(group, columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        name = f"row group {group} of shards/{part}.parquet"
        raise Damaged(f"{name} cannot be read: {said}; if it is damaged, {_REMEDY}") from error
    for clip_id in damaged(table):
        raise Damaged(f"shards/{part}.parquet: clip {clip_id} {NOT_AS_WRITTEN}; {_REMEDY}")
    return table


NOT_AS_WRITTEN = "is damaged: its bytes are not those that were written"


def damaged(table: pa.Table) -> list[str]:
    """The clips of these rows whose bytes are others than their hash says. Rows that were written by version
    0.1.0 have no hash."""
    if not {"video", VIDEO_HASH} <= set(table.column_names):
        return []
    hashes = table[VIDEO_HASH].to_pylist()
    found = []
    for i, wanted in enumerate(hashes):  # one at a time: a row group of them is large
        mp4 = (table["video"][i].as_py() or {}).get("bytes") or b""
        if wanted is not None and video_hash(mp4) != wanted:
            found.append(str(table["clip_id"][i].as_py()))
    return found
