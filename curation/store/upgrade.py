"""A dataset of an older schema becomes one of this version's, in place and without computing anything."""

from __future__ import annotations

import json
from typing import Any

from captioning.sidecar import Sidecar
from curation.store.dataset import Dataset
from curation.store.schema import CAPTIONS, FAILURES, SCHEMA_VERSION


def upgrade(dataset: Dataset) -> bool:
    """From version 1: captions get the columns of their checks (null), and clips whose caption file could not
    be read say by which captioner they failed. From version 2: the version, once `shards.align.add_hashes`
    has been there. Killed at any moment, it is done again by the next command. Returns whether there was
    something to do."""
    manifest = dataset.manifest()
    if manifest["schema_version"] == SCHEMA_VERSION:
        return False
    if manifest["schema_version"] == 1:
        _upgrade_captions(dataset, manifest)
    manifest["schema_version"] = SCHEMA_VERSION
    dataset.write("dataset.json", json.dumps(manifest, indent=2, default=str).encode())
    return True


def _upgrade_captions(dataset: Dataset, manifest: dict[str, Any]) -> None:
    for part, captions in list(dataset.tables("captions")):
        dataset.write_table(f"captions/{part}.parquet", captions.to_pylist(), CAPTIONS)
    column = manifest["config"].get("captions", {}).get("caption_column", "caption")
    for part, failures in list(dataset.tables("failures")):
        rows = failures.to_pylist()
        mine = [{**r, "key": Sidecar(column).key} if r["stage"] == "caption" else r for r in rows]
        if mine != rows:
            dataset.write_table(f"failures/{part}.parquet", mine, FAILURES)
