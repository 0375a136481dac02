"""What travels between the driver and its workers: tasks, and what comes back. Nothing of that is stored.

Each row has a type and, below that type, its Arrow schema, so that a stage of Ray Data sees columns. JSON is
only what is free in form (`extra`). Scores travel as a map: null is not scored, NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import pyarrow as pa

from curation.store.rows import (
    ClipSpan,
    FailureRow,
    NamedSource,
    SaidCaption,
    ShardCaptions,
    SourceRow,
)
from curation.store.schema import CAPTIONS, CLIPS, FAILURES, SHARDS, SOURCES


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def rows_of(table: pa.Table) -> list[Any]:
    """Rows of one of the types below, whichever the table has."""
    rows: list[Any] = table.to_pylist(maps_as_pydicts="strict")
    return rows


def _fields(schema: pa.Schema, row_type: Any) -> list[pa.Field]:
    """Those fields of a table that a type of `store.rows` names, in the order of the table."""
    named = row_type.__annotations__.keys()
    return [field for field in schema if field.name in named]


_SCORES = pa.map_(pa.string(), pa.float64())


class Spent(TypedDict):
    """What one worker says of a piece of its work."""

    stage: str
    worker: str
    seconds: float


SPENT = pa.struct([("stage", pa.string()), ("worker", pa.string()), ("seconds", pa.float64())])


# ---- measuring: tasks


class SpanTask(TypedDict):
    start_s: float
    end_s: float
    frames: int


class GroupTask(TypedDict):
    """Spans of a long source that one worker scores in one go, and from where on it must decode."""

    number: int
    spans: list[SpanTask]
    from_s: float | None  # null: from the start
    at: dict[str, float | None]  # where grids stand there


class SourceTask(NamedSource):
    rescore: bool  # the spans stay, some columns are computed
    attempts_before: int  # of a long source, whose clips came in groups
    group: GroupTask | None  # of a long source; null: the whole source


class MeasureTask(TypedDict):
    """Sources of one part."""

    part: str
    sources: list[SourceTask]


_SPAN = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("frames", pa.int64())])
_GROUP = pa.struct(
    [("number", pa.int32()), ("spans", pa.list_(_SPAN)), ("from_s", pa.float64()), ("at", _SCORES)]
)
_SOURCE_TASK = pa.struct(
    [
        *_fields(SOURCES, NamedSource),
        pa.field("rescore", pa.bool_()),
        pa.field("attempts_before", pa.int32()),
        pa.field("group", _GROUP),
    ]
)
MEASURE_TASKS = pa.schema([("part", pa.string()), ("sources", pa.list_(_SOURCE_TASK))])


# ---- measuring: what comes back


class MeasuredClip(ClipSpan):
    scores: dict[str, float | None]
    keys: dict[str, str]
    attempt: int  # clips count that are of the attempt that their source's row names
    new_embedding: bool  # of a clip that was scored again: the one that it had does not count
    thumbnail: bytes | None
    jpegs: dict[str, list[bytes]]  # model-backed scorer -> frames that it is still to see
    embedding: list[float] | None


class MeasuredSource(SourceRow):
    attempt: int | None  # null: it needed no measuring
    rescored: bool  # its committed row stays; `error`: its clips stay unscored


class GroupDone(TypedDict):
    source_id: str
    number: int
    error: str | None
    seconds: float


class StreamRow(TypedDict):
    """One of these: a candidate clip, a source after its clips, a group of a long source after its clips,
    something to tell the user, or what a piece of work took."""

    part: str
    clip: MeasuredClip | None
    source: MeasuredSource | None
    group: GroupDone | None
    note: str | None
    spent: Spent | None


_MEASURED_CLIP = pa.struct(
    [
        *_fields(CLIPS, ClipSpan),
        pa.field("scores", _SCORES),
        pa.field("keys", CLIPS.field("keys").type),
        pa.field("attempt", pa.int32()),
        pa.field("new_embedding", pa.bool_()),
        pa.field("thumbnail", pa.binary()),
        pa.field("jpegs", pa.map_(pa.string(), pa.list_(pa.binary()))),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)
_MEASURED_SOURCE = pa.struct([*SOURCES, pa.field("attempt", pa.int32()), pa.field("rescored", pa.bool_())])
_GROUP_DONE = pa.struct(
    [
        ("source_id", pa.string()),
        ("number", pa.int32()),
        ("error", pa.string()),
        ("seconds", pa.float64()),
    ]
)
STREAM = pa.schema(
    [
        ("part", pa.string()),
        ("clip", _MEASURED_CLIP),
        ("source", _MEASURED_SOURCE),
        ("group", _GROUP_DONE),
        ("note", pa.string()),
        ("spent", SPENT),
    ]
)


def stream_row(
    part: str,
    *,
    clip: MeasuredClip | None = None,
    source: MeasuredSource | None = None,
    group: GroupDone | None = None,
    note: str | None = None,
    spent: Spent | None = None,
) -> StreamRow:
    return {"part": part, "clip": clip, "source": source, "group": group, "note": note, "spent": spent}


# ---- looking at pieces of long sources


class LookTask(TypedDict):
    source_id: str
    uri: str
    index: int
    from_s: float | None  # null: from the first frame
    until_s: float | None  # null: to the last one


class InfoRow(TypedDict):
    """`decode.video.VideoInfo`."""

    container: str
    codec: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    sar: float
    fps: float | None
    declared_frames: int
    declared_duration_s: float | None
    start_s: float
    is_image: bool


class MarkRow(TypedDict):
    """A frame by which pieces are joined."""

    time_s: float
    digest: int


class PieceRow(TypedDict):
    """`decode.answers.Piece`."""

    info: InfoRow
    time_base: list[int]
    before: MarkRow | None
    last: MarkRow
    last_duration_s: float | None
    times_s: bytes
    stamps: bytes
    values: bytes


class LookRow(TypedDict):
    source_id: str
    index: int
    piece: PieceRow | None  # null: it failed
    error: str | None
    spent: Spent


LOOK_TASKS = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("index", pa.int32()),
        ("from_s", pa.float64()),
        ("until_s", pa.float64()),
    ]
)
_INFO = pa.struct(
    [
        ("container", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("coded_width", pa.int64()),
        ("coded_height", pa.int64()),
        ("rotation", pa.int64()),
        ("sar", pa.float64()),
        ("fps", pa.float64()),
        ("declared_frames", pa.int64()),
        ("declared_duration_s", pa.float64()),
        ("start_s", pa.float64()),
        ("is_image", pa.bool_()),
    ]
)
_MARK = pa.struct([("time_s", pa.float64()), ("digest", pa.int64())])
_PIECE = pa.struct(
    [
        ("info", _INFO),
        ("time_base", pa.list_(pa.int64())),
        ("before", _MARK),
        ("last", _MARK),
        ("last_duration_s", pa.float64()),
        ("times_s", pa.binary()),
        ("stamps", pa.binary()),
        ("values", pa.binary()),
    ]
)
LOOKS = pa.schema(
    [
        ("source_id", pa.string()),
        ("index", pa.int32()),
        ("piece", _PIECE),
        ("error", pa.string()),
        ("spent", SPENT),
    ]
)


# ---- cutting


class SourceFile(TypedDict):
    """By what a worker tells that the file is still the one that was measured."""

    uri: str
    bytes: int | None
    mtime_or_etag: str | None
    fingerprint: str | None


class CutClip(ClipSpan, ShardCaptions):
    scores: dict[str, float | None]
    extra: str | None
    source: SourceFile


class CutTask(TypedDict):
    """One planned shard."""

    name: str
    clips: list[CutClip]


class WrittenShard(TypedDict):
    name: str
    rows: int
    bytes: int  # of video
    seconds: float  # of video
    failures: list[FailureRow]
    spent: Spent


_CUT_CLIP = pa.struct(
    [
        *_fields(CLIPS, ClipSpan),
        *_fields(SHARDS, ShardCaptions),
        pa.field("scores", _SCORES),
        pa.field("extra", pa.string()),
        pa.field("source", pa.struct(_fields(SOURCES, SourceFile))),
    ]
)
CUT_TASKS = pa.schema([("name", pa.string()), ("clips", pa.list_(_CUT_CLIP))])
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


# ---- captioning


class AskedClip(TypedDict):
    clip_id: str
    text: str | None  # to rewrite
    part: str | None  # of `clips`, where its embedding is, if that is to be compared


class RowGroup(TypedDict):
    """The wanted clips of one row group of a shard."""

    shard: str
    group: int
    clips: list[AskedClip]


class CaptionTask(TypedDict):
    groups: list[RowGroup]


class Unreadable(TypedDict):
    error: str
    message: str


class ReadClip(TypedDict):
    """A `captioning.base.CaptionRequest`, and what checks need."""

    clip_id: str
    uri: str
    start_s: float
    end_s: float
    is_image: bool
    extra: str | None  # JSON
    text: str | None
    times_s: list[float]
    shapes: list[list[int]]
    pictures: list[bytes]  # uint8 RGB, as they are
    embedding: list[float] | None
    failed: Unreadable | None


class ReadBatch(TypedDict):
    """Clips as rows would be cut and joined by their bytes: models would get remainders."""

    clips: list[ReadClip]


class CaptionAnswer(TypedDict):
    """The captions of a clip, or why there is none. One row, of no clip, has what the work took."""

    clip_id: str | None
    captions: list[SaidCaption]
    error: str | None
    message: str | None
    spent: Spent | None


_ASKED = pa.struct([("clip_id", pa.string()), ("text", pa.string()), ("part", pa.string())])
_ROW_GROUP = pa.struct([("shard", pa.string()), ("group", pa.int32()), ("clips", pa.list_(_ASKED))])
CAPTION_TASKS = pa.schema([("groups", pa.list_(_ROW_GROUP))])
_READ_CLIP = pa.struct(
    [
        ("clip_id", pa.string()),
        ("uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("is_image", pa.bool_()),
        ("extra", pa.string()),
        ("text", pa.string()),
        ("times_s", pa.list_(pa.float64())),
        ("shapes", pa.list_(pa.list_(pa.int32()))),
        ("pictures", pa.list_(pa.binary())),
        ("embedding", pa.list_(pa.float32())),
        ("failed", pa.struct([("error", pa.string()), ("message", pa.string())])),
    ]
)
READ = pa.schema([("clips", pa.list_(_READ_CLIP))])
ANSWERS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("captions", pa.list_(pa.struct(_fields(CAPTIONS, SaidCaption)))),
        ("error", pa.string()),
        ("message", pa.string()),
        ("spent", SPENT),
    ]
)
