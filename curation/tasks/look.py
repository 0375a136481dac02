"""Long sources: the pieces that workers look at, and the returned values of their frames."""

from __future__ import annotations

from typing import Literal, TypedDict

import pyarrow as pa

from curation.store.rows import (
    Spent,
)
from curation.store.schema import SPENT

# ---- looking at pieces of long sources


class LookTask(TypedDict):
    source_id: str
    uri: str
    index: int
    from_s: float | None  # null: from the first frame
    until_s: float | None  # null: to the last frame


class InfoRow(TypedDict):
    """`decode.pixels.frame.VideoInfo`."""

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
    file_start_s: float
    mirrored: bool
    transfer: str | None
    keeps_hdr: bool
    fields: Literal["progressive", "interlaced", "telecined"] | None


class MarkRow(TypedDict):
    """A frame at which two pieces are joined (`decode.answers.Mark`)."""

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
    piece: PieceRow | None  # null: looking at the piece failed
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
        ("file_start_s", pa.float64()),
        ("mirrored", pa.bool_()),
        ("transfer", pa.string()),
        ("keeps_hdr", pa.bool_()),
        ("fields", pa.string()),
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
