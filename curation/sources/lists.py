"""Lists of sources: CSV, JSONL and Parquet files with a path column."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from curation.sources.source import Source, SourcesError
from curation.store.address import AddressRefused, is_remote, open_source, refusal

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
)
SURROGATE = re.compile("[\ud800-\udfff]")  # from a byte that is not UTF-8, or from an escape in a list's JSON


def read_list(name: str, base: str) -> Iterator[Source]:
    """The sources of a CSV, JSONL or Parquet list: one column is the path, the other columns become `extra`.

    The user typed the name of the list, but another person may have written its rows. An address that may
    not be opened becomes a source with an `error`, and no server is contacted for it.
    Raises `SourcesError` if the list cannot be read, or has no path column, or a row has no path.
    """
    column: str | None = None
    for number, row in enumerate(_rows(name), 1):
        if column is None:
            column = next((c for c in PATH_COLUMNS if c in row), None)
            if column is None:
                raise SourcesError(f"{name}: no path column; it needs one of {', '.join(PATH_COLUMNS)}")
        path = row.get(column)
        if not path:
            raise SourcesError(f"{name}: row {number} has no {column}")
        path = str(path)
        if not is_remote(path):
            path = f"{base}/{path}" if is_remote(base) else os.path.abspath(os.path.join(base, path))
        extra = {k: v for k, v in row.items() if k != column and v is not None}
        reason = refusal(path)
        error = (AddressRefused.__name__, reason) if reason else None
        yield Source(path, _storable_extra(extra), error=error)


def _rows(name: str) -> Iterator[dict[str, Any]]:
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".parquet":
            with open_source(name, typed=True) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from cast(list[dict[str, Any]], batch.to_pylist())
            return
        with (
            open_source(name, typed=True) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
        ):
            if suffix == ".csv":
                yield from csv.DictReader(text)
                return
            for number, line in enumerate(text, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise SourcesError(f"{name}: line {number} is not valid JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise SourcesError(f"{name}: line {number} is not a JSON object")
                    yield row
    except SourcesError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise SourcesError(f"{name}: cannot be read as a list: {error}") from error


def _storable_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` without lone surrogates: JSON can contain them, but a table cannot store them."""
    text = json.dumps(extra, ensure_ascii=False, default=str)
    if not SURROGATE.search(text):
        return extra
    replaced: dict[str, Any] = json.loads(SURROGATE.sub("\ufffd", text))
    return replaced
