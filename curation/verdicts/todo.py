"""Finds the work of a build: compares the named sources with the committed sources. Writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from curation.config.schema import Config
from curation.sources.identity import identify
from curation.sources.lists import without_nan
from curation.sources.removed import Removed
from curation.sources.source import Source
from curation.sources.spans import listed_spans
from curation.store.dataset import Dataset
from curation.store.rows import NamedSource, SourceRow, unmeasured
from curation.verdicts.stale import Staleness

_MOST_SOURCES_PER_PART = 32
_MOST_BYTES_PER_PART = 256 << 20
# A small dataset has about this many parts. A kill loses few of them, and many can run at once.
_PARTS = 64


@dataclass
class Todo:
    """The work of a build, and other facts about the sources that the comparison found."""

    parts: dict[str, list[Source]] = field(default_factory=dict)  # part -> sources to measure or to score
    direct: dict[str, list[SourceRow]] = field(default_factory=dict)  # part -> rows that need no measuring
    rescore: set[str] = field(default_factory=set)  # source_ids: spans stay, some columns are computed
    reasons: dict[str, str] = field(default_factory=dict)  # source_id -> why it is measured or scored
    pruned: list[SourceRow] = field(default_factory=list)  # rows to remove, with their clips
    mended: list[SourceRow] = field(default_factory=list)  # failed rows to remove: the file is new
    extras: dict[str, str | None] = field(default_factory=dict)  # source_id -> its changed other columns
    unlisted: list[SourceRow] = field(default_factory=list)  # sources that are not named now; they stay
    changed: list[SourceRow] = field(default_factory=list)  # the file is new; the old clips stay
    vanished: list[SourceRow] = field(default_factory=list)  # named, but unreadable now; they stay
    copies: list[Source] = field(default_factory=list)  # with spans of their own in the list: no clips
    barred: list[Source] = field(default_factory=list)  # removed by `reelmill remove`: left out
    named: set[str] = field(default_factory=set)  # source_ids of named, readable sources
    failed_before: int = 0  # number of named sources that failed in an earlier build
    retry_failed: bool = False  # failed clips are tried again, too
    old_scores: bool = False  # some clips hold scores of another version or other parameters

    @property
    def sources(self) -> int:
        return sum(map(len, self.parts.values())) + sum(map(len, self.direct.values()))

    @property
    def done(self) -> int:
        """The number of named sources that need no work."""
        return len(self.named - self.reasons.keys())


def find_work(
    dataset: Dataset,
    listed: Sequence[Source],
    config: Config,
    *,
    retry_failed: bool = False,
    prune: bool = False,
) -> Todo:
    """Compare the listed sources with the committed sources."""
    committed = {row["source_id"]: (part, row) for part, row in _committed(dataset)}
    uris = {s.uri for s in listed}
    staying = [
        _as_source(row)
        for _, row in committed.values()
        if not prune and row["uri"] not in uris and row["status"] == "measured" and not row["duplicate_of"]
    ]
    known = {row["uri"]: _as_source(row) for _, row in committed.values()}
    run = config.run
    sources = identify(
        listed, known, staying=staying, retries=run.read_retries, retry_seconds=run.retry_seconds
    )
    todo = Todo(retry_failed=retry_failed)
    sources = _without_removed(dataset, sources, todo)
    sources = _without_vanished(committed, sources, todo)
    todo.named = {s.source_id for s in sources}
    stale, todo.old_scores = _stale(dataset, config)
    fresh: list[Source] = []
    for source in _with_extras(sources, committed):
        before = committed.get(source.source_id)
        if before is None:
            todo.reasons[source.source_id] = "new"
            fresh.append(source)
        elif reason := _why_again(source, before[1], config, retry_failed=retry_failed):
            todo.reasons[source.source_id] = reason
            _add(todo, before[0], source)
        elif reason := stale.get(source.source_id):
            todo.reasons[source.source_id] = reason
            todo.rescore.add(source.source_id)
            _add(todo, before[0], source)
        elif before[1]["status"] == "failed":
            todo.failed_before += 1
        if before and source.extra and (extra := source_row(source)["extra"]) != before[1]["extra"]:
            todo.extras[source.source_id] = extra
    _leftover(todo, committed, sources, prune=prune)
    if config.spans.by == "list":
        todo.copies = [s for s in sources if s.duplicate_of and listed_spans(source_row(s)["extra"])]
    for group in _groups(fresh):
        ids = "\n".join(s.source_id for s in group)
        part = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        for source in group:
            _add(todo, part, source)
    return todo


def _committed(dataset: Dataset) -> Iterator[tuple[str, SourceRow]]:
    for part, table in dataset.tables("sources"):
        for row in table.to_pylist():
            yield part, row


def _with_extras(
    sources: Sequence[Source], committed: Mapping[str, tuple[str, SourceRow]]
) -> Iterator[Source]:
    """Sources that are named without their list keep what it said of them, and with it their spans."""
    for source in sources:
        extra = committed[source.source_id][1]["extra"] if source.source_id in committed else None
        yield replace(source, extra=json.loads(extra)) if extra and not source.extra else source


def _as_source(row: SourceRow) -> Source:
    return Source(row["uri"], {}, row["bytes"], row["mtime_or_etag"], row["fingerprint"], row["duplicate_of"])


def _without_removed(dataset: Dataset, sources: Sequence[Source], todo: Todo) -> list[Source]:
    """Leave out removed sources and their copies. Naming them again does not undo `reelmill remove`."""
    removed = Removed(dataset)
    kept = []
    for source in sources:
        if removed.bars(source.uri, source.fingerprint):
            todo.barred.append(source)
        else:
            kept.append(source)
    return kept


def _without_vanished(
    committed: Mapping[str, tuple[str, SourceRow]], sources: Sequence[Source], todo: Todo
) -> list[Source]:
    """Keep a measured source as it was if its file cannot be read now, for example on an unmounted disk."""
    by_uri: dict[str, list[SourceRow]] = {}
    for _, row in committed.values():
        if row["fingerprint"] is not None:
            by_uri.setdefault(row["uri"], []).append(row)
    kept = []
    for source in sources:
        if source.error is not None and source.uri in by_uri:
            todo.vanished += by_uri[source.uri]
        else:
            kept.append(source)
    # A folder may be unreadable now. The sources below that folder are kept, too.
    folders = tuple(f"{s.uri}/" for s in sources if s.error is not None)
    todo.vanished += [row for _, row in committed.values() if row["uri"].startswith(folders)]
    return kept


def _leftover(
    todo: Todo, committed: Mapping[str, tuple[str, SourceRow]], sources: Sequence[Source], *, prune: bool
) -> None:
    """Sort the committed sources that are not in `sources`: not named, or replaced by another file."""
    named = {s.source_id for s in sources} | {row["source_id"] for row in todo.vanished}
    uris = {s.uri for s in sources}
    for id_, (_, row) in committed.items():
        if id_ in named:
            continue
        replaced = row["uri"] in uris
        if replaced and row["status"] == "failed":
            todo.mended.append(row)
        elif prune:
            todo.pruned.append(row)
        elif replaced:
            todo.changed.append(row)
        else:
            todo.unlisted.append(row)


def _groups(fresh: Sequence[Source]) -> Iterator[list[Source]]:
    """Group new sources into parts. Small parts lose little work when a build is killed."""
    most = max(1, min(_MOST_SOURCES_PER_PART, len(fresh) // _PARTS))
    group: list[Source] = []
    size = 0
    for source in fresh:
        if group and (len(group) == most or size + (source.bytes or 0) > _MOST_BYTES_PER_PART):
            yield group
            group, size = [], 0
        group.append(source)
        size += source.bytes or 0
    if group:
        yield group


def as_listed(dataset: Dataset) -> list[Source]:
    """The sources of the dataset, in the form of a user's list."""
    extras = {row["uri"]: row["extra"] for row in dataset.rows("sources", ["uri", "extra"])}
    return [Source(uri, json.loads(extras[uri] or "{}")) for uri in sorted(extras)]


