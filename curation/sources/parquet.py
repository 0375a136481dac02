"""The rows of a Parquet list. Where a column holds the files themselves, each row gets an address."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from curation.sources.source import SourcesError
from curation.store.address import absolute
from curation.store.table_row import TableRow


class Held(str):
    """The address of a file within a list that the user named. A cell of a list is never one."""


def rows_of_parquet(
    name: str, file: BinaryIO, path_column: str | None, columns: list[str]
) -> Iterator[dict[str, Any]]:
    """The rows in order. Bytes are not read, as far as the file says that none of them is missing.

    path_column: the column that holds the paths. None: there is none by name; then the only one that holds
    files is it.
    """
    table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    schema = table.schema_arrow
    holding = {c for c in columns if _holds_files(schema.field(c).type)}
    column = path_column if path_column is not None else next(iter(holding)) if len(holding) == 1 else None
    if column is None or column not in holding:
        for batch in table.iter_batches():
            yield from cast(list[dict[str, Any]], batch.to_pylist())
        return
    if name.lower().endswith(".gz"):
        raise SourcesError(
            f"{name}: it holds the files themselves in {column}; unpack it, for rows are sought in it"
        )
    leaf, others = _leaves(schema, column, without=holding)
    row = 0
    for group in range(table.num_row_groups):
        there = _there(table, group, leaf)
        for batch in table.iter_batches(row_groups=[group], columns=others or [leaf]):
            for values in cast(list[dict[str, Any]], batch.to_pylist()):
                address = TableRow(absolute(name), column, row).address
                yield _row(values if others else {}, column, Held(address) if next(there) else None)
                row += 1


def _row(values: dict[str, Any], column: str, address: Held | None) -> dict[str, Any]:
    inside = values.pop(column, None)
    path = inside.get("path") if isinstance(inside, Mapping) else None
    if address is None:
        return {column: path, **values}
    # The name that the file had, which is often that of no file any more.
    return {column: address, **values, **({f"{column}.path": path} if path else {})}


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _is_binary(f.type) for f in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _leaves(schema: pa.Schema, column: str, without: set[str]) -> tuple[str, list[str]]:
    """(the leaf with the bytes, what else is read: the columns without files, and the name of the file)."""
    others = [c for c in schema.names if c not in without]
    kind = schema.field(column).type
    if not pa.types.is_struct(kind):
        return column, others
    return f"{column}.bytes", others + ([f"{column}.path"] if any(f.name == "path" for f in kind) else [])


def _there(table: pq.ParquetFile, group: int, leaf: str) -> Iterator[bool]:
    """For each row of a row group: are there bytes? They are read only where the file does not say it."""
    rows = table.metadata.row_group(group)
    chunk = next(c for c in map(rows.column, range(rows.num_columns)) if c.path_in_schema == leaf)
    statistics = chunk.statistics
    if statistics is not None and statistics.has_null_count and statistics.null_count in (0, rows.num_rows):
        yield from [statistics.null_count == 0] * rows.num_rows
        return
    for batch in table.iter_batches(batch_size=1, row_groups=[group], columns=[leaf], use_threads=False):
        for value in batch.column(0).to_pylist():
            yield (value.get("bytes") if isinstance(value, dict) else value) is not None
