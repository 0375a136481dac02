"""Shards: a view of the accepted clips that training reads, self-contained.

A plan says which clips make which shard; it is written down first, so that a build that was killed makes
the same shards as one that was not. `align` brings existing shards in line with verdicts and scores without
encoding anything.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.config.schema import Config
from curation.decode.answers import EncodedAnswer
from curation.store.dataset import Dataset
from curation.store.intact import video_hash
from curation.store.rows import ShardRow, with_scores
from curation.tasks.cut import CutClip

CAPTION_PARTS = ("caption", "captions")  # columns
CUT_HASH = b"reelmill_cut_hash"  # in a shard's metadata: what its clips were encoded with


def shard_schema(dataset: Dataset) -> pa.Schema:
    """The dataset's schema of shards, with the metadata that makes Hugging Face `datasets` see a Video."""
    from datasets import Features, Video  # takes a second to import, and only who writes shards needs it

    schema = dataset.schema("shards")
    features = Features.from_arrow_schema(schema)
    features["video"] = Video()
    metadata = features.arrow_schema.metadata
    return schema.with_metadata(metadata)


def shard_row(clip: CutClip, encoded: EncodedAnswer, config_hash: str) -> ShardRow:
    """One row: the clip's own columns, what the encoder really wrote, and the columns of its captions."""
    row: ShardRow = {
        "clip_id": clip["clip_id"],
        "video": {"bytes": encoded.mp4, "path": None},
        "caption": clip["caption"],
        "captions": clip["captions"],
        "width": encoded.width,
        "height": encoded.height,
        "fps": encoded.fps,
        "frames": encoded.frames,
        "duration_s": encoded.duration_s,
        "source_id": clip["source_id"],
        "uri": clip["uri"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "extra": clip["extra"],
        "config_hash": config_hash,
        "video_hash": video_hash(encoded.mp4),
    }
    return with_scores(row, clip["scores"])


def write_shard(dataset: Dataset, name: str, rows: Sequence[ShardRow], config: Config) -> int:
    """Write one shard, its rows shuffled by a seed of its own. Returns its bytes of video."""
    schema = shard_schema(dataset)
    schema = schema.with_metadata({**(schema.metadata or {}), CUT_HASH: config.cut_hash().encode()})
    in_order = sorted(rows, key=lambda r: r["clip_id"])
    digest = hashlib.blake2b(f"{config.shards.seed} {name}".encode(), digest_size=8).digest()
    random.Random(int.from_bytes(digest, "big")).shuffle(in_order)
    with dataset.writing(f"shards/{name}.parquet") as file, shard_writer(file, schema) as writer:
        for group in _row_groups(in_order, config.shards.row_group_mb * 1e6):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return sum(len(r["video"]["bytes"]) for r in in_order)


def shard_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # mp4 bytes do not compress; the checksum lets `verify` find a damaged page.
    compression = {"video.bytes": "none"}
    others = [n for n in _leaves(schema) if n != "video.bytes"]
    return pq.ParquetWriter(
        file,
        schema,
        compression={**dict.fromkeys(others, "zstd"), **compression},
        use_dictionary=[n for n in others if n != "clip_id"],
        write_page_checksum=True,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    parquet = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [parquet.column(i).path for i in range(len(parquet.names))]


def _row_groups(rows: Iterable[ShardRow], limit_bytes: float) -> Iterator[list[ShardRow]]:
    group: list[ShardRow] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["video"]["bytes"])
        if size >= limit_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group
