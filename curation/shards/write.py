"""Shards: a view of the accepted clips that training reads, self-contained.

A plan says which clips make which shard; it is written down first, so that a build that was killed makes
the same shards as one that was not. `align` brings existing shards in line with verdicts and scores without
encoding anything.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.schema import SCORE_COLUMNS, SHARDS, VIDEO_HASH
from curation.store.sound import video_hash

CAPTION_PARTS = ("caption", "captions")  # columns
CUT_HASH = b"reelmill_cut_hash"  # in a shard's metadata: what its clips were encoded with


def shard_schema() -> pa.Schema:
    """The contract's schema, with the metadata that makes Hugging Face `datasets` see a Video."""
    from datasets import Features, Video  # takes a second to import, and only who writes shards needs it

    features = Features.from_arrow_schema(SHARDS)
    features["video"] = Video()
    metadata = features.arrow_schema.metadata
    return SHARDS.with_metadata(metadata)


def shard_row(
    clip: Mapping[str, Any],
    encoded: Mapping[str, Any],
    mp4: bytes,
    captions: Mapping[str, Any],
    extra: str | None,
    config_hash: str,
) -> dict[str, Any]:
    """One row: the clip's own columns, what the encoder really wrote, and the columns of its captions."""
    return {
        "clip_id": clip["clip_id"],
        "video": {"bytes": mp4, "path": None},
        **{k: captions[k] for k in CAPTION_PARTS},
        **{k: encoded[k] for k in ("width", "height", "fps", "frames", "duration_s")},
        **{c: clip[c] for c in SCORE_COLUMNS},
        **{k: clip[k] for k in ("source_id", "uri", "start_s", "end_s")},
        "extra": extra,
        "config_hash": config_hash,
        VIDEO_HASH: video_hash(mp4),
    }


def write_shard(dataset: Dataset, name: str, rows: Sequence[dict[str, Any]], config: Config) -> int:
    """Write one shard, its rows shuffled by a seed of its own. Returns its bytes of video."""
    schema = shard_schema()
    schema = schema.with_metadata({**(schema.metadata or {}), CUT_HASH: config.cut_hash().encode()})
    in_order = sorted(rows, key=lambda r: cast(str, r["clip_id"]))
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


def _row_groups(rows: Iterable[dict[str, Any]], limit_bytes: float) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["video"]["bytes"])
        if size >= limit_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group
