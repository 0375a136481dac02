"""Lists of sources: CSV, JSONL and Parquet files with a path column."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.parquet as pq

from curation.sources.source import Source, SourcesError
from curation.store.address import is_remote

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
SURROGATE = re.compile("[\ud800-\udfff]")  # of a byte that is not UTF-8, or alone in a list's JSON


def read_list(name: str, base: str) -> Iterator[Source]:
    """A CSV, JSONL or Parquet list: one column is the path, the others travel along as `extra`."""
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
        yield Source(path, _storable_extra(extra))


def _rows(name: str) -> Iterator[dict[str, Any]]:
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".parquet":
            with fsspec.open(name, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from cast(list[dict[str, Any]], batch.to_pylist())
            return
        with fsspec.open(name, "rt", encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, 1):
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
    """JSON can escape half a character, which no table can hold."""
    text = json.dumps(extra, ensure_ascii=False, default=str)
    if not SURROGATE.search(text):
        return extra
    replaced: dict[str, Any] = json.loads(SURROGATE.sub("\ufffd", text))
    return replaced
