"""What a build changes in committed parts without measuring anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.rows import ClipRow, SourceRow, keys_of
from curation.store.schema import CLIPS, SCORE_COLUMNS, SOURCES
from curation.verdicts.stale import Staleness


def take_extras(dataset: Dataset, extras: Mapping[str, str | None]) -> None:
    """Take over the list's other columns of sources (by source_id) that are measured already."""
    for part in dataset.parts("sources") if extras else ():
        rows: list[SourceRow] = dataset.read_part("sources", part).to_pylist()
        if any(row["source_id"] in extras for row in rows):
            new: list[SourceRow] = [
                {**row, "extra": extras.get(row["source_id"], row["extra"])} for row in rows
            ]
            dataset.write_table(f"sources/{part}.parquet", new, SOURCES)


def clear_old_scores(dataset: Dataset, config: Config, named: Collection[str]) -> int:
    """Null the scores of another version or other parameters where they are not computed again (a cheaper
    rule spares the clip them): nobody shall read them as what the configuration says.

    Clips of sources that are not among `named` are as they were, since nothing can be computed for them.
    Returns how many of those keep old scores.
    """
    staleness = Staleness(config)
    left = 0
    columns = ["clip_id", "source_id", "fps", "keys", *SCORE_COLUMNS]
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
            dataset.write_table(f"clips/{part}.parquet", kept, CLIPS)
    return left
