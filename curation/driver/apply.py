"""Writes verdicts, and makes the shards match the verdicts."""

from __future__ import annotations

from collections.abc import Collection

from curation.captions.chosen import Captions, failure_keys
from curation.config.schema import Config
from curation.shards.align import align
from curation.shards.plan import sharded_clips
from curation.store.dataset import Dataset
from curation.store.rows import AcceptedClip, ClipRow, keys_of, scores_of, with_scores
from curation.store.schema import is_score
from curation.verdicts.judge import applicable, refused_hdr, spared, write_verdicts


def apply_rules(dataset: Dataset, config: Config) -> list[AcceptedClip]:
    """Write the verdicts, and remove the shard rows of clips that are no longer accepted.

    Returns the accepted clips, without their thumbnails and embeddings.
    """
    captions = Captions.read(dataset, config)
    columns = ["clip_id", "source_id", "uri", "start_s", "end_s", "frames", "fps", "width", "height"]
    hdr = refused_hdr(dataset, config)
    rows = write_verdicts(dataset, config.verdict_rules, failure_keys(config), captions, columns, hdr)
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    accepted = [_accepted(row, extras[row["source_id"]]) for row in rows]
    align(dataset, {clip["clip_id"]: clip for clip in accepted}, captions)
    return accepted


def _accepted(row: ClipRow, extra: str | None) -> AcceptedClip:
    clip: AcceptedClip = {
        "clip_id": row["clip_id"],
        "source_id": row["source_id"],
        "uri": row["uri"],
        "start_s": row["start_s"],
        "end_s": row["end_s"],
        "frames": row["frames"],
        "fps": row["fps"],
        "width": row["width"],
        "height": row["height"],
        "extra": extra,
    }
    return with_scores(clip, scores_of(row))


def in_shards(dataset: Dataset, clip_ids: Collection[str]) -> bool:
    """Is one of these clips in a shard?"""
    return bool(clip_ids) and any(id_ in clip_ids for id_ in sharded_clips(dataset))


def not_scored(dataset: Dataset, config: Config) -> int:
    """The number of clips that pass every rule on their known scores, but skipped an expensive score."""
    count = 0
    measured = {column: rule for column, rule in config.ordered_rules.items() if is_score(column)}
    scorers = config.scorers
    for clip in dataset.rows("clips", ["clip_id", "fps", "keys", *dataset.score_columns]):
        rules = applicable(measured, is_image=clip["fps"] is None)
        scores = scores_of(clip)
        have = {c: r for c, r in rules.items() if scores.get(c) is not None}
        tried = keys_of(clip)  # with a key here, a null score means that the clip could not be measured
        missing = {c.split(".")[0] for c in rules if scores.get(c) is None} - tried.keys()
        dear = any(scorers[name].uses_model for name in missing)
        count += dear and not spared(scores, have, have, is_image=clip["fps"] is None)
    return count
