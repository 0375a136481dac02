"""Is a dataset sound? The accounting of every source and clip, and a check of every row and every byte."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curation.audit.accounting import STATUSES
from curation.audit.decoder import Decoder, one_line
from curation.captions.chosen import Captions, with_checks
from curation.config.hdr import hdr_name
from curation.config.load import stored_config
from curation.config.schema import ConfigError
from curation.decode.shots.spans import Span
from curation.store.dataset import Dataset
from curation.store.intact import NOT_AS_WRITTEN, video_hash
from curation.store.rows import ClipRow, ShardRow
from curation.store.schema import (
    CAPTION_COLUMNS,
    FIELDS,
    FILE_START,
    MAX_SECONDS,
    SCHEMA_VERSION,
    TRANSFER,
    VIDEO_HASH,
    is_score,
    with_check_columns,
    with_score_columns,
)
from curation.verdicts.judge import judge
from filters import SCORERS
from filters.rules import Rule

_MOST_OF_A_KIND = 20  # messages; the rest of a kind is counted
_MOST_CHARS = 500  # of a message
_TIME_SLACK_S = 1e-3


# ---------------------------------------------------------------------------------------------------
# The check of everything
# ---------------------------------------------------------------------------------------------------


def verify(
    dataset: Dataset, *, decode: bool = False, told: Callable[[int, int], None] = lambda done, total: None
) -> list[str]:
    """Everything that is wrong with a dataset, one line each; none when it is sound.

    Reads every byte of every part, with page checksums verified, and checks the schemas and the
    invariants within and between tables; `decode` also decodes every clip in full. Holds one row group
    at a time, and the ids of all clips. A table that cannot be read in full is not compared with others.
    `told` gets the number of clips in shards that were read, and the number that there should be.
    Raises `curation.store.dataset.DatasetError` when there is no dataset that this version can read.
    """
    check = _Check(dataset, decode=decode, told=told)
    try:
        return check.run()
    finally:
        if check.decoder is not None:
            check.decoder.stop()


class _Found:
    """Violations by kind, so that a thousand of one kind do not hide the only one of another."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, message: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= _MOST_OF_A_KIND:
            self._by_kind.setdefault(kind, []).append(message[:_MOST_CHARS])

    def lines(self) -> list[str]:
        lines = []
        for kind, messages in self._by_kind.items():
            lines += sorted(messages)
            if self._counts[kind] > len(messages):
                lines.append(f"{kind}: {self._counts[kind] - len(messages)} more")
        return lines


@dataclass
class _Source:
    """What the clips of a source are compared with, and what was found of them."""

    clips: int
    duration_s: float | None
    transfer: str | None
    found: int = 0
    first_s: float = math.inf
    last_s: float = -math.inf


