"""Shards: a view of the accepted clips that training reads, self-contained.

A plan says which clips make which shard; it is written down first, so that a build that was killed makes
the same shards as one that was not. `align` brings existing shards in line with verdicts and scores without
encoding anything.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curation.captions.chosen import Captions
from curation.config.schema import Config
from curation.decode.cut import output_size
from curation.store.dataset import SCORE_COLUMNS, SHARDS, Dataset

PLAN = "shards/_plan.json"
CAPTION_PARTS = ("caption", "captions")  # columns
_CUT_HASH = b"reelmill_cut_hash"  # in a shard's metadata: what its clips were encoded with
_AT_ONCE = 16  # so many shards at least, unless they would be smaller than this:
_SMALL_SHARD_BYTES = 16e6
_BITS_PER_PIXEL = 0.12  # a guess at x264's output, to fill shards evenly; sizes come out as they do


def shard_schema() -> pa.Schema:
    """The contract's schema, with the metadata that makes Hugging Face `datasets` see a Video."""
    from datasets import Features, Video  # takes a second to import, and only who writes shards needs it

    features = Features.from_arrow_schema(SHARDS)
    features["video"] = Video()
    metadata = features.arrow_schema.metadata
    return SHARDS.with_metadata(metadata)


@dataclass(frozen=True)
class Shard:
    """One planned file: the clips of a few sources, in the order in which they are cut."""

    name: str
    clip_ids: list[str]


def estimated_bytes(clip: Mapping[str, Any], config: Config) -> float:
    """Of the encoded clip."""
    width, height = output_size(clip["width"], clip["height"], config.cut.max_side)
    fps = config.cut.fps or clip["fps"] or 0.0
    frames = max(1.0, (clip["end_s"] - clip["start_s"]) * fps)
    return frames * width * height * _BITS_PER_PIXEL / 8


def plan_shards(clips: Sequence[Mapping[str, Any]], config: Config, first_index: int) -> list[Shard]:
    """Sources fill shards in the order of their hash; a source is split only where it overflows a shard.

    A shard is one worker's work, so few clips make more and smaller ones than `shards.target_mb`; how many
    does not depend on how many workers there are.
    """
    in_order = sorted(clips, key=lambda c: (c["source_id"], c["start_s"]))
    sizes = [estimated_bytes(clip, config) for clip in in_order]
    limit = min(config.shards.target_mb * 1e6, max(_SMALL_SHARD_BYTES, sum(sizes) / _AT_ONCE))
    shards: list[Shard] = []
    ids: list[str] = []
    filled = 0.0
    for clip, size in zip(in_order, sizes, strict=True):
        if ids and filled + size > limit:
            shards.append(Shard(f"shard-{first_index + len(shards):05d}", ids))
            ids, filled = [], 0.0
        ids.append(clip["clip_id"])
        filled += size
    if ids:
        shards.append(Shard(f"shard-{first_index + len(shards):05d}", ids))
    return shards


def settle_plan(dataset: Dataset, wanted: Sequence[Mapping[str, Any]], config: Config) -> list[Shard]:
    """The shards still to make so that every one of `wanted` (accepted, in no shard yet) is in one.

    An earlier plan that was cut short is kept to, as far as its clips are still wanted.
    """
    by_id = {c["clip_id"]: c for c in wanted}
    kept: list[Shard] = []
    done = set(dataset.parts("shards"))
    if dataset.exists(PLAN):
        plan = json.loads(dataset.read(PLAN))
        if plan["cut_hash"] == config.cut_hash():
            kept = [
                Shard(s["name"], s["clip_ids"])
                for s in plan["shards"]
                if s["name"] not in done and all(c in by_id for c in s["clip_ids"])
            ]
    for shard in kept:
        for c in shard.clip_ids:
            del by_id[c]
    used = [int(n.rsplit("-", 1)[1]) for n in [*done, *(s.name for s in kept)]]
    planned = kept + plan_shards(list(by_id.values()), config, max(used, default=-1) + 1)
    value = {
        "cut_hash": config.cut_hash(),
        "shards": [{"name": s.name, "clip_ids": s.clip_ids} for s in planned],
    }
    if planned:
        dataset.write(PLAN, json.dumps(value).encode())
    else:
        dataset.remove(PLAN)
    return planned


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
    }


