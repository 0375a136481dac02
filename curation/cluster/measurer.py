"""What runs in Ray's workers: measuring a part, scoring with a model, cutting a shard. Imports no Ray.

Rows between them have the columns of `STREAM`: one per candidate clip, and one per source after its clips.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.cluster.rows import (
    check_unchanged,
    clip_info,
    fault,
    retries,
    source_row,
    spent_row,
    split_jpegs,
    stream_row,
    stream_table,
)
from curation.config.load import validated
from curation.sandbox.parent import Child
from curation.sandbox.protocol import Message, SourceFailed
from curation.store.dataset import Dataset
from curation.store.schema import CLIPS
from curation.store.spent import Timed
from curation.verdicts.judge import columns_of, ordered, spared
from curation.verdicts.stale import Staleness
from filters import EMBEDDER
from filters.base import Frames

_ROWS_PER_BLOCK = 16
_MAX_JPEG_BYTES = 4 << 20  # per clip


class Measurer:
    """Measures parts, one source after another, through one decoding child."""

    def __init__(self, config: dict[str, Any], location: str):
        self._config = validated(config)
        self._plain = {key: value for key, value in config.items() if key != "captions"}  # for the child
        self._dataset = Dataset(location)
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._rules = ordered(self._config.rules)
        self._cheap = columns_of(list(self._config.local_scorers))
        self._keys = self._config.measure_keys()
        self._staleness = Staleness(self._config)
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        tables = Timed(self._tables(batch))
        yield from tables
        yield stream_table([spent_row("measure", self._worker, tables.seconds)])

    def _tables(self, batch: pa.Table) -> Iterator[pa.Table]:
        waiting: list[dict[str, Any]] = []
        for part in batch.to_pylist():
            for source in json.loads(part["sources"]):
                if "group" in source:
                    rows = self._of_group(source)
                elif source.pop("rescore"):
                    rows = self._rescored(part["part"], source)
                else:
                    rows = self._measured(source)
                for row in rows:
                    waiting.append({"part": part["part"], **row})
                    if len(waiting) == _ROWS_PER_BLOCK:
                        yield stream_table(waiting)
                        waiting = []
        yield stream_table(waiting)

    def _measured(self, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Everything about one source. Each attempt's clips carry its number, and so does the source's row:
        clips that were seen before a fault do not count."""
        request = {
            "op": "measure",
            "uri": source["uri"],
            "source_id": source["source_id"],
            "config": self._plain,
        }
        began = time.monotonic()
        before = source.pop("attempts_before", 0)  # of a long source, whose clips came in groups
        for attempt in retries(self._config):
            number = before + attempt.number
            measured: dict[str, Any] = {"status": "failed", "clips": 0}
            try:
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    if message.head["kind"] == "clip":
                        yield self._clip_row(source, message, number)
                    elif message.head["kind"] == "source":
                        measured = {"status": "measured", **message.head}
                check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                measured = {"status": "failed", "clips": 0, **fault(error)}
            if measured["status"] == "failed" and "stage" not in measured:
                measured |= {"stage": "measure", "error": "Incomplete", "message": "it stopped early"}
            measured.setdefault("seconds", time.monotonic() - began)
            yield source_row(source, measured, self._config, number)
            return

    def _of_group(self, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The clips of one group of a long source's spans, and a row `group` that says how that went. An
        attempt's clips are those of the one before: they may all count."""
        group, number = source.pop("group"), source.pop("number")
        request = {
            "op": "score",
            "uri": source["uri"],
            "source_id": source["source_id"],
            "config": self._plain,
            **group,
        }
        began = time.monotonic()
        done: dict[str, Any] = {"source_id": source["source_id"], "number": number, "error": None}
        for attempt in retries(self._config):
            try:
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    if message.head["kind"] == "clip":
                        yield self._clip_row(source, message, 0)
                check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                done["error"] = f"{error.error}: {error.message}"
            yield stream_row("group", {**done, "seconds": time.monotonic() - began})
            return

    def _clip_row(self, source: dict[str, Any], message: Message, attempt: int) -> dict[str, Any]:
        head = message.head
        parts = iter(message.parts)
        thumbnail = next(parts) if head.pop("has_thumbnail") else None
        media = "image" if head.pop("is_image") else "video"
        clip = {**head, **head.pop("scores"), "source_id": source["source_id"], "uri": source["uri"]}
        clip["keys"] = {
            n: self._keys[n] for n, s in self._config.local_scorers.items() if media in s.applies_to
        }
        return self._with_jpegs({**clip, "attempt": attempt}, list(parts), thumbnail)

    def _with_jpegs(
        self, clip: dict[str, Any], jpegs: list[bytes], thumbnail: bytes | None = None
    ) -> dict[str, Any]:
        """A row of the stream; frames for the model-backed scorers stay with it unless it is spared them."""
        if not self._config.score_all and spared(clip, self._rules, self._cheap):
            jpegs, clip["jpegs"] = [], {}
        groups = split_jpegs(jpegs, clip["jpegs"])
        while sum(map(len, jpegs)) > _MAX_JPEG_BYTES and max(map(len, groups.values())) > 1:
            # Only frames of tens of megapixels come to this.
            largest = max(groups, key=lambda n: sum(map(len, groups[n])) if len(groups[n]) > 1 else 0)
            groups[largest] = groups[largest][::2]
            jpegs = [jpeg for group in groups.values() for jpeg in group]
        clip["jpegs"] = {name: len(group) for name, group in groups.items()}
        return stream_row("clip", clip, jpegs, thumbnail)

    def _rescored(self, part: str, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The clips of a committed source, with the columns computed that are missing or out of date."""
        columns = [n for n in CLIPS.names if n not in ("thumbnail", "embedding")]
        table = self._dataset.read_part("clips", part, columns)
        waiting: dict[str, dict[str, Any]] = {}
        for clip in table.filter(pc.equal(table["source_id"], source["source_id"])).to_pylist():
            row = {**self._staleness.cleared(clip), "want": self._staleness.wanted(clip), "jpegs": {}}
            row |= {"attempt": 0, "new_embedding": EMBEDDER in self._staleness.outdated(clip)}
            waiting[row["clip_id"]] = row
        count = len(waiting)
        note: dict[str, Any] = {}
        for attempt in retries(self._config):
            try:
                check_unchanged(source)
                for clip_id, scores, jpegs, counts in self._scores(source["uri"], list(waiting.values())):
                    clip = waiting.pop(clip_id)
                    local = [n for n in clip.pop("want") if n in self._config.local_scorers]
                    clip |= {**scores, "jpegs": counts}
                    clip["keys"] |= {n: self._keys[n] for n in local}
                    yield self._with_jpegs(clip, jpegs)
                break
            except SourceFailed as error:
                if not attempt.again(error):
                    note = fault(error)
                    break
        for clip in waiting.values():  # they stay, not scored, and the next build tries again
            yield stream_row("clip", clip)
        yield stream_row("source", {**source, "rescored": True, "clips": count, "attempt": 0, **note})

    def _scores(
        self, uri: str, clips: list[dict[str, Any]]
    ) -> Iterator[tuple[str, dict[str, Any], list[bytes], dict[str, int]]]:
        """(clip_id, columns, JPEGs, how many for which scorer) of every clip."""
        scorers = self._config.filters
        by_frames = []
        for clip in clips:
            if any(scorers[n].sampling.kind != "none" for n in clip["want"]):
                by_frames.append(clip)
            else:  # what is known of it is enough: nothing is decoded
                values: dict[str, Any] = {}
                for name in clip["want"]:
                    values |= scorers[name]([Frames(clip_info(clip))])[0].values
                yield clip["clip_id"], values, [], {}
        if not by_frames:
            return
        fields = ("clip_id", "start_s", "end_s", "frames", "fps", "width", "height", "want")
        request = {
            "op": "rescore",
            "stage": "score",
            "uri": uri,
            "clips": [{f: c[f] for f in fields} for c in by_frames],
            "config": self._plain,
        }
        for message in self._child.request(request, self._config.run.deadline_seconds):
            if message.head["kind"] == "scores":
                head = message.head
                yield head["clip_id"], head["scores"], message.parts, head["jpegs"]
