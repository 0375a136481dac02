"""Existing shards are brought in line with verdicts, scores and captions. Nothing is encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curation.captions.chosen import Captions
from curation.config.schema import Config
from curation.shards.write import CAPTION_PARTS, CUT_HASH, shard_schema, shard_writer
from curation.store.dataset import Dataset
from curation.store.intact import intact_groups, open_shard, video_hash
from curation.store.rows import AcceptedClip, ShardCaptions, ShardRow, scores_of
from curation.store.schema import SHARDS, VIDEO_HASH, absent, is_score


def align(dataset: Dataset, accepted: Mapping[str, AcceptedClip], captions: Captions) -> int:
    """Bring the shards in line with the accepted clips (by clip_id: their scores and `extra`) and their
    captions: rows of others go, and what has changed is taken over. Nothing is encoded; shards that are right
    are not touched. Returns how many rows went or changed. Raises `curation.store.intact.Damaged`: a damaged
    clip, written once more, would get checksums that are right."""
    touched = 0
    columns = ["clip_id", "extra", *dataset.score_columns, *CAPTION_PARTS]
    for part, scalars in dataset.tables("shards", columns):
        rows: list[ShardRow] = scalars.to_pylist()
        kept = [r for r in rows if r["clip_id"] in accepted]
        said = captions.in_shards([r["clip_id"] for r in kept])
        wanted = {i: _shared(accepted[i], parts) for i, parts in said.items()}
        other = sum(not _same(_shared(r, r), wanted[r["clip_id"]]) for r in kept)
        # Libraries refuse shards whose columns differ, so a column that came later comes into all of them.
        if len(kept) == len(rows) and not other and not absent(scalars):
            continue
        touched += len(rows) - len(kept) + other
        if not kept:
            dataset.remove(f"shards/{part}.parquet")
            continue
        source = open_shard(dataset, part)
        schema = _schema_again(dataset, source.schema_arrow)
        source.close()
        with dataset.writing(f"shards/{part}.parquet") as file, shard_writer(file, schema) as writer:
            for table in intact_groups(dataset, part):
                ids = table["clip_id"].to_pylist()
                kept_rows = table.filter(pa.array([c in wanted for c in ids], pa.bool_()))
                if kept_rows.num_rows:
                    current = _brought_up(kept_rows, wanted)
                    writer.write_table(current.replace_schema_metadata(schema.metadata))
    return touched


def _shared(clip: AcceptedClip | ShardRow, said: ShardCaptions) -> dict[str, Any]:
    """The columns of a shard that can change after it is written: scores, `extra` and captions."""
    captions = {"caption": said["caption"], "captions": said["captions"]}
    return {**scores_of(clip), "extra": clip["extra"], **captions}


def add_hashes(dataset: Dataset) -> None:
    """Shards of versions 1 and 2 get the hashes of their clips. The clips stay as they are, byte by byte.

    Killed at any moment, the next command continues with the shards that have no hashes. Raises
    `curation.store.intact.Damaged`.
    """
    for part in dataset.parts("shards"):
        source = open_shard(dataset, part)
        before = source.schema_arrow
        source.close()
        if VIDEO_HASH in before.names:
            continue
        schema = _schema_again(dataset, before)
        with dataset.writing(f"shards/{part}.parquet") as file, shard_writer(file, schema) as writer:
            for table in intact_groups(dataset, part):
                videos = (table["video"][i].as_py() for i in range(table.num_rows))
                hashes = pa.array([video_hash(video["bytes"]) for video in videos], pa.string())
                hashed = table.append_column(SHARDS.field(VIDEO_HASH), hashes)
                writer.write_table(hashed.replace_schema_metadata(schema.metadata))


def _schema_again(dataset: Dataset, before: pa.Schema) -> pa.Schema:
    """The schema of a shard that is written once more: it may have had fewer score columns."""
    made_with = {k: v for k, v in (before.metadata or {}).items() if k == CUT_HASH}
    schema = shard_schema(dataset)
    return schema.with_metadata({**(schema.metadata or {}), **made_with})


def _same(row: Mapping[str, Any], clip: Mapping[str, Any]) -> bool:
    """Two NaN are the same score."""
    return row.keys() == clip.keys() and all(
        row[c] == clip[c] or (is_score(c) and row[c] != row[c] and clip[c] != clip[c]) for c in row
    )


def _brought_up(table: pa.Table, clips: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    ids = table["clip_id"].to_pylist()
    for name in (*filter(is_score, table.column_names), "extra", *CAPTION_PARTS):
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
        made_with = (source.schema_arrow.metadata or {}).get(CUT_HASH)
        source.close()
        if made_with is not None and made_with.decode() != config.cut_hash():
            dataset.remove(f"shards/{part}.parquet")
            dropped += 1
    return dropped
