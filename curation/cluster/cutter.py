"""The worker that cuts the clips of a planned shard and writes the shard."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from curation.cluster.rows import check_unchanged, fault, retries
from curation.config.load import validated
from curation.config.schema import Config
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.shards.write import shard_row, write_shard
from curation.store.dataset import Dataset
from curation.store.lease import fence
from curation.store.spent import told


class Cutter:
    """Cuts the clips of one planned shard and writes it. Returns what failed."""

    def __init__(self, config: dict[str, Any], location: str, config_hash: str):
        self._config: Config = validated(config)
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._dataset = Dataset(location)
        self._config_hash = config_hash
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._shard(row) for row in batch.to_pylist()])

    def _shard(self, task: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        # A worker may outlive the command, or the command be taken for dead: another one then writes here.
        self._dataset.guard = fence(self._dataset, task["token"]) if task["token"] else None
        clips = json.loads(task["clips"])
        rows: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        by_source: dict[str, list[dict[str, Any]]] = {}
        for clip in clips:
            by_source.setdefault(clip["source_id"], []).append(clip)
        for group in by_source.values():
            for clip, encoded, mp4 in self._cut(group[0]["uri"], group, failures):
                row = shard_row(
                    clip, encoded, mp4, clip["captions"], clip["source"]["extra"], self._config_hash
                )
                rows.append(row)
        written = write_shard(self._dataset, task["name"], rows, self._config) if rows else 0
        return {
            "name": task["name"],
            "rows": len(rows),
            "bytes": written,
            "seconds": sum(r["duration_s"] for r in rows),
            "failures": json.dumps(failures),
            "spent": json.dumps(told("cut", self._worker, time.monotonic() - began)),
        }

    def _cut(
        self, uri: str, group: list[dict[str, Any]], failures: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        """All spans of one source in one visit; a fault costs the span at which it happened."""
        left = sorted(group, key=lambda c: c["start_s"])
        fields = ("clip_id", "start_s", "end_s", "frames", "fps")
        attempts = retries(self._config)
        attempt = next(attempts)
        while left:
            request = {
                "op": "cut",
                "stage": "open",
                "uri": uri,
                "spans": [{f: c[f] for f in fields} for c in left],
                "cut": self._config.cut.model_dump(),
                "run": self._config.run.model_dump(),
            }
            try:
                check_unchanged(left[0]["source"])
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    head = message.head
                    assert left[0]["clip_id"] == head["clip_id"]
                    if head["kind"] == "clip":
                        yield left.pop(0), head, message.parts[0]
                    elif head["transient"] and attempt.left:
                        raise SourceFailed("cut", head["error"], head["message"], transient=True)
                    else:
                        failures.append(self._failure(left.pop(0), head))
            except SourceFailed as error:
                if attempt.again(error):
                    attempt = next(attempts)
                    continue
                lost = left if error.stage == "open" else left[:1]
                failures += [self._failure(clip, {**fault(error), "stage": "cut"}) for clip in lost]
                left = left[len(lost) :]

    def _failure(self, clip: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
        return {
            "clip_id": clip["clip_id"],
            "stage": head["stage"],
            "error": head["error"],
            "message": head["message"],
            "key": self._config.cut_hash(),
        }
