"""What runs in Ray's workers: measuring a part, scoring with a model, cutting a shard. Imports no Ray.

Rows between them have the columns of `STREAM`: one per candidate clip, and one per source after its clips.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.config.schema import Config, validated
from curation.decode.video import VideoInfo
from curation.sandbox.parent import Child, Message, SourceFailed
from curation.shards.write import shard_row, write_shard
from curation.sources.listing import changed_since
from curation.store.dataset import CLIPS, Dataset
from curation.store.spent import Timed, told
from curation.store.transient import is_transient
from curation.verdicts.judge import columns_of, ordered, spared
from curation.verdicts.stale import Staleness
from filters import EMBEDDER
from filters.base import ClipInfo, Frames, Sampling, Scorer, measure_key

STREAM = pa.schema(
    [
        ("part", pa.string()),
        ("kind", pa.string()),  # clip, source, group, note or spent
        ("data", pa.string()),  # JSON: the row, but for what is binary
        ("thumbnail", pa.binary()),
        ("jpegs", pa.list_(pa.binary())),  # frames for model-backed scorers
        ("embedding", pa.list_(pa.float32())),
    ]
)
LOOKS = pa.schema(
    [
        ("source_id", pa.string()),
        ("index", pa.int32()),
        ("head", pa.string()),  # JSON; null: it failed
        ("arrays", pa.list_(pa.binary())),
        ("error", pa.string()),
        ("spent", pa.string()),  # JSON: `spent.told`
    ]
)
Row = dict[str, Any]
_ROWS_PER_BLOCK = 16
_MAX_JPEG_BYTES = 4 << 20  # per clip


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=STREAM)


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
        yield _table([_told("measure", self._worker, tables.seconds)])

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
                        yield _table(waiting)
                        waiting = []
        yield _table(waiting)

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
        for attempt in _attempts(self._config):
            number = before + attempt.number
            measured: dict[str, Any] = {"status": "failed", "clips": 0}
            try:
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    if message.head["kind"] == "clip":
                        yield self._clip_row(source, message, number)
                    elif message.head["kind"] == "source":
                        measured = {"status": "measured", **message.head}
                _check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                measured = {"status": "failed", "clips": 0, **_fault(error)}
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
        for attempt in _attempts(self._config):
            try:
                for message in self._child.request(request, self._config.run.deadline_seconds):
                    if message.head["kind"] == "clip":
                        yield self._clip_row(source, message, 0)
                _check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                done["error"] = f"{error.error}: {error.message}"
            yield _row("group", {**done, "seconds": time.monotonic() - began})
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
        groups = _split(jpegs, clip["jpegs"])
        while sum(map(len, jpegs)) > _MAX_JPEG_BYTES and max(map(len, groups.values())) > 1:
            # Only frames of tens of megapixels come to this.
            largest = max(groups, key=lambda n: sum(map(len, groups[n])) if len(groups[n]) > 1 else 0)
            groups[largest] = groups[largest][::2]
            jpegs = [jpeg for group in groups.values() for jpeg in group]
        clip["jpegs"] = {name: len(group) for name, group in groups.items()}
        return _row("clip", clip, jpegs, thumbnail)

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
        for attempt in _attempts(self._config):
            try:
                _check_unchanged(source)
                for clip_id, scores, jpegs, counts in self._scores(source["uri"], list(waiting.values())):
                    clip = waiting.pop(clip_id)
                    local = [n for n in clip.pop("want") if n in self._config.local_scorers]
                    clip |= {**scores, "jpegs": counts}
                    clip["keys"] |= {n: self._keys[n] for n in local}
                    yield self._with_jpegs(clip, jpegs)
                break
            except SourceFailed as error:
                if not attempt.again(error):
                    note = _fault(error)
                    break
        for clip in waiting.values():  # they stay, not scored, and the next build tries again
            yield _row("clip", clip)
        yield _row("source", {**source, "rescored": True, "clips": count, "attempt": 0, **note})

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
                    values |= scorers[name]([Frames(_info(clip))])[0].values
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
        for attempt in _attempts(self._config):
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


def note(text: str) -> Row:
    """A row of the stream that says something to the user."""
    return {"part": "", **_row("note", {"text": text})}


def _told(stage: str, worker: str, seconds: float) -> Row:
    return {"part": "", **_row("spent", told(stage, worker, seconds))}


def source_row(
    source: dict[str, Any], measured: dict[str, Any], config: Config, attempt: int
) -> dict[str, Any]:
    """The row of the stream that says how a source was measured."""
    hashes = {"config_hash": config.spans_hash(), "attempt": attempt}
    return _row("source", {**source, **measured, **hashes})


def _check_unchanged(source: dict[str, Any]) -> None:
    """Raises `SourceFailed` when another file is there than the one that was identified."""
    uri = source["uri"]
    try:
        if not changed_since(uri, source["bytes"], source["mtime_or_etag"], source["fingerprint"]):
            return
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise SourceFailed("open", type(error).__name__, text, transient=is_transient(error)) from error
    message = "the file was changed after it was listed or measured: run the build again"
    raise SourceFailed("open", "Changed", message)


def _fault(error: SourceFailed) -> dict[str, str]:
    return {"stage": error.stage, "error": error.error, "message": error.message}


@dataclass
class _Attempt:
    number: int
    left: int
    wait_s: float

    def again(self, error: SourceFailed) -> bool:
        """Wait, and go on to the next attempt; False when there is none, or the fault will not pass."""
        if not error.transient or not self.left:
            return False
        time.sleep(self.wait_s)
        return True


def _attempts(config: Config) -> Iterator[_Attempt]:
    """The first one, and the retries after faults that may pass; each waits twice as long."""
    run = config.run
    for k in range(run.read_retries + 1):
        yield _Attempt(k, run.read_retries - k, run.retry_seconds * 2**k)


def _row(
    kind: str, data: dict[str, Any], jpegs: Sequence[bytes] = (), thumbnail: bytes | None = None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "data": json.dumps(data),
        "thumbnail": thumbnail,
        "jpegs": list(jpegs),
        "embedding": None,
    }


def _split(jpegs: list[bytes], counts: dict[str, int]) -> dict[str, list[bytes]]:
    """The JPEGs by the scorer that asked for them."""
    rest = iter(jpegs)
    return {name: [next(rest) for _ in range(n)] for name, n in counts.items()}


class ModelScorer:
    """Runs one model-backed scorer over the clips that nothing has rejected yet, in batches. A clip of which
    no frame was kept gets null and the scorer's key, as from a scorer that runs beside the decoder."""

    def __init__(self, config: dict[str, Any], name: str):
        self._config = validated(config)
        self._name = name
        self._scorer: Scorer = self._config.filters[name]
        self._key = measure_key(self._scorer)
        self._rules = ordered(self._config.rules)
        # What is scored before this one: a rule on it that fails spares this one.
        order = list(self._config.filters)
        self._before = columns_of(order[: order.index(name)])
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.monotonic()
        rows = batch.to_pylist()
        wanted: list[tuple[int, dict[str, Any], Frames]] = []
        for i, row in enumerate(rows):
            if row["kind"] != "clip":
                continue
            clip = json.loads(row["data"])
            groups = _split(row["jpegs"], clip["jpegs"])
            mine = groups.pop(self._name, None)
            if mine is None:
                continue
            clip["jpegs"] = {name: len(group) for name, group in groups.items()}
            row["jpegs"] = [jpeg for group in groups.values() for jpeg in group]
            row["data"] = json.dumps(clip)
            # A clip too short for the grid has no frame: it is scored too, as one that cannot be measured, or
            # every build would try it again.
            if self._config.score_all or not spared(clip, self._rules, self._before):
                wanted.append((i, clip, _frames(clip, mine, self._scorer.sampling)))
        if not wanted:
            return _table(rows)
        found = self._scorer([frames for _, _, frames in wanted])
        for (i, clip, _), scores in zip(wanted, found, strict=True):
            clip["keys"][self._name] = self._key
            rows[i]["data"] = json.dumps({**clip, **scores.values})
            if scores.embedding is not None:
                rows[i]["embedding"] = scores.embedding.astype(np.float32).tolist()
        return _table([*rows, _told(self._name, self._worker, time.monotonic() - began)])


def _info(clip: dict[str, Any]) -> ClipInfo:
    duration = clip["end_s"] - clip["start_s"]
    return ClipInfo(duration, clip["frames"], clip["fps"], clip["width"], clip["height"])


def _frames(clip: dict[str, Any], jpegs: list[bytes], sampling: Sampling) -> Frames:
    images = []
    for jpeg in jpegs:
        flag = cv2.IMREAD_GRAYSCALE if sampling.color == "gray" else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
        assert image is not None
        assert (image.shape[1], image.shape[0]) == sampling.size(clip["width"], clip["height"])
        images.append(image)
    return Frames(_info(clip), images)


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
        attempts = _attempts(self._config)
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
                _check_unchanged(left[0]["source"])
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
                failures += [self._failure(clip, {**_fault(error), "stage": "cut"}) for clip in lost]
                left = left[len(lost) :]

    def _failure(self, clip: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
        return {
            "clip_id": clip["clip_id"],
            "stage": head["stage"],
            "error": head["error"],
            "message": head["message"],
            "key": self._config.cut_hash(),
        }
