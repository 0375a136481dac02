"""The tables of a dataset and their columns: the contract that others read."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from filters import SCORERS

SCHEMA_VERSION = 3
# 1: captions without checks. 2: shards without hashes. The next command that writes adds the columns.
READABLE_VERSIONS = (1, 2, 3)
FILE_START = "file_start_s"  # of a source's row: the presentation time at which its file begins
VIDEO_HASH = "video_hash"  # of a shard's row: what the bytes of its clip were when they were encoded
# Of a source: how its colours are coded, by the name that ffmpeg has for the transfer; null: it does not say.
TRANSFER = "transfer"
# Of a source: "progressive", or "interlaced" or "telecined", whose pictures are mended. Null: nobody looked,
# and the frames are left as they are.
FIELDS = "fields"
# The score columns that every new dataset has. A dataset's own columns are those that its dataset.json names
# (`Dataset.score_columns`).
SCORE_COLUMNS: tuple[str, ...] = tuple(
    column.name for scorer in SCORERS.values() for column in scorer.columns
)
# Of datasets whose dataset.json names no score columns: versions 1 and 2.
FIRST_SCORE_COLUMNS = (
    "duration.seconds",
    "resolution.short_side",
    "resolution.aspect",
    "motion.speed",
    "quality.sharpness",
    "quality.brightness",
    "quality.contrast",
    "quality.blown",
    "quality.dark",
    "borders.fraction",
    "transition.distance",
    "text.area",
    "aesthetics.mean",
    "aesthetics.min",
)
_SCORES = [pa.field(name, pa.float64()) for name in SCORE_COLUMNS]

# The checks of a caption that a model wrote (`captioning.checks.measures`). Null: the check was not made.
CAPTION_COLUMNS: tuple[str, ...] = (
    "caption.refusal",
    "caption.echo",
    "caption.boilerplate",
    "caption.truncated",
    "caption.repetition",
    "caption.language",
    "caption.words",
    "caption.similarity",
)

SOURCES = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("fingerprint", pa.string()),
        ("mtime_or_etag", pa.string()),
        ("duplicate_of", pa.string()),
        ("bytes", pa.int64()),
        ("container", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("is_vfr", pa.bool_()),
        (FILE_START, pa.float64()),
        ("duration_s", pa.float64()),
        ("frames", pa.int64()),
        ("status", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("clips", pa.int32()),
        ("seconds", pa.float64()),
        ("config_hash", pa.string()),
        ("extra", pa.string()),
        (TRANSFER, pa.string()),
        (FIELDS, pa.string()),
    ]
)
CLIPS = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("frames", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        *_SCORES,
        pa.field("embedding", pa.list_(pa.float16())),
        pa.field("thumbnail", pa.binary()),
        pa.field("keys", pa.map_(pa.string(), pa.string())),
    ]
)
CAPTIONS = pa.schema(
    [
        *(
            pa.field(name, pa.string())
            for name in (
                "clip_id",
                "captioner",
                "kind",
                "text",
                "model",
                "revision",
                "prompt_version",
                "key",
            )
        ),
        *(pa.field(name, pa.float64()) for name in CAPTION_COLUMNS),
    ]
)
FAILURES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("key", pa.string()),
    ]
)
VERDICTS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("message", pa.string()),
    ]
)
CAPTION_FIELDS = ("text", "captioner", "kind", "model", "revision", "prompt_version")  # in shards
_CAPTION = pa.struct([(name, pa.string()) for name in CAPTION_FIELDS])
SHARDS = pa.schema(
    [
        pa.field("clip_id", pa.string()),
        pa.field("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        pa.field("caption", pa.string()),
        pa.field("captions", pa.list_(_CAPTION)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("frames", pa.int32()),
        pa.field("duration_s", pa.float64()),
        *_SCORES,
        pa.field("source_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("extra", pa.string()),
        pa.field("config_hash", pa.string()),
        pa.field(VIDEO_HASH, pa.string()),  # blake2b of 16 bytes, in hexadecimal digits
    ]
)
TABLES = {"sources": SOURCES, "clips": CLIPS, "captions": CAPTIONS, "failures": FAILURES, "shards": SHARDS}


def is_score(column: str) -> bool:
    """Is this column of clips or shards a score? All scores, and no other columns, are `measure.value`."""
    return "." in column and not column.startswith("caption.")


def schema_of(table: str, scores: Sequence[str]) -> pa.Schema:
    """The columns of a table in a dataset with these score columns."""
    schema = VERDICTS if table == "verdicts" else TABLES[table]
    if not any(is_score(name) for name in schema.names):
        return schema
    first = next(i for i, name in enumerate(schema.names) if is_score(name))
    others = [field for field in schema if not is_score(field.name)]
    return pa.schema([*others[:first], *(pa.field(n, pa.float64()) for n in scores), *others[first:]])


# Columns without which a row says nothing: never null.
NEEDED = {
    "sources": ("source_id", "uri", "status"),
    "clips": ("clip_id", "source_id", "uri", "start_s", "end_s", "frames"),
    "captions": ("clip_id",),
    "failures": ("clip_id", "stage"),
    "verdicts": ("clip_id", "status"),
    "shards": ("clip_id", "frames", "width", "height"),
}
MAX_SECONDS = 1e9  # thirty years: what is beyond is no time of a video
SECONDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(NEEDED, ()),
    "sources": (FILE_START, "duration_s", "seconds"),
    "clips": ("start_s", "end_s"),
}
# Columns that earlier versions did not write.
OPTIONAL = (*CAPTION_COLUMNS, VIDEO_HASH, FILE_START, TRANSFER, FIELDS)


def with_check_columns(captions: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Captions with all columns of the contract, because version 1 wrote no columns of checks."""
    for name in CAPTION_COLUMNS:
        if name not in captions.column_names:
            captions = captions.append_column(CAPTIONS.field(name), pa.nulls(captions.num_rows, pa.float64()))
    return captions.select(list(columns) if columns else CAPTIONS.names)


def with_later_columns(sources: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Sources with all columns of the contract, which are null in parts that were written before them."""
    for name in (FILE_START, TRANSFER, FIELDS):
        if name not in sources.column_names:
            field = SOURCES.field(name)
            sources = sources.append_column(field, pa.nulls(sources.num_rows, field.type))
    return sources.select(list(columns) if columns else SOURCES.names)


_ABSENT = {b"absent": b"yes"}  # metadata of the field of a column that the file does not have


def absent(table: pa.Table) -> list[str]:
    """The score columns that `with_score_columns` added."""
    return [field.name for field in table.schema if field.metadata == _ABSENT]


def with_score_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows with the score columns among `names` and no other scores. A column that is absent is null."""
    if not any(map(is_score, names)):
        return table
    for name in names:
        if is_score(name) and name not in table.column_names:
            field = pa.field(name, pa.float64(), metadata=_ABSENT)
            table = table.append_column(field, pa.nulls(len(table), pa.float64()))
    known = [name for name in names if name in table.column_names]
    others = [name for name in table.column_names if name not in names and not is_score(name)]
    return table.select([*known, *others])


SPENT = pa.struct([("stage", pa.string()), ("worker", pa.string()), ("seconds", pa.float64())])
