"""Lists of sources: each row names a file, and its other columns become `extra`.

Several rows may name one file. Rows with a start and an end, in seconds since the file begins, are spans of
the file: `extra` has the columns that all of them share, and the rest in `spans`. Of rows without them, those
that say the same count once, the first one gives the columns, and the others are in `other_rows`.
"""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from captioning.texts import CAPTION_KEYS, SPANS, TIME_KEYS, cues_within, span_of, times_of
from curation.sources.identity import file_changed
from curation.sources.parquet import Held
from curation.sources.source import Source, SourcesError
from curation.sources.tables import PATH_COLUMNS, column_of, rows_of_list
from curation.store.address import AddressRefused, is_remote, refusal
from curation.store.table_row import table_row

OTHER_ROWS = "other_rows"
SURROGATE = re.compile("[\ud800-\udfff]")  # from a byte that is not UTF-8, or from an escape in a list's JSON
_Row = dict[str, Any]


def read_list(name: str, base: str, say: Callable[[str], None] = lambda _: None) -> list[Source]:
    """The sources of a list (`tables` has its formats): one column is the path, the others become `extra`.

    The user typed the name of the list, but another person may have written its rows. An address that may
    not be opened becomes a source with an `error`, and no server is contacted for it.
    say: is called with a line if several rows name one file.
    Raises `SourcesError` if the list cannot be read, or has no path column, or a row has no path.
    """
    column: str | None = None
    by_path: dict[str, list[_Row]] = {}
    held: set[str] = set()
    count = 0
    for count, row in enumerate(rows_of_list(name), 1):
        if column is None:
            column = next((c for c, v in row.items() if isinstance(v, Held)), None) or _path_column(name, row)
        path = _path(name, count, column, row)
        if isinstance(path, Held):
            held.add(path)
        elif not is_remote(path):
            path = f"{base}/{path}" if is_remote(base) else os.path.abspath(os.path.join(base, path))
        others = {k: v for k, v in row.items() if k not in (column, "") and v is not None}
        by_path.setdefault(path, []).extend(_spans_of(others))
    if not by_path:
        raise SourcesError(f"{name}: the list has no rows, so nothing is named")
    if unusable := sum(map(_is_half_a_span, itertools.chain.from_iterable(by_path.values()))):
        say(
            f"{name}: {unusable} rows have only one of start and end, or an end that is not behind "
            "the start: their times and captions match no clip"
        )
    if len(by_path) < count:
        say(
            f"{name}: {count} rows name {len(by_path)} files; rows with start and end are spans of their "
            "file, equal rows count once, and of others the first counts and the rest is in "
            f"{OTHER_ROWS} of extra"
        )
    looked = file_changed(name) if held else None
    return [_source(path, rows, looked if path in held else None) for path, rows in by_path.items()]


def _path_column(name: str, row: _Row) -> str:
    column = column_of(list(row))
    if column is None:
        there = ", ".join(str(key)[:40] for key in list(row)[:20]) or "none"
        raise SourcesError(
            f"{name}: no path column; it needs one of {', '.join(PATH_COLUMNS)}; its columns are {there}"
        )
    return column


def _path(name: str, number: int, column: str, row: _Row) -> str:
    value = row.get(column)
    if isinstance(value, Held):
        return value
    if isinstance(value, Mapping):  # of JSON: as Hugging Face's datasets name videos
        value = value.get("path")
    if not value or without_nan(value) is None:
        raise SourcesError(f"{name}: row {number} has no {column}")
    return str(value)


def _source(path: str, rows: Sequence[_Row], held_in: str | None) -> Source:
    """held_in: of a file within the list, what says whether the list has changed. None: any other file."""
    reason = refusal(path)
    if held_in is None and table_row(path):
        reason = "rows of a Parquet file are not named in a list; name the Parquet file itself as a source"
    error = (AddressRefused.__name__, reason) if reason else None
    return Source(path, _storable_extra(_merged(rows)), mtime_or_etag=held_in or None, error=error)


def _merged(rows: Sequence[_Row]) -> _Row:
    """The columns of all rows that name one file."""
    if len(rows) == 1:
        return rows[0]
    different = list({json.dumps(row, default=str, sort_keys=True): row for row in rows}.values())
    spans = [row for row in different if _span(row) is not None]
    whole = [row for row in different if _span(row) is None]
    if len(different) == 1:
        return different[0]
    shared = {k: v for k, v in spans[0].items() if all(s.get(k) == v for s in spans)} if spans else {}
    shared = {k: v for k, v in shared.items() if k.strip().lower() not in TIME_KEYS}
    extra: _Row = dict(whole[0] if whole else shared)
    if spans:
        extra[SPANS] = [{k: v for k, v in s.items() if k not in extra or extra[k] != v} for s in spans]
    if len(whole) > 1:
        extra[OTHER_ROWS] = whole[1:]
    return extra


def _span(row: _Row) -> tuple[float, float] | None:
    """The times of a row, or None: columns of these names may hold something else, such as dates."""
    try:
        return span_of(row)
    except ValueError:
        return None


def _is_half_a_span(row: _Row) -> bool:
    """Has a row one time without the other, or an end that is not behind its start?"""
    try:
        start_s, end_s = times_of(row)
    except ValueError:
        return False
    if start_s is None or end_s is None:
        return start_s is not end_s
    return not end_s > start_s


def _spans_of(row: _Row) -> list[_Row]:
    """The row itself; of one with several times and captions, a row for each of them."""
    try:
        cues, keys = cues_within(row)
    except ValueError:
        cues, keys = [], ()
    if cues:
        others = {k: v for k, v in row.items() if k not in keys}
        return [{**others, "caption": c.text, "start": c.start_s, "end": c.end_s} for c in cues]
    return _of_parallel_lists(row)


def _of_parallel_lists(row: _Row) -> list[_Row]:
    """Of a row with lists of times and of captions (Panda-70M), a row for each of them."""
    times = _list_in(next((v for k, v in row.items() if k.strip().lower() == "timestamp"), None))
    if not times or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in times):
        return [row]
    columns = {
        k: values for k, v in row.items() if (values := _list_in(v)) is not None and len(values) == len(times)
    }
    if not any(k.strip().lower() in CAPTION_KEYS for k in columns):
        return [row]
    shared = {k: v for k, v in row.items() if k not in columns}
    rows = []
    for i, (start, end) in enumerate(times):
        of_span = {k: v[i] for k, v in columns.items() if k.strip().lower() != "timestamp"}
        rows.append({**shared, **of_span, "start": start, "end": end})
    return rows


def _list_in(value: Any) -> list[Any] | None:
    """A list, also one that is written as a text."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, list) else None


def _storable_extra(extra: _Row) -> _Row:
    """`extra` without lone surrogates, NaN and infinity: JSON may have them, and tables and readers not."""
    extra = without_nan(extra)
    text = json.dumps(extra, ensure_ascii=False, default=str)
    if not SURROGATE.search(text):
        return extra
    replaced: _Row = json.loads(SURROGATE.sub("\ufffd", text))
    return replaced


def without_nan(value: Any) -> Any:
    """The value with null for each NaN and infinity, which strict JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return value
