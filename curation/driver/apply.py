"""Verdicts are written, and the shards follow them."""

from __future__ import annotations

from typing import Any

from curation.captions.chosen import Captions, failure_keys
from curation.config.schema import Config
from curation.shards.align import align
from curation.store.dataset import Dataset
from curation.store.schema import SCORE_COLUMNS
from curation.verdicts.judge import applicable, ordered, spared, write_verdicts
from filters import SCORERS

Row = dict[str, Any]


def apply_rules(dataset: Dataset, config: Config) -> list[Row]:
    """Write the verdicts and bring the shards in line: rows of clips that fell out go. Returns the accepted
    clips, without their thumbnails and embeddings."""
    captions = Captions.read(dataset, config)
    columns = ["clip_id", "source_id", "uri", "start_s", "end_s", "frames", "fps", "width", "height"]
    rows = write_verdicts(dataset, config.verdict_rules, failure_keys(config), captions, columns)
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    for row in rows:
        row["extra"] = extras[row["source_id"]]
    align(dataset, {row["clip_id"]: row for row in rows}, captions)
    return rows


def not_scored(dataset: Dataset, config: Config) -> int:
    """Clips that pass every rule on what they have, but were spared a dear score."""
    count = 0
    measured = {column: rule for column, rule in config.rules.items() if column in SCORE_COLUMNS}
    for clip in dataset.rows("clips", ["clip_id", "fps", "keys", *SCORE_COLUMNS]):
        rules = applicable(ordered(measured), is_image=clip["fps"] is None)
        have = {c: r for c, r in rules.items() if clip[c] is not None}
        tried = dict(clip["keys"] or [])  # null there: it could not be measured
        missing = {c.split(".")[0] for c in rules if clip[c] is None} - tried.keys()
        dear = any(SCORERS[name].uses_model for name in missing)
        count += dear and not spared(clip, have, have)
    return count