def write_shard(dataset: Dataset, name: str, rows: Sequence[dict[str, Any]], config: Config) -> int:
    """Write one shard, its rows shuffled by a seed of its own. Returns its bytes of video."""
    schema = shard_schema()
    schema = schema.with_metadata({**(schema.metadata or {}), _CUT_HASH: config.cut_hash().encode()})
    in_order = sorted(rows, key=lambda r: cast(str, r["clip_id"]))
    digest = hashlib.blake2b(f"{config.shards.seed} {name}".encode(), digest_size=8).digest()
    random.Random(int.from_bytes(digest, "big")).shuffle(in_order)
    with dataset.writing(f"shards/{name}.parquet") as file, _writer(file, schema) as writer:
        for group in _row_groups(in_order, config.shards.row_group_mb * 1e6):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return sum(len(r["video"]["bytes"]) for r in in_order)


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
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


def sharded_clips(dataset: Dataset) -> dict[str, str]:
    """clip_id -> the shard that holds it."""
    return {
        clip_id: part
        for part, table in dataset.tables("shards", ["clip_id"])
        for clip_id in table["clip_id"].to_pylist()
    }


def captions_in(dataset: Dataset) -> dict[str, int]:
    """clip_id -> what tells its caption from another one, in this process."""
    columns = ["clip_id", "caption"]
    return {row["clip_id"]: hash(row["caption"]) for row in dataset.rows("shards", columns)}


def align(dataset: Dataset, accepted: Mapping[str, Mapping[str, Any]], captions: Captions) -> int:
    """Bring the shards in line with the accepted clips (clip_id -> its scores and `extra`) and their
    captions: rows of others go, and what has changed is taken over. Nothing is encoded; shards that are right
    are not touched. Returns how many rows went or changed."""
    touched = 0
    columns = ["clip_id", "extra", *SCORE_COLUMNS, *CAPTION_PARTS]
    for part, scalars in dataset.tables("shards", columns):
        rows = scalars.to_pylist()
        kept = [r for r in rows if r["clip_id"] in accepted]
        said = captions.in_shards([r["clip_id"] for r in kept])
        wanted = {i: {**accepted[i], **parts} for i, parts in said.items()}
        other = sum(not _same(r, wanted[r["clip_id"]]) for r in kept)
        if len(kept) == len(rows) and not other:
            continue
        touched += len(rows) - len(kept) + other
        if not kept:
            dataset.remove(f"shards/{part}.parquet")
            continue
        source = dataset.open_part("shards", part)
        with dataset.writing(f"shards/{part}.parquet") as file, _writer(file, source.schema_arrow) as writer:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group)
                ids = table["clip_id"].to_pylist()
                table = table.filter(pa.array([c in wanted for c in ids], pa.bool_()))
                if table.num_rows:
                    writer.write_table(_brought_up(table, wanted))
        source.close()
    return touched


def _same(row: Mapping[str, Any], clip: Mapping[str, Any]) -> bool:
    scores = all(row[c] == clip[c] or (row[c] != row[c] and clip[c] != clip[c]) for c in SCORE_COLUMNS)
    return scores and all(row[c] == clip[c] for c in ("extra", *CAPTION_PARTS))


def _brought_up(table: pa.Table, clips: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    ids = table["clip_id"].to_pylist()
    for name in (*SCORE_COLUMNS, "extra", *CAPTION_PARTS):
        field = table.schema.field(name)
        values = pa.array([clips[i][name] for i in ids], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, values)
    return table


def drop_other_encodings(dataset: Dataset, config: Config) -> int:
    """Remove shards whose clips were encoded with other settings; the build cuts them again. Returns how
    many went."""
    dropped = 0
    for part in dataset.parts("shards"):
        source = dataset.open_part("shards", part)
        made_with = (source.schema_arrow.metadata or {}).get(_CUT_HASH)
        source.close()
        if made_with is not None and made_with.decode() != config.cut_hash():
            dataset.remove(f"shards/{part}.parquet")
            dropped += 1
    return dropped
