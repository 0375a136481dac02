"""The worker that cuts the clips of a planned shard and writes the shard."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from curation.cluster.rows import check_unchanged, retries
from curation.config.load import validated
from curation.config.schema import Config
from curation.decode import answers
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.shards.write import shard_row, write_shard
from curation.store.dataset import Dataset
from curation.store.failures import failure
from curation.store.lease import fence
from curation.store.rows import FailureRow, ShardRow
from curation.store.spent import told
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.cut import WRITTEN, CutClip, CutTask, WrittenShard


class Cutter:
    """Cuts the clips of one planned shard and writes it. Returns what failed."""

    def __init__(self, config: dict[str, Any], location: str, config_hash: str):
        self._config: Config = validated(config)
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._dataset = Dataset(location)
        self._config_hash = config_hash
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        return table_of([self._shard(task) for task in rows_of(batch)], WRITTEN)

    def _shard(self, task: CutTask) -> WrittenShard:
        began = time.monotonic()
        # A worker may outlive the command, or the command may be taken for dead. Then another command writes.
        self._dataset.guard = fence(self._dataset, task["token"]) if task["token"] else None
        rows: list[ShardRow] = []
        failures: list[FailureRow] = []
        by_source: dict[str, list[CutClip]] = {}
        for clip in task["clips"]:
            by_source.setdefault(clip["source_id"], []).append(clip)
        for group in by_source.values():
            for clip, encoded in self._cut(group[0]["uri"], group, failures):
                rows.append(shard_row(clip, encoded, self._config_hash))
        written = write_shard(self._dataset, task["name"], rows, self._config) if rows else 0
        return {
            "name": task["name"],
            "rows": len(rows),
            "bytes": written,
            "seconds": sum(r["duration_s"] for r in rows),
            "failures": failures,
            "spent": told("cut", self._worker, time.monotonic() - began),
        }

    def _cut(
        self, uri: str, group: Sequence[CutClip], failures: list[FailureRow]
    ) -> Iterator[tuple[CutClip, answers.EncodedAnswer]]:
        """All spans of one source in one visit; a fault costs the span at which it happened."""
        left = sorted(group, key=lambda c: c["start_s"])
        attempts = retries(self._config)
        attempt = next(attempts)
        while left:
            request = {
                "op": "cut",
                "stage": "open",
                "uri": uri,
                "fields": left[0]["source"]["fields"],
                "spans": [_span(clip) for clip in left],
                "cut": self._config.cut.model_dump(),
                "run": self._config.run.model_dump(),
            }
            try:
                check_unchanged(left[0]["source"])
                messages = self._child.request(request, self._config.run.deadline_seconds)
                for answer in answers.cut(messages):
                    assert left[0]["clip_id"] == answer.clip_id
                    if isinstance(answer, answers.EncodedAnswer):
                        yield left.pop(0), answer
                    elif answer.transient and attempt.left:
                        raise SourceFailed("cut", answer.error, answer.message, transient=True)
                    else:
                        failures.append(
                            self._failure(left.pop(0), answer.stage, answer.error, answer.message)
                        )
            except SourceFailed as error:
                if attempt.again(error):
                    attempt = next(attempts)
                    continue
                lost = left if error.stage == "open" else left[:1]
                failures += [self._failure(clip, "cut", error.error, error.message) for clip in lost]
                left = left[len(lost) :]

    def _failure(self, clip: CutClip, stage: str, error: str, message: str) -> FailureRow:
        return failure(clip["clip_id"], stage, error, message, self._config.cut_hash())


def _span(clip: CutClip) -> dict[str, Any]:
    """`decode.cut.Wanted`, as JSON."""
    return {
        "clip_id": clip["clip_id"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "frames": clip["frames"],
        "fps": clip["fps"],
    }
