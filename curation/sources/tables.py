"""The rows of a list file: CSV, TSV, JSONL, JSON, Parquet, or a text with a path in each line; also `.gz`."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from curation.sources.parquet import rows_of_parquet
from curation.sources.source import SourcesError
from curation.store.address import open_source

PATH_COLUMNS = (
    "uri",
    "path",
    "video",
    "file",
    "file_path",
    "video_path",
    "filename",
    "file_name",
    "image",
    "url",
    "media_path",
    "filepath",
)
_DELIMITERS = (",", ";", "\t", "|")
_LONGEST_CELL = 16 << 20
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def column_of(names: Sequence[str]) -> str | None:
    """The name that holds the path, in any case and with blanks around it; None if there is none."""
    by_name = {str(name).strip().lower(): name for name in reversed(list(names))}
    return next((by_name[c] for c in PATH_COLUMNS if c in by_name), None)


def rows_of_list(name: str) -> Iterator[dict[str, Any]]:
    """The rows in order. Raises `SourcesError`, which names the row or the line."""
    kind = kind_of(name)
    try:
        with open_source(name, typed=True) as raw:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if name.lower().endswith(".gz") else raw
            if kind == ".parquet":
                yield from _of_parquet(name, file)
                return
            with io.TextIOWrapper(file, encoding=_encoding(file), newline="") as text:
                yield from _READERS[kind](name, text)
    except SourcesError:
        raise
    except UnicodeDecodeError as error:
        raise SourcesError(
            f"{name}: cannot be read as a list: it is not in UTF-8, and not in UTF-16 with a byte order mark "
            f"({error}); save it as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise SourcesError(f"{name}: cannot be read as a list: {error}") from error


def kind_of(name: str) -> str:
    """The suffix without `.gz`."""
    return Path(name.lower().removesuffix(".gz")).suffix


def _encoding(file: BinaryIO) -> str:
    start = file.read(4)
    file.seek(0)
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8-sig")


def _of_parquet(name: str, file: BinaryIO) -> Iterator[dict[str, Any]]:
    columns = pq.read_schema(file).names
    file.seek(0)
    yield from rows_of_parquet(name, file, column_of(columns), columns)


def _of_csv(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_CELL)
    first = text.readline()
    # Of a list with another delimiter than its suffix says, the header has no path column with that one.
    tried = sorted(_DELIMITERS, key=lambda d: d != "\t") if kind_of(name) == ".tsv" else _DELIMITERS
    found = [d for d in tried if column_of(next(csv.reader([first], delimiter=d), [])) is not None]
    rows = csv.reader(itertools.chain([first], text), delimiter=(found or tried)[0], strict=True)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        for number, cells in enumerate(filter(None, rows), 1):
            if any(cell.strip() for cell in cells[len(header) :]):
                raise SourcesError(
                    f"{name}: row {number} (line {rows.line_num}) has {len(cells)} cells, and the header has "
                    f"{len(header)} columns; put a value that holds the delimiter in double quotes"
                )
            yield dict(itertools.zip_longest(header, cells[: len(header)]))
    except csv.Error as error:
        raise SourcesError(
            f"{name}: line {rows.line_num} cannot be read: {error}; close each double quote, and write one "
            "within a value twice"
        ) from error


def _of_jsonl(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SourcesError(f"{name}: line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise SourcesError(f"{name}: line {number} is not a JSON object")
            yield row


def _of_json(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    """A list of objects or of paths, an object that holds one such list, or a mapping of paths."""
    value = json.load(text)
    if isinstance(value, Mapping) and (lists := [v for v in value.values() if _is_list(v)]):
        value = lists[0] if len(lists) == 1 else None
    elif isinstance(value, Mapping) and value and all(isinstance(v, str | dict) for v in value.values()):
        value = [{"path": k, **(v if isinstance(v, dict) else {"caption": v})} for k, v in value.items()]
    if not isinstance(value, list):
        raise SourcesError(f"{name}: it is no list of objects, each with a path")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict | str):
            raise SourcesError(f"{name}: entry {number} is no JSON object and no path")
        yield {"path": row} if isinstance(row, str) else row


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _of_lines(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    yield from ({"path": path} for line in text if (path := line.strip("\r\n")).strip())


_READERS = {
    ".csv": _of_csv,
    ".tsv": _of_csv,
    ".jsonl": _of_jsonl,
    ".json": _of_json,
    ".txt": _of_lines,
}
