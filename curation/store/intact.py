"""A clip is as it was written, or it is not used: pages by their checksums, clips by the hash in their row.

The checksum of a page is computed again when a shard is rewritten. The hash of a clip is computed once, when
the clip is encoded, and stays with the clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from curation.store.dataset import Dataset, DatasetError, Part
from curation.store.schema import VIDEO_HASH

_REMEDY = "remove that file, and reelmill build encodes its clips again"
NOT_AS_WRITTEN = "is damaged: its bytes are not those that were written"


class Damaged(DatasetError):
    """A shard, or a clip in it, is not what was written."""


def video_hash(mp4: bytes) -> str:
    """blake2b of 16 bytes, in hexadecimal digits."""
    return hashlib.blake2b(mp4, digest_size=16).hexdigest()


def intact_groups(dataset: Dataset, part: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a shard, one in memory at a time. Raises `Damaged`."""
    file = open_shard(dataset, part)
    try:
        for group in range(file.num_row_groups):
            yield intact_group(file, part, group, columns)
    finally:
        file.close()


def open_shard(dataset: Dataset, part: str) -> Part:
    """A shard, open for reading. Raises `Damaged`."""
    try:
        return dataset.open_part("shards", part)
    except DatasetError as error:
        raise Damaged(f"{error}; or {_REMEDY}") from error


def intact_group(file: Part, part: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group; with `video` also the hashes, if the shard has hashes. Raises `Damaged`."""
    if columns and "video" in columns and VIDEO_HASH in file.schema_arrow.names:
        columns = [*columns, VIDEO_HASH]
    try:
        table = file.read_row_group(group, columns)
    except DatasetError as error:
        raise Damaged(f"row group {group} of {error}; or {_REMEDY}") from error
    for clip_id in damaged(table):
        raise Damaged(f"shards/{part}.parquet: clip {clip_id} {NOT_AS_WRITTEN}; {_REMEDY}")
    return table


def damaged(table: pa.Table) -> list[str]:
    """The clips of these rows whose bytes do not match their hash. Rows of version 0.1.0 have no hash."""
    if not {"video", VIDEO_HASH} <= set(table.column_names):
        return []
    hashes = table[VIDEO_HASH].to_pylist()
    found = []
    for i, wanted in enumerate(hashes):  # one at a time, because a row group of clips is large
        mp4 = (table["video"][i].as_py() or {}).get("bytes") or b""
        if wanted is not None and video_hash(mp4) != wanted:
            found.append(str(table["clip_id"][i].as_py()))
    return found
