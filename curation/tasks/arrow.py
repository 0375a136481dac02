"""Rows to Arrow tables and back, for the stages of Ray Data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa


def table_of(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema)


def rows_of(table: pa.Table) -> list[Any]:
    """The rows of a table, as dicts of the row type that belongs to the schema of the table."""
    rows: list[Any] = table.to_pylist(maps_as_pydicts="strict")
    return rows


def fields(schema: pa.Schema, row_type: Any) -> list[pa.Field]:
    """The fields of a table that a type of `store.rows` names, in the order of the table."""
    named = row_type.__annotations__.keys()
    return [field for field in schema if field.name in named]


SCORES = pa.map_(pa.string(), pa.float64())
