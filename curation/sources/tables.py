"""The rows of a list file: CSV, TSV, JSONL, JSON, Parquet, or a text with a path in each line; also `.gz`."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from captioning.texts import values_in
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
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if _is_gzip(name, raw) else raw
            if kind == ".parquet":
                yield from _of_parquet(name, file)
                return
            with io.TextIOWrapper(file, encoding=_encoding(name, file), newline="") as text:
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


def _is_gzip(name: str, file: BinaryIO) -> bool:
    """By its name or its content: some programs leave the suffix away."""
    start = file.read(2)
    file.seek(0)
    return start == b"\x1f\x8b" or name.lower().endswith(".gz")


def _encoding(name: str, file: BinaryIO) -> str:
    start = file.read(4)
    file.seek(0)
    marked = next((encoding for mark, encoding in _MARKS if start.startswith(mark)), None)
    if marked is None and b"\0\0" in (start[::2], start[1::2]):
        raise SourcesError(f"{name}: it looks like UTF-16 without a byte order mark; save it as UTF-8")
    return marked or "utf-8-sig"


def _of_parquet(name: str, file: BinaryIO) -> Iterator[dict[str, Any]]:
    columns = pq.read_schema(file).names
    file.seek(0)
    yield from rows_of_parquet(name, file, column_of(columns), columns)


def _of_csv(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_LONGEST_CELL)
    skipped, first = _header_line(text)
    # Of a list with another delimiter than its suffix says, the header has no path column with that one.
    tried = sorted(_DELIMITERS, key=lambda d: d != "\t") if kind_of(name) == ".tsv" else _DELIMITERS
    found = [d for d in tried if column_of(next(csv.reader([first], delimiter=d), [])) is not None]
    rows = csv.reader(itertools.chain([first], text), delimiter=(found or tried)[0], strict=True)
    try:
        header = _told_apart([cell.strip() for cell in next(rows, [])])
        for number, cells in enumerate(filter(None, rows), 1):
            if any(cell.strip() for cell in cells[len(header) :]):
                line = rows.line_num + skipped
                raise SourcesError(
                    f"{name}: row {number} (line {line}) has {len(cells)} cells, and the header has "
                    f"{len(header)} columns; put a value that holds the delimiter in double quotes"
                )
            yield dict(itertools.zip_longest(header, cells[: len(header)]))
    except csv.Error as error:
        raise SourcesError(
            f"{name}: line {rows.line_num + skipped} cannot be read: {error}; close each double quote, "
            "and write one within a value twice"
        ) from error


def _header_line(text: io.TextIOWrapper) -> tuple[int, str]:
    """The first line that is not empty, no comment, and not Excel's line that names the delimiter; and the
    number of lines before it."""
    for number, line in enumerate(text):
        if line.strip() and not line.startswith("#") and not re.fullmatch(r"sep=.\s*", line, re.IGNORECASE):
            return number, line
    return 0, ""


def _told_apart(header: list[str]) -> list[str]:
    """The names of columns; the second of one name gets a number, as pandas does: `caption.1`."""
    seen = Counter[str]()
    names = []
    for name in header:
        names.append(f"{name}.{seen[name]}" if name and seen[name] else name)
        seen[name] += 1
    return names


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
    """A list of objects or of paths, an object that holds one such list, one with a path, or a mapping of
    paths. Several objects, one in each line, are JSONL under another suffix."""
    value = values_in(text.read())
    if isinstance(value, Mapping) and _is_row(value):
        value = [value]
    elif isinstance(value, Mapping) and (lists := {k: v for k, v in value.items() if _is_list(v)}):
        if len(lists) > 1:
            raise SourcesError(
                f"{name}: it holds several lists ({', '.join(map(str, lists))}); write each to a file"
            )
        value = next(iter(lists.values()))
    elif isinstance(value, Mapping) and value and all(isinstance(v, str | dict) for v in value.values()):
        value = [{"path": k, **(v if isinstance(v, dict) else {"caption": v})} for k, v in value.items()]
    if not isinstance(value, list):
        raise SourcesError(f"{name}: it is no list of objects, each with a path")
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict | str):
            raise SourcesError(f"{name}: entry {number} is no JSON object and no path")
        yield {"path": row} if isinstance(row, str) else row


def _is_row(value: Mapping[str, Any]) -> bool:
    """Is it one object with a path? The keys of a mapping of paths are paths."""
    column = column_of(list(value))
    return column is not None and isinstance(value[column], str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _of_lines(name: str, text: io.TextIOWrapper) -> Iterator[dict[str, Any]]:
    yield from ({"path": path} for line in text if (path := line.strip("\r\n")).strip())


_READERS = {
    ".csv": _of_csv,
    ".tsv": _of_csv,
    ".jsonl": _of_jsonl,
    ".ndjson": _of_jsonl,
    ".json": _of_json,
    ".txt": _of_lines,
}
