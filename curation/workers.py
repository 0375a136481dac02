"""What runs in Ray's workers: measuring a part, scoring with a model, cutting a shard. Imports no Ray.

Rows between them have the columns of `STREAM`: one per candidate clip, and one per source after its clips.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from curation.child import Child, Message, SourceFailed
from curation.config import Config, validated
from curation.dataset import Dataset
from curation.sampling import nearest
from curation.select import columns_of, ordered, spared
from curation.shards import shard_row, write_shard
from curation.spans import Span
from filters.base import ClipInfo, Frames, Sampling, Scorer, measure_key

STREAM = pa.schema(
    [
        ("part", pa.string()),
        ("kind", pa.string()),  # clip or source
        ("data", pa.string()),  # JSON: the row, but for what is binary
        ("thumbnail", pa.binary()),
        ("jpegs", pa.list_(pa.binary())),  # frames for model-backed scorers
        ("embedding", pa.list_(pa.float32())),
    ]
)
_ROWS_PER_BLOCK = 16
_MAX_JPEG_BYTES = 4 << 20  # per clip


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=STREAM)


class Measurer:
    """Measures parts, one source after another, through one decoding child."""

    def __init__(self, config: dict[str, Any]):
        self._config = validated(config)
        self._plain = config
        self._child = Child(self._config.run.child_memory_mb)
        self._rules = ordered(self._config.rules)
        self._cheap = columns_of(list(self._config.local_scorers))
        self._keys = self._config.measure_keys()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        waiting: list[dict[str, Any]] = []
        for part in batch.to_pylist():
            for source in json.loads(part["sources"]):
                for row in self._rows(source):
                    waiting.append({"part": part["part"], **row})
                    if len(waiting) == _ROWS_PER_BLOCK:
                        yield _table(waiting)
                        waiting = []
        yield _table(waiting)

    def _rows(self, source: dict[str, Any]) -> Iterator[dict[str, Any]]:
        request = {
            "op": "measure",
            "uri": source["uri"],
            "source_id": source["source_id"],
            "config": self._plain,
        }
        measured: dict[str, Any] = {"status": "failed", "clips": 0}
        clips: list[str] = []
        try:
            for message in self._child.request(request, self._config.run.deadline_seconds):
                if message.head["kind"] == "clip":
                    clips.append(message.head["clip_id"])
                    yield self._clip_row(source, message)
                elif message.head["kind"] == "source":
                    measured = {"status": "measured", **message.head}
        except SourceFailed as error:
            # Clips that were seen before the fault do not count: a source is measured, or failed, as a whole.
            measured |= {"stage": error.stage, "error": error.error, "message": error.message}
        if measured["status"] == "failed" and "stage" not in measured:
            measured |= {"stage": "measure", "error": "Incomplete", "message": "the decoder stopped early"}
        row = {**source, **measured, "config_hash": self._config.spans_hash()}
        yield {"kind": "source", "data": json.dumps(row), "jpegs": [], "embedding": None, "thumbnail": None}

    def _clip_row(self, source: dict[str, Any], message: Message) -> dict[str, Any]:
        head = message.head
        parts = iter(message.parts)
        thumbnail = next(parts) if head.pop("has_thumbnail") else None
        jpegs = list(parts)
        scores = head.pop("scores")
        is_image = head.pop("is_image")
        media = "image" if is_image else "video"
        clip = {**head, **scores, "source_id": source["source_id"], "uri": source["uri"]}
        clip["keys"] = {
            n: self._keys[n] for n, s in self._config.local_scorers.items() if media in s.applies_to
        }
        if not self._config.score_all and spared(clip, self._rules, self._cheap):
            jpegs, clip["jpeg_times_s"] = [], []
        while sum(map(len, jpegs)) > _MAX_JPEG_BYTES:  # only frames of tens of megapixels come to this
            jpegs, clip["jpeg_times_s"] = jpegs[::2], clip["jpeg_times_s"][::2]
        return {
            "kind": "clip",
            "data": json.dumps(clip),
            "thumbnail": thumbnail,
            "jpegs": jpegs,
            "embedding": None,
        }


class ModelScorer:
    """Runs one model-backed scorer over the clips that nothing has rejected yet, in batches."""

    def __init__(self, config: dict[str, Any], name: str, *, is_last: bool):
        self._config = validated(config)
        self._name = name
        self._scorer: Scorer = self._config.filters[name]
        self._key = measure_key(self._scorer)
        self._rules = ordered(self._config.rules)
        # What is scored before this one: a rule on it that fails spares this one.
        order = list(self._config.filters)
        self._before = columns_of(order[: order.index(name)])
        self._is_last = is_last

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        wanted: list[tuple[int, dict[str, Any], Frames]] = []
        for i, row in enumerate(rows):
            if row["kind"] != "clip" or not row["jpegs"]:
                continue
            clip = json.loads(row["data"])
            if not self._config.score_all and spared(clip, self._rules, self._before):
                continue
            if _info(clip).media in self._scorer.applies_to:
                wanted.append((i, clip, _frames(clip, row["jpegs"], self._scorer.sampling)))
        found = self._scorer([frames for _, _, frames in wanted]) if wanted else []
        for (i, clip, _), scores in zip(wanted, found, strict=True):
            clip["keys"][self._name] = self._key
            rows[i]["data"] = json.dumps({**clip, **scores.values})
            if scores.embedding is not None:
                rows[i]["embedding"] = scores.embedding.astype(np.float32).tolist()
        if self._is_last:
            for row in rows:
                row["jpegs"] = []
        return _table(rows)


def _info(clip: dict[str, Any]) -> ClipInfo:
    duration = clip["end_s"] - clip["start_s"]
    return ClipInfo(duration, clip["frames"], clip["fps"], clip["width"], clip["height"])


def _frames(clip: dict[str, Any], jpegs: list[bytes], sampling: Sampling) -> Frames:
    """The frames that a scorer asked for, out of those that were kept for all of them."""
    span = Span(clip["start_s"], clip["end_s"], clip["frames"])
    size = sampling.size(clip["width"], clip["height"])
    images = []
    for i in nearest(clip["jpeg_times_s"], span, sampling.n):
        flag = cv2.IMREAD_GRAYSCALE if sampling.color == "gray" else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(jpegs[i], np.uint8), flag)
        assert image is not None
        if sampling.color == "rgb":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if (image.shape[1], image.shape[0]) != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        images.append(image)
    return Frames(_info(clip), images)


class Cutter:
    """Cuts the clips of one planned shard and writes it. Returns what failed."""

    def __init__(self, config: dict[str, Any], location: str, config_hash: str):
        self._config: Config = validated(config)
        self._child = Child(self._config.run.child_memory_mb)
        self._dataset = Dataset(location)
        self._config_hash = config_hash

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._shard(row) for row in batch.to_pylist()])

    def _shard(self, task: dict[str, Any]) -> dict[str, Any]:
        clips = json.loads(task["clips"])
        rows: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        by_uri: dict[str, list[dict[str, Any]]] = {}
        for clip in clips:
            by_uri.setdefault(clip["uri"], []).append(clip)
        for uri, group in by_uri.items():
            for clip, encoded, mp4 in self._cut(uri, group, failures):
                row = shard_row(clip, encoded, mp4, clip["captions"], clip["extra"], self._config_hash)
                rows.append(row)
        written = write_shard(self._dataset, task["name"], rows, self._config) if rows else 0
        return {
            "name": task["name"],
            "rows": len(rows),
            "bytes": written,
            "seconds": sum(r["duration_s"] for r in rows),
            "failures": json.dumps(failures),
        }

    def _cut(
        self, uri: str, group: list[dict[str, Any]], failures: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any], bytes]]:
        """All spans of one source in one visit; a fault costs the span at which it happened."""
        left = sorted(group, key=lambda c: c["start_s"])
        fields = ("clip_id", "start_s", "end_s", "frames", "fps")
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
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    clip = left.pop(0)
                    assert clip["clip_id"] == message.head["clip_id"]
                    if message.head["kind"] == "clip":
                        yield clip, message.head, message.parts[0]
                    else:
                        failures.append(self._failure(clip, message.head))
            except SourceFailed as error:
                head = {"stage": "cut", "error": error.error, "message": error.message}
                lost = left if error.stage == "open" else left[:1]
                failures += [self._failure(clip, head) for clip in lost]
                left = left[len(lost) :]

    def _failure(self, clip: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
        return {
            "clip_id": clip["clip_id"],
            "stage": head["stage"],
            "error": head["error"],
            "message": head["message"],
            "key": self._config.cut_hash(),
        }
