"""What runs in Ray's workers to caption: reading clips out of shards, and a captioner. Imports no Ray.

Clips are decoded in these workers and not in the decoding child: their bytes are those that we encoded.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.base import Caption, Captioner, CaptionFailed, CaptionRequest, Pictures
from curation.captions.checks import Checker
from curation.captions.makers import Step, batch_clips, second_try, worker
from curation.config.load import validated
from curation.decode.pictures import pictures
from curation.store.dataset import Dataset
from curation.store.sound import open_shard, sound_group
from curation.store.spent import told
from filters.rules import Rule

Row = dict[str, Any]
_CLIP = pa.struct(
    [
        ("clip_id", pa.string()),
        ("data", pa.string()),  # JSON: the fields of the request that are not binary, and the shapes
        ("pictures", pa.list_(pa.binary())),  # uint8 RGB, as they are
        ("embedding", pa.list_(pa.float32())),
    ]
)
# A row is a whole batch. Clips as rows would be cut and joined by their bytes: models would get remainders.
READ = pa.schema([("clips", pa.list_(_CLIP))])
_BAD_ANSWERS = ("EmptyAnswer", "BrokenAnswer", "BadAnswer")  # as captioners name them


class ClipReader:
    """Reads the wanted clips of row groups of shards, and the pictures that the captioner looks at."""

    def __init__(self, config: Row, location: str, step: Step):
        self._config = validated(config)
        self._dataset = Dataset(location)
        self._wanted: Pictures | None = worker(self._config, step).pictures
        self._size = batch_clips(self._config, step)
        self._embeds = step == "caption" and "caption.similarity" in self._config.rules
        self._embeddings: tuple[str, dict[str, Any]] = ("", {})  # of the part of clips read last

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        waiting: list[Row] = []
        for task in batch.to_pylist():
            for group in json.loads(task["groups"]):
                for row in self._clips(group):
                    waiting.append(row)
                    if len(waiting) == self._size:
                        yield pa.Table.from_pylist([{"clips": waiting}], schema=READ)
                        waiting = []
        if waiting:
            yield pa.Table.from_pylist([{"clips": waiting}], schema=READ)

    def _clips(self, task: Row) -> Iterator[Row]:
        clips: dict[str, Row] = task["clips"]
        columns = ["clip_id", "uri", "start_s", "end_s", "fps", "duration_s", "extra"]
        file = open_shard(self._dataset, task["shard"])
        looks = [*columns, "video"] if self._wanted else columns
        try:
            table = sound_group(file, task["shard"], task["group"], looks)
        finally:
            file.close(force=True)
        for i, row in enumerate(table.select(columns).to_pylist()):
            if row["clip_id"] in clips:
                mp4 = table["video"][i].as_py()["bytes"] if self._wanted else b""
                yield self._clip(row, mp4, clips[row["clip_id"]])

    def _clip(self, row: Row, mp4: bytes, asked: Row) -> Row:
        data = {k: row[k] for k in ("uri", "start_s", "end_s")}
        data |= {"is_image": row["fps"] is None, "extra": json.loads(row["extra"] or "{}")}
        data |= {"text": asked.get("text"), "times_s": [], "shapes": []}
        seen: list[np.ndarray] = []
        if self._wanted:
            try:
                seen, data["times_s"] = pictures(mp4, row["duration_s"], self._wanted)
            except (OSError, ValueError) as error:  # av's errors are of these kinds
                data["failed"] = [type(error).__name__, f"its clip does not decode: {error}"]
            data["shapes"] = [p.shape for p in seen]
        return {
            "clip_id": row["clip_id"],
            "data": json.dumps(data),
            "pictures": [p.tobytes() for p in seen],
            "embedding": self._embedding(row["clip_id"], asked.get("part")) if self._embeds else None,
        }

    def _embedding(self, clip_id: str, part: str | None) -> Any:
        """The clips of one shard are of few parts, one after another."""
        if part and self._embeddings[0] != part:
            table = self._dataset.read_part("clips", part, ["clip_id", "embedding"])
            ids, found = table["clip_id"].to_pylist(), table["embedding"].to_pylist()
            self._embeddings = (part, dict(zip(ids, found, strict=True)))
        return self._embeddings[1].get(clip_id)


class ModelCaptioner:
    """Captions clips in batches. A caption that its rules do not like is asked for once more.

    Answers one row per clip: `data` holds its captions as rows of the table, or why there is none. One more
    row, of no clip, has what that took (`spent.told`).
    """

    def __init__(self, config: Row, step: Step):
        self._config = validated(config)
        self._captioner = worker(self._config, step)
        self._rules: dict[str, Rule] = self._config.caption_rules
        self._checker = Checker(self._config, self._captioner)
        self._step = step
        self._worker = uuid.uuid4().hex

    def __call__(self, batches: pa.Table) -> pa.Table:
        began = time.monotonic()
        answers = [a for batch in batches.to_pylist() for a in self._answers(batch["clips"])]
        spent = told(self._step, self._worker, time.monotonic() - began)
        answers.append({"clip_id": None, "data": json.dumps(spent)})
        return pa.Table.from_pylist(answers, schema=ANSWERS)

    def _answers(self, clips: Sequence[Row]) -> list[Row]:
        requests, answers = [], []
        embeddings: dict[str, np.ndarray | None] = {}
        for row in clips:
            data = json.loads(row["data"])
            shapes = data.pop("shapes")
            if failed := data.pop("failed", None):
                answers.append(_answer(row["clip_id"], CaptionFailed(row["clip_id"], *failed)))
                continue
            seen = zip(row["pictures"], shapes, strict=True)
            looked = tuple(np.frombuffer(p, np.uint8).reshape(shape) for p, shape in seen)
            times_s = tuple(data.pop("times_s"))
            requests.append(CaptionRequest(row["clip_id"], **data, pictures=looked, times_s=times_s))
            vector = row["embedding"]
            embeddings[row["clip_id"]] = None if vector is None else np.asarray(vector, np.float32)
        found = self._asked(self._captioner, requests, embeddings)
        unliked = [r for r in requests if not _is_liked(found[r.clip_id], self._rules)]
        # Made only now, when the first one holds its model: it is shared.
        again = second_try(self._captioner) if unliked else None
        if again is not None:
            second = self._asked(again, unliked, embeddings)
            for request in unliked:
                first, new = found[request.clip_id], second[request.clip_id]
                if isinstance(new, list) and (_is_liked(new, self._rules) or not isinstance(first, list)):
                    found[request.clip_id] = new
        return answers + [_answer(clip_id, made) for clip_id, made in found.items()]

    def _asked(
        self,
        captioner: Captioner,
        requests: Sequence[CaptionRequest],
        embeddings: dict[str, np.ndarray | None],
    ) -> dict[str, list[Row] | CaptionFailed]:
        """Rows of `captions` (without a key) of each clip, or why it has none. Joined by clip."""
        found: dict[str, list[Row] | CaptionFailed] = {r.clip_id: [] for r in requests}
        for answer in captioner(requests) if requests else ():
            if isinstance(answer, CaptionFailed):
                found[answer.clip_id] = answer
                continue
            before = found[answer.clip_id]
            row = {**_plain(answer), **self._checker(answer, embeddings[answer.clip_id])}
            found[answer.clip_id] = [*before, row] if isinstance(before, list) else [row]
        for clip_id, rows in found.items():
            if not rows:
                found[clip_id] = CaptionFailed(clip_id, "NoAnswer", f"{captioner.name} gave no caption")
        return found


ANSWERS = pa.schema([("clip_id", pa.string()), ("data", pa.string())])


def _plain(caption: Caption) -> Row:
    fields = ("clip_id", "captioner", "kind", "text", "model", "revision", "prompt_version")
    return {f: getattr(caption, f) for f in fields}


def _is_liked(found: list[Row] | CaptionFailed, rules: dict[str, Rule]) -> bool:
    """By the rules on captions. Of what failed, an answer that holds no caption may be another the next time;
    for the rest the captioner has tried often enough itself."""
    if isinstance(found, CaptionFailed):
        return found.error not in _BAD_ANSWERS
    return all(
        row.get(column) is None or rule.allows(row[column]) for row in found for column, rule in rules.items()
    )


def _answer(clip_id: str, found: list[Row] | CaptionFailed) -> Row:
    if isinstance(found, CaptionFailed):
        return {"clip_id": clip_id, "data": json.dumps({"error": found.error, "message": found.message})}
    return {"clip_id": clip_id, "data": json.dumps({"captions": found})}
