"""Captioning: the clips that a model is asked about, their pictures, and the answers."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

from curation.store.rows import (
    SaidCaption,
    Spent,
)
from curation.store.schema import CAPTIONS, SPENT
from curation.tasks.arrow import fields

# ---- captioning


class AskedClip(TypedDict):
    clip_id: str
    text: str | None  # the text to rewrite
    part: str | None  # the part of `clips` that holds the embedding; null: no comparison


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
    """A `captioning.base.CaptionRequest`, and the values that the checks of its caption need."""

    clip_id: str
    uri: str
    start_s: float
    end_s: float
    is_image: bool
    extra: str | None  # JSON
    text: str | None
    times_s: list[float]
    shapes: list[list[int]]
    pictures: list[bytes]  # uint8 RGB, not compressed
    embedding: list[float] | None
    failed: Unreadable | None


class ReadBatch(TypedDict):
    """A whole batch of clips in one row.

    Ray Data splits and joins rows by their size in bytes. With one clip per row, models would get partial
    batches.
    """

    clips: list[ReadClip]


class CaptionAnswer(TypedDict):
    """The captions of a clip, or the error. One extra row without a clip has the time that the work took."""

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
        ("captions", pa.list_(pa.struct(fields(CAPTIONS, SaidCaption)))),
        ("error", pa.string()),
        ("message", pa.string()),
        ("spent", SPENT),
    ]
)