def source_row(source: Source) -> NamedSource:
    """The columns of a row of `sources` that are known before the source is measured."""
    return {
        "source_id": source.source_id,
        "uri": source.uri,
        "fingerprint": source.fingerprint,
        "mtime_or_etag": source.mtime_or_etag,
        "duplicate_of": source.duplicate_of,
        "bytes": source.bytes,
        "extra": json.dumps(without_nan(source.extra), default=str) if source.extra else None,
    }


def _add(todo: Todo, part: str, source: Source) -> None:
    row = source_row(source)
    if source.error is not None:
        kind, message = source.error
        failed = unmeasured(row, "failed", stage="read", error=kind, message=message)
        todo.direct.setdefault(part, []).append(failed)
    elif source.duplicate_of is not None:
        todo.direct.setdefault(part, []).append(unmeasured(row, "measured"))
    else:
        todo.parts.setdefault(part, []).append(source)


def _why_again(source: Source, row: SourceRow, config: Config, *, retry_failed: bool) -> str | None:
    if row["status"] == "failed":
        return "failed before" if retry_failed else None
    if source.duplicate_of is not None or row["duplicate_of"] is not None:
        if source.duplicate_of == row["duplicate_of"]:
            return None
        return "now a copy of another source" if source.duplicate_of else "no longer a copy of a kept source"
    listed = listed_spans(source_row(source)["extra"]) if config.spans.by == "list" else None
    same = row["config_hash"] == config.spans_hash(row["transfer"], listed)
    return None if same else "shots or spans changed"


def _stale(dataset: Dataset, config: Config) -> tuple[dict[str, str], bool]:
    """Two results: source_id -> text that names its missing or old scores; and `Todo.old_scores`."""
    staleness = Staleness(config)
    found: dict[str, set[str]] = {}
    old_scores = False
    for clip in dataset.rows("clips", ["clip_id", "source_id", "fps", "keys", *dataset.score_columns]):
        if wanted := staleness.wanted(clip):
            found.setdefault(clip["source_id"], set()).update(wanted)
        old_scores = old_scores or staleness.holds_old_values(clip)
    order = list(config.scorers)
    reasons = {
        id_: f"{', '.join(n for n in order if n in names)} not scored, or scored otherwise"
        for id_, names in found.items()
    }
    return reasons, old_scores
