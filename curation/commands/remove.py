"""`reelmill remove` removes sources permanently, with their copies."""

from __future__ import annotations

from collections.abc import Sequence

from curation.config.schema import Config
from curation.driver.apply import apply_rules
from curation.driver.prepare import settle
from curation.shards.plan import sharded_clips
from curation.sources.removed import Removed, drop_orphans, drop_removed, named
from curation.store.dataset import Dataset


def remove(dataset: Dataset, names: Sequence[str], config: Config) -> tuple[int, int, int]:
    """Remove sources permanently, with their copies. Returns the numbers of removed sources, clips and shard
    rows. Raises `DatasetError` for a name that is not a source."""
    settle(dataset)
    rows = named(dataset, names)
    shard_rows = len(sharded_clips(dataset))
    # The removal is noted first. After a kill, the next command that writes finishes the removal.
    Removed(dataset).add(rows)
    drop_removed(dataset)
    drop_orphans(dataset)
    apply_rules(dataset, config)
    gone = shard_rows - len(sharded_clips(dataset))
    return len(rows), sum(row["clips"] or 0 for row in rows), gone
