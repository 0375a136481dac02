"""Captions are committed in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from curation.store.dataset import Dataset
from curation.store.schema import CAPTIONS

Row = dict[str, Any]


def commit_captions(dataset: Dataset, rows: Sequence[Row]) -> None:
    """One part, named by what is in it."""
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['kind']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"captions/{rows[0]['captioner']}-{name}.parquet", rows, CAPTIONS)
