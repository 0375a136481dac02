"""The table of failures: clips that could not be cut or captioned."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from curation.store.dataset import Dataset
from curation.store.rows import FailureRow
from curation.store.schema import FAILURES


def current_failures(dataset: Dataset, keys: Collection[str]) -> dict[str, FailureRow]:
    """clip_id -> the clip's last failure under the current settings (`chosen.failure_keys`)."""
    return {f["clip_id"]: f for f in dataset.rows("failures") if f["key"] in keys}


def failure(clip_id: str, stage: str, error: str, message: str, key: str) -> FailureRow:
    return {"clip_id": clip_id, "stage": stage, "error": error, "message": message, "key": key}


def commit_failures(dataset: Dataset, rows: Sequence[FailureRow]) -> None:
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['stage']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"failures/{name}.parquet", rows, FAILURES)


def forget_failures(dataset: Dataset, stages: Collection[str] | None = None) -> None:
    """Delete the failures of these stages, or of all stages, so that builds try the clips again."""
    for part, table in list(dataset.tables("failures")):
        kept = [row for row in table.to_pylist() if stages is not None and row["stage"] not in stages]
        if not kept:
            dataset.remove(f"failures/{part}.parquet")
        elif len(kept) < table.num_rows:
            dataset.write_table(f"failures/{part}.parquet", kept, FAILURES)
