"""The changes that a build makes in committed parts without measuring anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.rows import ClipRow, SourceRow, keys_of
from curation.store.schema import SOURCES
from curation.verdicts.stale import Staleness


def take_extras(dataset: Dataset, extras: Mapping[str, str | None]) -> None:
    """Write new values of the list's other columns (`extras`, by source_id) to sources already measured."""
    for part in dataset.parts("sources") if extras else ():
        rows: list[SourceRow] = dataset.read_part("sources", part).to_pylist()
        if any(row["source_id"] in extras for row in rows):
            new: list[SourceRow] = [
                {**row, "extra": extras.get(row["source_id"], row["extra"])} for row in rows
            ]
            dataset.write_table(f"sources/{part}.parquet", new, SOURCES)


def clear_old_scores(dataset: Dataset, config: Config, named: Collection[str]) -> int:
    """Set scores of another version or other parameters to null where the scores are not computed again.

    A score is not computed again if a cheaper rule already rejects the clip. An old score must not look like
    a score of this configuration.

    Clips of sources outside `named` keep their old scores, because nothing can be computed for them. Returns
    the number of these clips.
    """
    staleness = Staleness(config)
    left = 0
    columns = ["clip_id", "source_id", "fps", "keys", *dataset.score_columns]
    for part, table in dataset.tables("clips", columns):
        clips: list[ClipRow] = table.to_pylist()
        found = [c for c in clips if staleness.holds_old_values(c)]
        old = {c["clip_id"] for c in found if c["source_id"] in named}
        left += len(found) - len(old)
        if old:
            rows: list[ClipRow] = dataset.read_part("clips", part).to_pylist()
            kept: list[ClipRow] = [
                staleness.cleared(c) if c["clip_id"] in old else {**c, "keys": keys_of(c)} for c in rows
            ]
            dataset.write_table(f"clips/{part}.parquet", kept, dataset.schema("clips"))
    return left
