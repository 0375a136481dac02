"""The spans that a list gives of a source, from the `extra` of its row."""

from __future__ import annotations

import json

from captioning.texts import SPANS, span_of


def listed_spans(extra: str | None) -> list[tuple[float, float]]:
    """(start, end) in seconds since the file begins, in order of time, each once; also those that are empty.

    extra: as JSON. Columns of these names that hold no times are plain columns.
    """
    columns = json.loads(extra) if extra else {}
    rows = columns.get(SPANS)
    found = set()
    for row in rows if isinstance(rows, list) else [columns]:
        try:
            span = span_of(row) if isinstance(row, dict) else None
        except ValueError:
            continue
        if span is not None:
            found.add(span)
    return sorted(found)
