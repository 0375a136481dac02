"""Cutting: the clips of a planned shard, and the written shard."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

from curation.store.rows import (
    ClipSpan,
    FailureRow,
    ShardCaptions,
    Spent,
)
from curation.store.schema import CLIPS, FAILURES, SHARDS, SOURCES, SPENT
from curation.tasks.arrow import SCORES, fields

# ---- cutting


class SourceFile(TypedDict):
    """The values with which a worker checks that the file has not changed since it was measured."""

    uri: str
    bytes: int | None
    mtime_or_etag: str | None
    fingerprint: str | None


class MeasuredFile(SourceFile):
    fields: str | None  # what measuring found the frames to be: cutting makes the same pictures of them


class CutClip(ClipSpan, ShardCaptions):
    scores: dict[str, float | None]
    extra: str | None
    source: MeasuredFile


class CutTask(TypedDict):
    """One planned shard."""

    name: str
    clips: list[CutClip]
    token: str | None  # of the lease under which the shard may be written; null: no lease


class WrittenShard(TypedDict):
    name: str
    rows: int
    bytes: int  # of video
    seconds: float  # of video
    failures: list[FailureRow]
    spent: Spent


_CUT_CLIP = pa.struct(
    [
        *fields(CLIPS, ClipSpan),
        *fields(SHARDS, ShardCaptions),
        pa.field("scores", SCORES),
        pa.field("extra", pa.string()),
        pa.field("source", pa.struct(fields(SOURCES, MeasuredFile))),
    ]
)
CUT_TASKS = pa.schema([("name", pa.string()), ("clips", pa.list_(_CUT_CLIP)), ("token", pa.string())])
WRITTEN = pa.schema(
    [
        ("name", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("seconds", pa.float64()),
        ("failures", pa.list_(pa.struct(list(FAILURES)))),
        ("spent", SPENT),
    ]
)
