"""The types of rows are the schemas: they name the same columns, with the same types, in the same order."""

from __future__ import annotations

import math
import types
import typing
from typing import Any, Literal, Union

import pyarrow as pa
import pytest

from curation.store import rows, schema
from curation.store.schema import SCORE_COLUMNS
from curation.tasks import arrow, caption, cut, look, measure

SCALARS: dict[type, tuple[pa.DataType, ...]] = {
    str: (pa.string(),),
    int: (pa.int32(), pa.int64()),
    float: (pa.float64(), pa.float32(), pa.float16()),
    bool: (pa.bool_(),),
    bytes: (pa.binary(),),
}
TABLES = [
    (rows.SourceRow, schema.SOURCES),
    (rows.ClipRow, schema.CLIPS),
    (rows.CaptionRow, schema.CAPTIONS),
    (rows.FailureRow, schema.FAILURES),
    (rows.VerdictRow, schema.VERDICTS),
    (rows.ShardRow, schema.SHARDS),
]
STREAMS = [
    (measure.MeasureTask, measure.MEASURE_TASKS),
    (measure.StreamRow, measure.STREAM),
    (look.LookTask, look.LOOK_TASKS),
    (look.LookRow, look.LOOKS),
    (cut.CutTask, cut.CUT_TASKS),
    (cut.WrittenShard, cut.WRITTEN),
    (caption.CaptionTask, caption.CAPTION_TASKS),
    (caption.ReadBatch, caption.READ),
    (caption.CaptionAnswer, caption.ANSWERS),
]


def check(of: Any, found: pa.DataType, place: str) -> None:
    """`of` is a type of Python, and `found` the Arrow type that holds its values."""
    if typing.get_origin(of) in (types.UnionType, Union):  # null, or pairs in the place of a dict
        of = next(one for one in typing.get_args(of) if one is not type(None))
    if typing.get_origin(of) is Literal:
        of = str
    arguments = typing.get_args(of)
    if typing.is_typeddict(of):
        check_fields(of, list(found), place)
    elif pa.types.is_map(found):
        check(arguments[0], found.key_type, f"{place} key")
        check(arguments[1], found.item_type, f"{place} value")
    elif pa.types.is_list(found):
        assert typing.get_origin(of) is list, place
        check(arguments[0], found.value_type, f"{place}[]")
    else:
        assert found in SCALARS[of], f"{place}: {of} is not {found}"


def check_fields(of: Any, fields: list[pa.Field], place: str) -> None:
    named = typing.get_type_hints(of)
    assert set(named) == {field.name for field in fields}, place
    for field in fields:
        check(named[field.name], field.type, f"{place}.{field.name}")


@pytest.mark.parametrize(("row", "table"), TABLES, ids=lambda it: getattr(it, "__name__", ""))
def test_rows_of_tables_are_as_their_schemas(row: Any, table: pa.Schema) -> None:
    check_fields(row, [field for field in table if field.name not in SCORE_COLUMNS], row.__name__)


@pytest.mark.parametrize(("row", "table"), STREAMS, ids=lambda it: getattr(it, "__name__", ""))
def test_rows_that_travel_are_as_their_schemas(row: Any, table: pa.Schema) -> None:
    check_fields(row, list(table), row.__name__)


def test_what_is_not_scored_and_what_is_no_number_arrive_as_that() -> None:
    clip: Any = {
        **dict.fromkeys(typing.get_type_hints(measure.MeasuredClip)),
        "scores": {"motion.speed": None, "text.area": math.nan, "duration.seconds": 4},
        "keys": {},
        "jpegs": {"text": [b"1", b"2"], "aesthetics": []},
    }
    made = arrow.table_of(
        [measure.stream_row("p", clip=clip), measure.stream_row("p", note="n")], measure.STREAM
    )
    first, second = arrow.rows_of(made)
    assert first["clip"]["scores"].pop("text.area") != first["clip"]["scores"]["motion.speed"]
    assert first["clip"]["scores"] == {"motion.speed": None, "duration.seconds": 4.0}
    assert first["clip"]["jpegs"] == clip["jpegs"]
    assert (first["source"], second["clip"], second["note"]) == (None, None, "n")


def test_score_columns_are_read_and_set() -> None:
    row: Any = {"clip_id": "c", **dict.fromkeys(SCORE_COLUMNS), "motion.speed": 0.5}
    assert rows.scores_of(row) == {**dict.fromkeys(SCORE_COLUMNS), "motion.speed": 0.5}
    assert rows.with_scores(row, {"motion.speed": None}) == {"clip_id": "c", **dict.fromkeys(SCORE_COLUMNS)}
    assert row["motion.speed"] == 0.5
