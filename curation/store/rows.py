"""Rows of the tables of a dataset as Python types: one type for each schema of `store.schema`.

A row is a dict, as pyarrow reads and writes rows. A row that was read with few columns has only those
columns: any other key raises `KeyError`. A row of clips or of shards also holds the score columns. The types
do not name the score columns, because their number depends on the filters. `scores_of` reads the score
columns, and `with_scores` sets them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, TypeVar, cast

from curation.store.schema import CAPTION_COLUMNS, is_score

# measure.value -> number. Null: not scored. NaN: scored, but the score is not a number. A rule rejects both.
Scores = Mapping[str, float | None]


# A map column: pyarrow reads pairs, and can write pairs or a dict.
Keys = Mapping[str, str] | Sequence[tuple[str, str]] | None


class NamedSource(TypedDict):
    """The columns of a source that are known before the source is measured."""

    source_id: str
    uri: str
    fingerprint: str | None
    mtime_or_etag: str | None
    duplicate_of: str | None
    bytes: int | None
    extra: str | None  # JSON


class Decoded(TypedDict):
    """The columns of a source that are known after all of its frames were decoded."""

    container: str | None
    codec: str | None
    width: int | None
    height: int | None
    fps: float | None
    is_vfr: bool | None
    file_start_s: float | None  # presentation time at which the file begins; null: 0
    duration_s: float | None
    frames: int | None
    transfer: str | None  # as ffmpeg calls it; null: the source does not say, or an earlier version wrote it
    fields: str | None  # progressive, interlaced, telecined; null: nobody looked


class SourceRow(NamedSource, Decoded):
    status: Literal["measured", "failed"]
    stage: str | None
    error: str | None
    message: str | None
    clips: int
    seconds: float | None
    config_hash: str | None


class Shape(TypedDict):
    """The start, end, frame rate and size of a clip."""

    start_s: float
    end_s: float
    fps: float | None  # null: a still image
    width: int
    height: int


class ClipSpan(Shape):
    """A clip without its measured values."""

    clip_id: str
    source_id: str
    uri: str
    frames: int


class ClipRow(ClipSpan):
    embedding: list[float] | None
    thumbnail: bytes | None
    keys: Keys  # measure -> hash of its version and parameters


class AcceptedClip(ClipSpan):
    """A clip with its scores and with the columns that the list of sources has for its source."""

    extra: str | None  # JSON


CaptionChecks = TypedDict(
    "CaptionChecks",
    {
        "caption.refusal": float | None,
        "caption.echo": float | None,
        "caption.boilerplate": float | None,
        "caption.truncated": float | None,
        "caption.repetition": float | None,
        "caption.language": float | None,
        "caption.words": float | None,
        "caption.similarity": float | None,
    },
    total=False,
)


class SaidCaption(CaptionChecks):
    """A captioner's answer for a clip, and the results of its checks."""

    clip_id: str
    captioner: str
    kind: str
    text: str
    model: str | None
    revision: str | None
    prompt_version: str | None


class CaptionRow(SaidCaption):
    key: str


class FailureRow(TypedDict):
    clip_id: str
    stage: str
    error: str
    message: str
    key: str | None


class VerdictRow(TypedDict):
    clip_id: str
    status: Literal["accepted", "rejected", "failed"]
    reason: str | None  # the column of the rule, or the stage that failed
    value: float | None
    message: str | None


class VideoFile(TypedDict):
    bytes: bytes
    path: str | None


class ShardCaption(TypedDict):
    text: str
    captioner: str
    kind: str
    model: str | None
    revision: str | None
    prompt_version: str | None


class ShardCaptions(TypedDict):
    """The columns of a shard row that come from captions."""

    caption: str | None  # the caption to train on
    captions: list[ShardCaption]


class ShardRow(ShardCaptions):
    clip_id: str
    video: VideoFile
    width: int
    height: int
    fps: float | None
    frames: int
    duration_s: float
    source_id: str
    uri: str
    start_s: float
    end_s: float
    extra: str | None
    config_hash: str
    video_hash: str | None  # of the bytes of the clip; null: written by version 0.1.0


Scored = TypeVar("Scored", ClipRow, AcceptedClip, ShardRow)


def scores_of(row: ClipRow | AcceptedClip | ShardRow) -> dict[str, float | None]:
    """The score columns that the row has."""
    return {name: value for name, value in cast(Scores, row).items() if is_score(name)}


def with_scores(row: Scored, scores: Scores) -> Scored:
    """The row with its score columns replaced by `scores`."""
    return cast(Scored, {**row, **scores})


def keys_of(row: ClipRow) -> dict[str, str]:
    """measure -> hash of its version and parameters."""
    return dict(row["keys"] or {})


def checks_of(row: SaidCaption) -> Mapping[str, float | None]:
    """The columns `caption.*` that this row of a caption has."""
    return {name: value for name, value in cast(Scores, row).items() if name in CAPTION_COLUMNS}


def named_source(row: NamedSource) -> NamedSource:
    """Only the columns of `NamedSource`, from a row that may have more columns."""
    return {
        "source_id": row["source_id"],
        "uri": row["uri"],
        "fingerprint": row["fingerprint"],
        "mtime_or_etag": row["mtime_or_etag"],
        "duplicate_of": row["duplicate_of"],
        "bytes": row["bytes"],
        "extra": row["extra"],
    }


def unmeasured(
    named: NamedSource,
    status: Literal["measured", "failed"],
    *,
    stage: str | None = None,
    error: str | None = None,
    message: str | None = None,
    clips: int = 0,
    seconds: float | None = None,
    config_hash: str | None = None,
) -> SourceRow:
    """The row of a source without decoded frames: all columns that describe the video are null."""
    return {
        **named,
        "container": None,
        "codec": None,
        "width": None,
        "height": None,
        "fps": None,
        "is_vfr": None,
        "file_start_s": None,
        "duration_s": None,
        "frames": None,
        "transfer": None,
        "fields": None,
        "status": status,
        "stage": stage,
        "error": error,
        "message": message,
        "clips": clips,
        "seconds": seconds,
        "config_hash": config_hash,
    }


class Spent(TypedDict):
    """The seconds that one worker took for a piece of its work."""

    stage: str
    worker: str
    seconds: float
