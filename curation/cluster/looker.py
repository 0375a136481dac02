"""The worker that looks at one piece of a long source."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict
from typing import Any, cast

import pyarrow as pa

from curation.cluster.rows import retries
from curation.config.load import validated
from curation.config.schema import Config
from curation.decode import answers
from curation.decode.pixels.frame import VideoInfo
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.store.spent import told
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.look import LOOKS, LookRow, LookTask, PieceRow


class Looker:
    """Looks at pieces of long sources (`segments.look`)."""

    def __init__(self, config: dict[str, Any]):
        self._config = validated(config)
        self._plain = {key: value for key, value in config.items() if key != "captions"}
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        return table_of([self._look(task) for task in rows_of(batch)], LOOKS)

    def _look(self, task: LookTask) -> LookRow:
        where = {"uri": task["uri"], "from_s": task["from_s"], "until_s": task["until_s"]}
        request = {"op": "look", "config": self._plain, **where}
        piece: PieceRow | None = None
        fault: str | None = None
        began = time.monotonic()
        for attempt in retries(self._config):
            try:
                for answer in answers.looked(self._child.request(request, self._config.run.deadline_seconds)):
                    piece = cast(PieceRow, asdict(answer))
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                piece, fault = None, f"{error.error}: {error.message}"
            break
        return {
            "source_id": task["source_id"],
            "index": task["index"],
            "piece": piece,
            "error": fault,
            "spent": told("look", self._worker, time.monotonic() - began),
        }


def probed(uri: str, config: Config) -> VideoInfo:
    """Read the headers of a source. Raises `SourceFailed`."""
    with Child(config.run.child_memory_mb) as child:
        return answers.probed(child.request({"op": "probe", "uri": uri}, config.run.deadline_seconds))