class _Check:
    """One verification: what was read so far, and what is wrong with it."""

    def __init__(self, dataset: Dataset, *, decode: bool, told: Callable[[int, int], None]):
        self.dataset = dataset
        self.told = told
        self.decoder = Decoder() if decode else None
        self.found = _Found()
        self.damaged: set[str] = set()  # tables that could not be read in full
        self.sources: dict[str, _Source] = {}
        self.verdicts: dict[str, tuple[str, str | None]] = {}  # clip_id -> status, reason
        self.clip_ids: set[str] = set()
        self.captioned: list[tuple[str, str]] = []  # file, clip_id
        self.captions: Captions | None = None  # None: they cannot be compared with
        self.version = SCHEMA_VERSION
        self.rejects_hdr = False

    def run(self) -> list[str]:
        manifest = self.dataset.manifest()
        for name in self.dataset.unfinished():
            self.found.add("leftover", f"{name} is a leftover of a write that was cut short")
        self.commits()
        self.read_sources()
        self.version = manifest["schema_version"]
        settings = manifest["config"].get("cut")
        self.rejects_hdr = isinstance(settings, dict) and settings.get("hdr") == "reject"
        self.read_verdicts()
        self.read_captions(manifest)
        self.read_clips(self.rules(manifest))
        self.compare_sources_and_clips()
        self.compare_verdicts_and_clips()
        self.read_shards()
        self.compare_captions_and_clips()
        self.read_failures()
        return self.found.lines()

    # -- reading ------------------------------------------------------------------------------------

    def groups(self, table: str) -> Iterator[tuple[str, pa.Table]]:
        """(file, rows of one row group), of the committed parts that have the contract's schema."""
        if table == "verdicts":
            names = ["verdicts.parquet"]
        else:
            parts = self.dataset.parts(table)
            if table == "clips":
                committed = set(self.dataset.parts("sources"))
                parts = [p for p in parts if p in committed]
            names = [f"{table}/{part}.parquet" for part in parts]
        for name in names:
            yield from self._groups_of(table, name)

    def _groups_of(self, table: str, name: str) -> Iterator[tuple[str, pa.Table]]:
        schema = self.dataset.schema(table)
        older = self.version == 1 and table == "captions"
        if older:  # they have no checks yet: the next command that writes adds the columns
            schema = pa.schema([field for field in schema if field.name not in CAPTION_COLUMNS])
        # Only reading is inside the `try`: what the caller does with the rows is not.
        try:
            file = self.dataset.open_table(name, checked=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            self._unreadable(table, name, error)
            return
        if self.version < SCHEMA_VERSION and table == "shards" and VIDEO_HASH not in file.schema_arrow.names:
            schema = pa.schema([field for field in schema if field.name != VIDEO_HASH])  # so, too
        if table == "sources":  # columns that were written later
            gone = {FILE_START, TRANSFER, FIELDS} - set(file.schema_arrow.names)
            schema = pa.schema([field for field in schema if field.name not in gone])
        if table in ("clips", "shards"):  # a column of a filter that came later is missing in older parts
            there = [n for n in file.schema_arrow.names if n in self.dataset.score_columns]
            schema = pa.schema([f for f in schema if not is_score(f.name) or f.name in there])
        try:
            if not file.schema_arrow.equals(schema, check_metadata=False):
                self.damaged.add(table)
                difference = _difference(file.schema_arrow, schema)
                self.found.add("schema", f"{name}: the schema is not the contract's: {difference}")
                return
            for i in range(file.num_row_groups):
                try:
                    rows = file.read_row_group(i)
                    rows.validate(full=True)
                except (OSError, ValueError, pa.ArrowException) as error:
                    self._unreadable(table, f"{name}, row group {i},", error)
                    continue
                rows = with_check_columns(rows, None) if older else rows
                yield name, with_score_columns(rows, self.dataset.schema(table).names)
        finally:
            file.close(force=True)

    def _unreadable(self, table: str, what: str, error: Exception) -> None:
        self.damaged.add(table)
        self.found.add("unreadable", f"{what} cannot be read: {one_line(error)}")

    def whole(self, *tables: str) -> bool:
        """Were these tables read in full? Otherwise what is missing in them is no news."""
        return not self.damaged.intersection(tables)

    # -- checks -------------------------------------------------------------------------------------

    def rules(self, manifest: Mapping[str, Any]) -> dict[str, Rule]:
        """The rules of dataset.json that reject, in the order of the cascade."""
        rules: dict[str, Rule] = {}
        config = manifest["config"]
        captions, given = config.get("captions", {}), config.get("rules", {})
        kept = isinstance(captions, dict) and captions.get("on_failed_check") == "keep"
        if not isinstance(given, dict):
            self.found.add("rule", "dataset.json: rules is no mapping of columns to bounds")
            given = {}
        for column, bounds in given.items():
            try:
                rule = Rule(**bounds)
            except (TypeError, ValueError) as error:
                self.found.add("rule", f"dataset.json: rules.{column} is no rule: {error}")
                continue
            if column in self.dataset.score_columns or (column in CAPTION_COLUMNS and not kept):
                rules[column] = rule
            elif column not in CAPTION_COLUMNS:
                self.found.add("rule", f"dataset.json: rules.{column} is on no score column")
        try:
            order = stored_config(manifest, self.dataset.location).ordered_rules
        except ConfigError:  # `read_captions` says so
            order = {c.name: Rule(0, 0, s.applies_to) for s in SCORERS.values() for c in s.columns}
        media = {column: rule.applies_to for column, rule in order.items()}
        in_order = [*(c for c in order if c in rules), *(c for c in rules if c not in order)]
        return {c: replace(rules[c], applies_to=media.get(c, rules[c].applies_to)) for c in in_order}

    def commits(self) -> None:
        """Sources and clips are committed in pairs of parts."""
        sources, clips = set(self.dataset.parts("sources")), set(self.dataset.parts("clips"))
        for part in clips - sources:
            message = f"clips/{part}.parquet was never committed: there is no sources/{part}.parquet"
            self.found.add("uncommitted", message)
        for part in sources - clips:
            self.damaged.add("clips")
            self.found.add(
                "clips gone", f"clips/{part}.parquet is missing, and sources/{part}.parquet is there"
            )

    def read_sources(self) -> None:
        for name, table in self.groups("sources"):
            columns = ["source_id", "uri", "status", "stage", "clips", "duration_s", "transfer"]
            for row in table.select([c for c in columns if c in table.column_names]).to_pylist():
                source_id = row["source_id"]
                label = f"{name}: source {source_id}"
                if source_id in self.sources:
                    self.found.add("source twice", f"{label} is there twice")
                    continue
                self.sources[source_id] = _Source(row["clips"] or 0, row["duration_s"], row.get("transfer"))
                if row["uri"] is None:
                    self.found.add("source uri", f"{label} has no uri")
                if row["status"] not in ("measured", "failed"):
                    self.found.add("source status", f"{label} is {row['status']!r}, not measured or failed")
                elif (row["stage"] is None) == (row["status"] == "failed"):
                    self.found.add("source stage", f"{label} is {row['status']} with stage {row['stage']!r}")

    def read_verdicts(self) -> None:
        if not self.dataset.exists("verdicts.parquet"):
            if self.dataset.parts("clips"):
                self.damaged.add("verdicts")
                self.found.add("no verdicts", "verdicts.parquet is missing")
            return
        for name, table in self.groups("verdicts"):
            for row in table.select(["clip_id", "status", "reason"]).to_pylist():
                clip_id, status, reason = row["clip_id"], row["status"], row["reason"]
                label = f"{name}: clip {clip_id}"
                if clip_id in self.verdicts:
                    self.found.add("verdict twice", f"{label} has two verdicts")
                    continue
                self.verdicts[clip_id] = (status, reason)
                if status not in STATUSES:
                    self.found.add("verdict status", f"{label} is {status!r}, not {', '.join(STATUSES)}")
                elif (reason is None) != (status == "accepted"):
                    self.found.add("verdict reason", f"{label} is {status} with reason {reason!r}")

    def read_clips(self, rules: Mapping[str, Rule]) -> None:
        columns = ["clip_id", "source_id", "start_s", "end_s", "frames", "fps", *self.dataset.score_columns]
        for name, table in self.groups("clips"):
            for row in table.select(columns).to_pylist():
                label = f"{name}: clip {row['clip_id']}"
                if row["clip_id"] in self.clip_ids:
                    self.found.add("clip twice", f"{label} is there twice")
                    continue
                self.clip_ids.add(row["clip_id"])
                problem = _span_problem(row)
                if problem:
                    self.found.add("span", f"{label} {problem}")
                if source := self.sources.get(row["source_id"]):
                    source.found += 1
                    if problem is None:
                        source.first_s = min(source.first_s, row["start_s"])
                        source.last_s = max(source.last_s, row["end_s"])
                elif self.whole("sources"):
                    self.found.add(
                        "clip without a source", f"{label} is of no known source {row['source_id']}"
                    )
                if problem := self._verdict_problem(row, rules):
                    self.found.add("verdict", f"{label} {problem}")

    def _verdict_problem(self, clip: ClipRow, rules: Mapping[str, Rule]) -> str | None:
        if clip["clip_id"] not in self.verdicts:
            return "has no verdict" if self.whole("verdicts") else None
        status, reason = self.verdicts[clip["clip_id"]]
        source = self.sources.get(clip["source_id"])
        if self.rejects_hdr and source is None:  # it is said that the source is not there
            return None
        hdr = hdr_name(source.transfer) if self.rejects_hdr and source else None
        scores = with_checks(clip, self.captions)
        by_rules = judge(scores, rules, None, is_image=clip["fps"] is None, hdr=hdr)
        # Failing is decided by what happened after the rules, never by them.
        if by_rules.status == "accepted" and status == "rejected":
            return f"is rejected by {reason}, and the rules of dataset.json accept it"
        if by_rules.status == "rejected" and (status in ("accepted", "failed") or reason != by_rules.reason):
            by = f" by {reason}" if reason else ""
            return f"is {status}{by}, and the rules of dataset.json reject it by {by_rules.reason}"
        return None

    def compare_sources_and_clips(self) -> None:
        if not self.whole("sources", "clips"):
            return
        for source_id, source in self.sources.items():
            if source.clips != source.found:
                message = f"source {source_id} says {source.clips} clips and has {source.found} clip rows"
                self.found.add("clips of a source", message)
            length_s = source.last_s - source.first_s
            if (
                source.duration_s is not None
                and source.found
                and length_s > source.duration_s + _TIME_SLACK_S
            ):
                message = (
                    f"source {source_id} is {source.duration_s:.3f} s long, its clips span {length_s:.3f} s"
                )
                self.found.add("times of a source", message)

    def compare_verdicts_and_clips(self) -> None:
        if self.whole("verdicts", "clips"):
            for clip_id in self.verdicts.keys() - self.clip_ids:
                message = f"verdicts.parquet: clip {clip_id} is no committed clip"
                self.found.add("verdict without a clip", message)

    def read_shards(self) -> None:
        seen: dict[str, str] = {}  # clip_id -> file
        accepted = sum(status == "accepted" for status, _ in self.verdicts.values())
        for name, table in self.groups("shards"):
            for i, row in enumerate(table.drop_columns(["video"]).to_pylist()):
                clip_id = row["clip_id"]
                label = f"{name}: clip {clip_id}"
                if clip_id in seen:
                    where = "twice" if seen[clip_id] == name else f"in {seen[clip_id]} as well"
                    self.found.add("shard row twice", f"{label} is there {where}")
                    continue
                seen[clip_id] = name
                if problem := self._shard_problem(clip_id):
                    self.found.add("shard row", f"{label} {problem}")
                if self.captions and row["caption"] != (text := self.captions.text(clip_id)):
                    message = (
                        f"{label} has the caption {_shown(row['caption'])}, and captions say {_shown(text)}"
                    )
                    self.found.add("caption of a shard row", message)
                if problem := _span_problem(row, is_cut=True):
                    self.found.add("span in a shard", f"{label} {problem}")
                mp4 = table["video"][i].as_py()  # one at a time: a row group of them is large
                if not mp4 or not mp4["bytes"]:
                    self.found.add("no video", f"{label} has no video bytes")
                elif VIDEO_HASH in row and row[VIDEO_HASH] != video_hash(mp4["bytes"]):
                    self.found.add("damaged video", f"{label} {NOT_AS_WRITTEN}")
                elif self.decoder and (problem := self.decoder.problem(mp4["bytes"], row)):
                    self.found.add("video", f"{label} {problem}")
                self.told(len(seen), max(len(seen), accepted))
        if self.whole("verdicts", "clips", "shards"):
            for clip_id, (status, _) in self.verdicts.items():
                if status == "accepted" and clip_id in self.clip_ids and clip_id not in seen:
                    self.found.add("no shard row", f"clip {clip_id} is accepted and in no shard")

    def _shard_problem(self, clip_id: str) -> str | None:
        if clip_id in self.verdicts:
            status, _ = self.verdicts[clip_id]
            return None if status == "accepted" else f"is in a shard and {status}"
        if clip_id not in self.clip_ids and self.whole("clips"):
            return "is in a shard and no committed clip"
        return None  # a committed clip without a verdict was reported as such

    def read_captions(self, manifest: Mapping[str, Any]) -> None:
        tables = []
        for name, table in self.groups("captions"):
            tables.append(table)
            for row in table.select(["clip_id", "text"]).to_pylist():
                self.captioned.append((name, row["clip_id"]))
                if row["text"] is None:
                    self.found.add("caption", f"{name}: clip {row['clip_id']} has a caption without text")
        try:
            config = stored_config(manifest, self.dataset.location)
        except ConfigError as error:
            self.found.add("config", one_line(error))
        else:
            self.captions = Captions(tables, config) if self.whole("captions") else None

    def compare_captions_and_clips(self) -> None:
        for name, clip_id in self.captioned:
            self._refers(name, clip_id)
        for clip_id in self.captions.twice() if self.captions else ():
            self.found.add("caption twice", f"clip {clip_id} has two captions of one kind and key")

    def read_failures(self) -> None:
        stages: dict[str, set[str]] = {}
        for name, table in self.groups("failures"):
            for row in table.select(["clip_id", "stage"]).to_pylist():
                self._refers(name, row["clip_id"])
                stages.setdefault(row["clip_id"], set()).add(row["stage"])
        if self.whole("failures", "verdicts"):
            for clip_id, (status, reason) in self.verdicts.items():
                if status == "failed" and reason not in stages.get(clip_id, ()):
                    message = (
                        f"verdicts.parquet: clip {clip_id} failed by {reason}, and failures has no such row"
                    )
                    self.found.add("failed verdict", message)

    def _refers(self, name: str, clip_id: str) -> None:
        if self.whole("clips") and clip_id not in self.clip_ids:
            self.found.add("unknown clip", f"{name}: clip {clip_id} is no committed clip")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    missing = [n for n in wanted.names if n not in found.names]
    extra = [n for n in found.names if n not in wanted.names]
    common = [n for n in wanted.names if n in found.names]
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unknown {', '.join(extra)}"] if extra else []
    parts += [
        f"{n} is {found.field(n).type}, not {wanted.field(n).type}"
        for n in common
        if found.field(n).type != wanted.field(n).type
    ]
    return "; ".join(parts) or "the columns are in another order"


def _shown(text: str | None) -> str:
    return "null" if text is None else repr(text[:60])


def _span_problem(row: ClipRow | ShardRow, *, is_cut: bool = False) -> str | None:
    """What is wrong with the times of a clip, and with the id that is made of them. The frames of a clip
    that was cut are the encoder's, which may have another rate."""
    from curation.decode.measure import clip_id  # it brings the decoder and the detectors

    start_s, end_s, frames, fps = row["start_s"], row["end_s"], row["frames"], row["fps"]
    if start_s is None or end_s is None or frames is None:
        return "has no start, end or frames"
    if not (abs(start_s) < MAX_SECONDS and abs(end_s) < MAX_SECONDS):
        return f"is from {start_s} s to {end_s} s"
    if fps is None and (frames != 1 or start_s != end_s):
        return f"is a still image with {frames} frames from {start_s:g} s to {end_s:g} s"
    if fps is not None and not (start_s < end_s and frames > 0 and 0 < fps < math.inf):
        return f"has {frames} frames at {fps:g} per second from {start_s:g} s to {end_s:g} s"
    if row["clip_id"] != clip_id(row["source_id"], Span(start_s, end_s, frames)):
        return "has an id that is not the hash of its source and times"
    return None
