"""Files that lie in the rows of a Parquet file, as Hugging Face's datasets keep videos and pictures.

Such a file has an address of its own, `PATH.parquet#COLUMN=000000012`: the row of the whole table, from 0, in
nine digits, so that addresses sort as rows do. The column holds the bytes, or a struct with a field `bytes`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

_ADDRESS = re.compile(r"(.+\.parquet)#([^#=/]+)=([0-9]{9,12})", re.DOTALL | re.IGNORECASE)
_BUFFER_BYTES = 1 << 20  # of a column: without it, Arrow reads all of a row group's column at once
_here = threading.local()  # `cursor`: where this thread read last


@dataclass(frozen=True)
class TableRow:
    """The parts of an address."""

    file: str  # path or address of the Parquet file
    column: str
    row: int

    @property
    def address(self) -> str:
        return f"{self.file}#{quote(self.column, safe='')}={self.row:09d}"


def table_row(address: str) -> TableRow | None:
    """The parts of the address of a row; None for any other address."""
    found = _ADDRESS.fullmatch(address)
    return TableRow(found[1], unquote(found[2]), int(found[3])) if found else None


def read_row(at: TableRow, version: str, opened: Callable[[str], BinaryIO]) -> bytes:
    """The bytes in a row. Raises `ValueError` or `OSError`.

    version: another text when the file is another one. opened: opens the Parquet file.
    Rows are mostly read in order, so each thread goes on where it read last. It holds one
    value and a page, which most writers make as large as the row group.
    """
    cursor: _Cursor | None = getattr(_here, "cursor", None)
    if cursor is None or not cursor.may_reach(at, version):
        forget()
        cursor = _here.cursor = _Cursor(at, version, opened(at.file))
    try:
        return cursor.read(at.row)
    except BaseException:
        forget()
        raise


def forget() -> None:
    """Close the file that this thread read last."""
    cursor: _Cursor | None = getattr(_here, "cursor", None)
    _here.cursor = None
    if cursor is not None:
        cursor.close()


class _Cursor:
    def __init__(self, at: TableRow, version: str, file: BinaryIO):
        import pyarrow.parquet as pq  # a quarter of a second, which videos in files do not need

        self._name, self._column, self._version = at.file, at.column, version
        self._file = file
        try:
            self._table: Any = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            field = self._table.schema_arrow.field(at.column)
        except KeyError:
            raise ValueError(f"{at.file} has no column {at.column}") from None
        import pyarrow as pa

        self._leaf = f"{at.column}.bytes" if pa.types.is_struct(field.type) else at.column
        self._next = 0  # row
        self._end = 0  # of the row group that `_values` reads
        self._values: Iterator[Any] = iter(())
        self._last: bytes | None = None  # of the row before `_next`

    def may_reach(self, at: TableRow, version: str) -> bool:
        return (self._name, self._column, self._version) == (at.file, at.column, version)

    def read(self, row: int) -> bytes:
        if row != self._next - 1:
            if not self._next <= row < self._end:
                self._begin(row)
            while self._next <= row:
                self._last = next(self._values)
                self._next += 1
        if self._last is None:
            raise ValueError(f"row {row} of {self._name} holds no bytes in {self._column}")
        return self._last

    def _begin(self, row: int) -> None:
        """Go to the start of the row group that holds the row."""
        self._last, self._next = None, 0
        for group in range(self._table.num_row_groups):
            self._end = self._next + self._table.metadata.row_group(group).num_rows
            if row < self._end:
                self._values = self._bytes_in(group)
                return
            self._next = self._end
        raise ValueError(f"{self._name} has {self._next} rows, and no row {row}")

    def _bytes_in(self, group: int) -> Iterator[bytes | None]:
        batches = self._table.iter_batches(
            batch_size=1, row_groups=[group], columns=[self._leaf], use_threads=False
        )
        for batch in batches:
            for value in batch.column(0).to_pylist():
                yield value["bytes"] if isinstance(value, dict) else value

    def close(self) -> None:
        self._values = iter(())
        self._table.close()
        self._file.close()
