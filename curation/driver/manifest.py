"""dataset.json says what made a dataset, and whether its last build has ended."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from curation.config.filters import params_of, record_of
from curation.config.schema import Config
from curation.store.dataset import Dataset, reelmill_version
from curation.store.schema import SCHEMA_VERSION


def write_manifest(
    dataset: Dataset, config: Config, *, sources_named: int | None = None, ended: bool | None = None
) -> None:
    """Write dataset.json. `sources_named` and `ended`: None keeps the earlier value."""
    before = dataset.manifest() if dataset.exists() else {}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "reelmill_version": reelmill_version(),
        "created": before.get("created", datetime.now(UTC).isoformat("T", "seconds")),
        "sources_named": before.get("sources_named") if sources_named is None else sources_named,
        "build_ended": before.get("build_ended", False) if ended is None else ended,
        "config_hash": config.hash(),
        "config": config.stored(),
        "rules": {c: {"min": r.min, "max": r.max} for c, r in config.rules.items()},
        "measure_keys": config.measure_keys(),
        # Columns are never taken away: clips that are not measured again keep their numbers.
        "score_columns": list(dict.fromkeys([*dataset.score_columns, *config.score_columns])),
        "captioner_key": getattr(config.captions.of_ones_own, "key", None),
        "measures": {path: record_of(s) for path, s in config.filters.items()},
        "models": {name: params_of(s) for name, s in config.model_scorers.items()},
    }
    dataset.write("dataset.json", json.dumps(manifest, indent=2, default=str).encode())
