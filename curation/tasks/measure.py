"""Measuring: the tasks of parts, and the returned clips and sources."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

from curation.store.rows import (
    ClipSpan,
    NamedSource,
    SourceRow,
    Spent,
)
from curation.store.schema import CLIPS, SOURCES, SPENT
from curation.tasks.arrow import SCORES, fields

# ---- measuring: tasks


class SpanTask(TypedDict):
    start_s: float
    end_s: float
    frames: int


class GroupTask(TypedDict):
    """Spans of a long source that one worker scores in one decode, and the time where the decode starts."""

    number: int
    spans: list[SpanTask]
    from_s: float | None  # null: from the start
    at: dict[str, float | None]  # scorer -> the next point of its time grid at `from_s`, in seconds


class SourceTask(NamedSource):
    rescore: bool  # the spans stay, and only some columns are computed
    attempts_before: int  # 1 for a long source whose clips were first scored in groups
    group: GroupTask | None  # a group of a long source; null: the whole source


class MeasureTask(TypedDict):
    """Sources of one part."""

    part: str
    sources: list[SourceTask]


_SPAN = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("frames", pa.int64())])
_GROUP = pa.struct(
    [("number", pa.int32()), ("spans", pa.list_(_SPAN)), ("from_s", pa.float64()), ("at", SCORES)]
)
_SOURCE_TASK = pa.struct(
    [
        *fields(SOURCES, NamedSource),
        pa.field("rescore", pa.bool_()),
        pa.field("attempts_before", pa.int32()),
        pa.field("group", _GROUP),
    ]
)
MEASURE_TASKS = pa.schema([("part", pa.string()), ("sources", pa.list_(_SOURCE_TASK))])


# ---- measuring: results


class MeasuredClip(ClipSpan):
    scores: dict[str, float | None]
    keys: dict[str, str]
    attempt: int  # a clip counts only if the row of its source names the same attempt
    new_embedding: bool  # false: a clip that is scored again keeps its old embedding
    thumbnail: bytes | None
    jpegs: dict[str, list[bytes]]  # model-backed scorer -> frames for the scorer
    embedding: list[float] | None


class MeasuredSource(SourceRow):
    attempt: int | None  # null: the source needed no measuring
    rescored: bool  # the committed row of the source stays; with an `error` its clips stay unscored


class GroupDone(TypedDict):
    source_id: str
    number: int
    error: str | None
    seconds: float


class StreamRow(TypedDict):
    """One result. Exactly one column besides `part` has a value.

    clip: a candidate clip. source: a source, after its clips. group: a group of a long source, after its
    clips. note: a message for the user. spent: the time that a piece of work took.
    """

    part: str
    clip: MeasuredClip | None
    source: MeasuredSource | None
    group: GroupDone | None
    note: str | None
    spent: Spent | None


_MEASURED_CLIP = pa.struct(
    [
        *fields(CLIPS, ClipSpan),
        pa.field("scores", SCORES),
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
