"""Removal of sources, their clips and their shard rows: `build --prune` and `reelmill remove`."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

from curation.sources.identity import identify
from curation.sources.source import Source
from curation.store.address import is_remote
from curation.store.dataset import Dataset, DatasetError
from curation.store.rows import ClipRow, NamedSource, SourceRow, keys_of

_FILE = "removed.json"
_FIELDS = ("source_id", "uri", "fingerprint")


class RemovedSource(TypedDict):
    source_id: str
    uri: str
    fingerprint: str | None
    removed: str  # the time of the removal, ISO 8601 in UTC


class Removed:
    """The list of sources that were removed for good. The list is a file of the dataset.

    Builds skip these sources and all copies of them.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        entries = dataset.read_json(_FILE) if dataset.exists(_FILE) else []
        if not _are_entries(entries):
            raise dataset.damaged(_FILE, f"it is no list of removed sources, each with {', '.join(_FIELDS)}")
        self._take(entries)

    def _take(self, entries: list[RemovedSource]) -> None:
        self.entries = entries
        self._fingerprints = {e["fingerprint"] for e in self.entries if e["fingerprint"]}
        self._uris = {e["uri"] for e in self.entries}

    def bars(self, uri: str, fingerprint: str | None) -> bool:
        """Was this source removed? Compares the content, or the name of a file that cannot be read."""
        return fingerprint in self._fingerprints if fingerprint else uri in self._uris

    def add(self, rows: Sequence[SourceRow]) -> None:
        now = datetime.now(UTC).isoformat("T", "seconds")
        known = {e["source_id"] for e in self.entries}
        added: list[RemovedSource] = [
            {"source_id": id_, "uri": row["uri"], "fingerprint": row["fingerprint"], "removed": now}
            for row in rows
            if (id_ := row["source_id"]) not in known
        ]
        self._write([*self.entries, *added])

    def forget(self, names: Sequence[str]) -> int:
        """Let builds use sources and their copies again. Returns the number of deleted entries.

        A name that the list does not have may be the name of a copy. So the contents of the named files are
        compared, too.
        """
        meant = [e for e in self.entries if any(_means(name, e) for name in names)]
        contents = {e["fingerprint"] for e in meant}
        contents |= {s.fingerprint for s in identify([Source(_path(name)) for name in names], {}, retries=0)}
        contents.discard(None)
        kept = [e for e in self.entries if e not in meant and e["fingerprint"] not in contents]
        gone = len(self.entries) - len(kept)
        if gone:
            self._write(kept)
        return gone

    def _write(self, entries: list[RemovedSource]) -> None:
        self._dataset.write(_FILE, json.dumps(entries, indent=1).encode())
        self._take(entries)


def _are_entries(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(e, dict) and all(f in e and isinstance(e[f], str | None) for f in _FIELDS) for e in value
    )


def _means(name: str, row: NamedSource | RemovedSource) -> bool:
    return row["uri"] in (name, _path(name)) or row["source_id"] == name


def _path(name: str) -> str:
    return name if is_remote(name) else os.path.abspath(name)


def named(dataset: Dataset, names: Sequence[str]) -> list[SourceRow]:
    """The rows of `sources` that the user named by path, uri or source_id, and the rows of their copies.

    A source that was removed before is a valid name without a row. Raises `DatasetError` for a name that is
    not a source.
    """
    rows = list(dataset.rows("sources", ["source_id", "uri", "fingerprint", "duplicate_of", "clips"]))
    removed = Removed(dataset).entries
    found: list[SourceRow] = []
    for name in names:
        mine = [row for row in rows if _means(name, row)]
        if not mine and not any(_means(name, entry) for entry in removed):
            raise DatasetError(
                f"{name} is no source of {dataset.location}: name it by the path, uri or source_id that its "
                "table of sources has"
            )
        found += mine
    contents = {row["fingerprint"] for row in found if row["fingerprint"]}
    ids = {row["source_id"] for row in found}
    return [row for row in rows if row["source_id"] in ids or row["fingerprint"] in contents]


def drop_removed(dataset: Dataset) -> int:
    """Finish removals that were interrupted after they were listed. Returns the number of removed sources."""
    removed = Removed(dataset)
    if not removed.entries:
        return 0
    rows = dataset.rows("sources", ["source_id", "uri", "fingerprint"])
    return drop_sources(dataset, {r["source_id"] for r in rows if removed.bars(r["uri"], r["fingerprint"])})


def drop_sources(dataset: Dataset, source_ids: Collection[str]) -> int:
    """Remove the rows of sources and of their clips, part by part. Returns the number of removed sources.

    `drop_orphans` and `select` remove the captions, verdicts and shard rows of these clips.
    """
    dropped = 0
    for part in dataset.parts("sources") if source_ids else ():
        ids = dataset.read_part("sources", part, ["source_id"])["source_id"].to_pylist()
        if not (gone := set(ids) & set(source_ids)):
            continue
        sources: list[SourceRow] = dataset.read_part("sources", part).to_pylist()
        clips: list[ClipRow] = dataset.read_part("clips", part).to_pylist()
        dataset.commit_part(
            part,
            [s for s in sources if s["source_id"] not in gone],
            [{**c, "keys": keys_of(c)} for c in clips if c["source_id"] not in gone],
        )
        dropped += len(gone)
    return dropped


def drop_orphans(dataset: Dataset) -> None:
    """Remove the captions and failures of clips that no longer exist."""
    found = [(table, part, t) for table in ("captions", "failures") for part, t in dataset.tables(table)]
    clips = {c["clip_id"] for c in dataset.rows("clips", ["clip_id"])} if found else set()
    for table, part, content in found:
        kept = [r for r in content.to_pylist() if r["clip_id"] in clips]
        if not kept:
            dataset.remove(f"{table}/{part}.parquet")
        elif len(kept) < content.num_rows:
            dataset.write_table(f"{table}/{part}.parquet", kept, dataset.schema(table))
