"""`reelmill status` says what a build under the dataset's own configuration would still do."""

from __future__ import annotations

from curation.captions.wanted import waiting as captions_waiting
from curation.config.schema import Config
from curation.shards.plan import sharded_clips
from curation.store.dataset import Dataset
from curation.verdicts.stale import Staleness


def waiting(dataset: Dataset, config: Config) -> str:
    """The work that a build under the dataset's configuration would still do, as text.

    The sources are not read, so their changes are not included. The text is empty if there is no work.
    """
    parts = [f"{n} {what}" for what, n in _waiting(dataset, config).items() if n]
    manifest = dataset.manifest()
    if not manifest.get("build_ended", True):  # the first versions did not write this key
        parts.insert(0, f"the build of {manifest.get('sources_named')} sources did not come to its end")
    return ", ".join(parts)


def captions_wait(dataset: Dataset, config: Config) -> bool:
    """Can `recaption` alone do the remaining work? False if there is no work, or if a build is needed."""
    if not dataset.manifest().get("build_ended", True) or _stale_sources(dataset, config):
        return False
    return any(captions_waiting(dataset, config).values())


def _stale_sources(dataset: Dataset, config: Config) -> int:
    staleness = Staleness(config)
    columns = ["clip_id", "source_id", "fps", "keys", *dataset.score_columns]
    return len({c["source_id"] for c in dataset.rows("clips", columns) if staleness.wanted(c)})


def _waiting(dataset: Dataset, config: Config) -> dict[str, int]:
    accepted = {v["clip_id"] for v in dataset.verdicts() if v["status"] == "accepted"}
    judged = sum(1 for _ in dataset.verdicts())
    clips = sum(table.num_rows for _, table in dataset.tables("clips", ["clip_id"]))
    uncut = len(accepted - set(sharded_clips(dataset)))
    return {
        "clips to judge": clips - judged,
        "accepted clips to cut": uncut,
        "sources to score again": _stale_sources(dataset, config),
        **captions_waiting(dataset, config),
        "unfinished files to remove": len(dataset.unfinished()),
    }
