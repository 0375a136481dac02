"""Reads the clips and sources for the page, as columns."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.captions.chosen import Captions
from curation.report.words import short
from curation.store.dataset import Dataset
from curation.store.rows import SourceRow
from curation.store.schema import CAPTION_COLUMNS

FAILURES_SHOWN = 200
SLOWEST_SHOWN = 15

ACCEPTED, _REJECTED, FAILED, _UNJUDGED = range(4)
STATUSES = ("accepted", "rejected", "failed", "not judged")


# ---------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """The committed clips as columns, in the order of the parts."""

    parts: list[tuple[str, int]]  # name, number of its first clip
    ids: pa.ChunkedArray
    scores: dict[str, np.ndarray]  # NaN where not scored
    start_s: np.ndarray
    seconds: np.ndarray
    is_image: np.ndarray
    status: np.ndarray
    reason: np.ndarray  # index of the reason in `reasons`, or -1 without a reason
    reasons: list[str]
    message: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.start_s)


def read_clips(dataset: Dataset, captions: Captions) -> Clips:
    parts: list[tuple[str, int]] = []
    tables = []
    rows = 0
    columns = ["clip_id", "start_s", "end_s", "fps", *dataset.score_columns]
    for part, table in dataset.tables("clips", columns):
        parts.append((part, rows))
        tables.append(table)
        rows += table.num_rows
    if not tables:
        schema = [("clip_id", pa.string())]
        schema += [(n, pa.float64()) for n in ("start_s", "end_s", "fps", *dataset.score_columns)]
        tables = [pa.schema(schema).empty_table()]
    all_clips = pa.concat_tables(tables)
    verdicts = dataset.verdict_table(["clip_id", "status", "reason", "message"])
    place = pc.index_in(all_clips["clip_id"], value_set=verdicts["clip_id"].combine_chunks())
    judged = verdicts.take(place)
    status = pc.index_in(judged["status"], value_set=pa.array(STATUSES))
    reasons = [r for r in pc.unique(judged["reason"]).to_pylist() if r is not None]
    reason = pc.index_in(judged["reason"], value_set=pa.array(reasons, pa.string()), skip_nulls=True)
    start_s = _floats(all_clips["start_s"])
    scores = {c: _floats(all_clips[c]) for c in dataset.score_columns}
    scores |= {c: np.full(len(start_s), np.nan) for c in CAPTION_COLUMNS}
    for i, clip_id in enumerate(all_clips["clip_id"].to_pylist()):
        for column, value in captions.checks(clip_id).items():
            scores[column][i] = value
    return Clips(
        parts,
        all_clips["clip_id"],
        scores,
        start_s,
        _floats(all_clips["end_s"]) - start_s,
        np.isnan(_floats(all_clips["fps"])),
        pc.fill_null(status, _UNJUDGED).to_numpy(),
        pc.fill_null(reason, -1).to_numpy(),
        reasons,
        judged["message"],
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)


@dataclass
class _Sources:
    failed: list[SourceRow] = field(default_factory=list)  # the first failed sources
    failed_by: Counter[tuple[str, str]] = field(default_factory=Counter)  # stage, error
    slowest: list[SourceRow] = field(default_factory=list)


def read_sources(dataset: Dataset) -> _Sources:
    found = _Sources()
    columns = [
        "uri",
        "status",
        "stage",
        "error",
        "message",
        "seconds",
        "duration_s",
        "width",
        "height",
        "codec",
    ]
    for _, table in dataset.tables("sources", columns):
        rows: list[SourceRow] = table.to_pylist()
        for row in rows:
            if row["status"] == "failed":
                found.failed_by[row["stage"] or "", row["error"] or ""] += 1
                if len(found.failed) < FAILURES_SHOWN:
                    shown = {k: short(v) if isinstance(v, str) else v for k, v in row.items()}
                    found.failed.append(cast(SourceRow, shown))
        timed = [r for r in rows if r["seconds"] is not None]
        slowest = [*found.slowest, *timed]
        found.slowest = heapq.nlargest(SLOWEST_SHOWN, slowest, key=lambda r: r["seconds"] or 0.0)
    return found
