"""The worker that looks at one piece of a long source."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pyarrow as pa

from curation.cluster.rows import LOOKS, retries
from curation.config.load import validated
from curation.config.schema import Config
from curation.decode.video import VideoInfo
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.store.spent import told


class Looker:
    """Looks at pieces of long sources (`segments.look`)."""

    def __init__(self, config: dict[str, Any]):
        self._config = validated(config)
        self._plain = {key: value for key, value in config.items() if key != "captions"}
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._look(row) for row in batch.to_pylist()], schema=LOOKS)

    def _look(self, task: dict[str, Any]) -> dict[str, Any]:
        fields = ("uri", "from_s", "until_s")
        request = {"op": "look", "config": self._plain, **{f: task[f] for f in fields}}
        found: dict[str, Any] = {"source_id": task["source_id"], "index": task["index"]}
        began = time.monotonic()
        for attempt in retries(self._config):
            try:
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    if message.head["kind"] == "piece":
                        found |= {"head": json.dumps(message.head), "arrays": message.parts}
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                found["error"] = f"{error.error}: {error.message}"
            break
        return {**found, "spent": json.dumps(told("look", self._worker, time.monotonic() - began))}


def probed(uri: str, config: Config) -> VideoInfo:
    """What a source's headers say. Raises `SourceFailed`."""
    with Child(config.run.child_memory_mb) as child:
        (message,) = child.request({"op": "probe", "uri": uri}, config.run.deadline_seconds)
        return VideoInfo(**{k: v for k, v in message.head.items() if k not in ("kind", "parts")})
