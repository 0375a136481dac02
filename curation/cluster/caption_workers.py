"""The workers of captioning: one reads clips out of shards, and one runs a captioner. Imports no Ray.

These workers decode clips themselves, without the decoding child. The clips are safe: reelmill encoded them.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from captioning.base import Captioner, CaptionFailed, CaptionRequest, Pictures
from curation.captions.checks import Checker
from curation.captions.makers import Step, batch_clips, second_try, worker
from curation.captions.table import said
from curation.config.load import validated
from curation.decode.pictures import pictures
from curation.store.dataset import Dataset
from curation.store.intact import intact_group, open_shard
from curation.store.rows import SaidCaption, ShardRow, checks_of
from curation.store.spent import told
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.caption import (
    ANSWERS,
    READ,
    AskedClip,
    CaptionAnswer,
    CaptionTask,
    ReadBatch,
    ReadClip,
    RowGroup,
    Unreadable,
)
from filters.rules import Rule

_BAD_ANSWERS = ("EmptyAnswer", "BrokenAnswer", "BadAnswer")  # as captioners name them


class ClipReader:
    """Reads the wanted clips of row groups of shards, and decodes the pictures for the captioner."""

    def __init__(self, config: dict[str, Any], location: str, step: Step):
        self._config = validated(config)
        self._dataset = Dataset(location)
        self._wanted: Pictures | None = worker(self._config, step).pictures
        self._size = batch_clips(self._config, step)
        self._embeds = step == "caption" and "caption.similarity" in self._config.rules
        self._embeddings: tuple[str, dict[str, list[float]]] = ("", {})  # of the part that was read last

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        waiting: list[ReadClip] = []
        tasks: list[CaptionTask] = rows_of(batch)
        for task in tasks:
            for group in task["groups"]:
                for clip in self._clips(group):
                    waiting.append(clip)
                    if len(waiting) == self._size:
                        yield table_of([ReadBatch(clips=waiting)], READ)
                        waiting = []
        if waiting:
            yield table_of([ReadBatch(clips=waiting)], READ)

    def _clips(self, group: RowGroup) -> Iterator[ReadClip]:
        clips = {asked["clip_id"]: asked for asked in group["clips"]}
        columns = ["clip_id", "uri", "start_s", "end_s", "fps", "duration_s", "extra"]
        file = open_shard(self._dataset, group["shard"])
        looks = [*columns, "video"] if self._wanted else columns
        try:
            table = intact_group(file, group["shard"], group["group"], looks)
        finally:
            file.close()
        for i, row in enumerate(table.select(columns).to_pylist()):
            if row["clip_id"] in clips:
                mp4 = table["video"][i].as_py()["bytes"] if self._wanted else b""
                yield self._clip(row, mp4, clips[row["clip_id"]])

    def _clip(self, row: ShardRow, mp4: bytes, asked: AskedClip) -> ReadClip:
        seen: list[np.ndarray] = []
        times_s: list[float] = []
        failed: Unreadable | None = None
        if self._wanted:
            try:
                seen, times_s = pictures(mp4, row["duration_s"], self._wanted)
            except (OSError, ValueError) as error:  # errors of av are of these kinds
                failed = {"error": type(error).__name__, "message": f"its clip does not decode: {error}"}
        return {
            "clip_id": row["clip_id"],
            "uri": row["uri"],
            "start_s": row["start_s"],
            "end_s": row["end_s"],
            "is_image": row["fps"] is None,
            "extra": row["extra"],
            "text": asked["text"],
            "times_s": times_s,
            "shapes": [list(p.shape) for p in seen],
            "pictures": [p.tobytes() for p in seen],
            "embedding": self._embedding(row["clip_id"], asked["part"]) if self._embeds else None,
            "failed": failed,
        }

    def _embedding(self, clip_id: str, part: str | None) -> list[float] | None:
        """The embedding of a clip. One part is kept: a shard has clips of few parts, one after another."""
        if part and self._embeddings[0] != part:
            table = self._dataset.read_part("clips", part, ["clip_id", "embedding"])
            ids, found = table["clip_id"].to_pylist(), table["embedding"].to_pylist()
            self._embeddings = (part, dict(zip(ids, found, strict=True)))
        return self._embeddings[1].get(clip_id)


class ModelCaptioner:
    """Captions clips in batches. If the rules reject a caption, the captioner is asked once more.

    Gives one row per clip. One more row, without a clip, holds the time that the batches took.
    """

    def __init__(self, config: dict[str, Any], step: Step):
        self._config = validated(config)
        self._captioner = worker(self._config, step)
        self._rules: dict[str, Rule] = self._config.caption_rules
        self._checker = Checker(self._config, self._captioner)
        self._step = step
        self._worker = uuid.uuid4().hex

    def __call__(self, batches: pa.Table) -> pa.Table:
        began = time.monotonic()
        read: list[ReadBatch] = rows_of(batches)
        answers = [answer for batch in read for answer in self._answers(batch["clips"])]
        spent = told(self._step, self._worker, time.monotonic() - began)
        answers.append({"clip_id": None, "captions": [], "error": None, "message": None, "spent": spent})
        return table_of(answers, ANSWERS)

    def _answers(self, clips: Sequence[ReadClip]) -> list[CaptionAnswer]:
        requests: list[CaptionRequest] = []
        answers: list[CaptionAnswer] = []
        embeddings: dict[str, np.ndarray | None] = {}
        for clip in clips:
            if failed := clip["failed"]:
                lost = CaptionFailed(clip["clip_id"], failed["error"], failed["message"])
                answers.append(_answer(clip["clip_id"], lost))
                continue
            requests.append(_request(clip))
            vector = clip["embedding"]
            embeddings[clip["clip_id"]] = None if vector is None else np.asarray(vector, np.float32)
        found = self._asked(self._captioner, requests, embeddings)
        unliked = [r for r in requests if not _is_liked(found[r.clip_id], self._rules)]
        # The second captioner is made only now: the first holds its model by now, and both share the model.
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
    ) -> dict[str, list[SaidCaption] | CaptionFailed]:
        """clip_id -> the captions of the clip, or the failure if the clip has no caption."""
        found: dict[str, list[SaidCaption] | CaptionFailed] = {r.clip_id: [] for r in requests}
        for answer in captioner(requests) if requests else ():
            if isinstance(answer, CaptionFailed):
                found[answer.clip_id] = answer
                continue
            before = found[answer.clip_id]
            row: SaidCaption = {**said(answer), **self._checker(answer, embeddings[answer.clip_id])}
            found[answer.clip_id] = [*before, row] if isinstance(before, list) else [row]
        for clip_id, rows in found.items():
            if not rows:
                found[clip_id] = CaptionFailed(clip_id, "NoAnswer", f"{captioner.name} gave no caption")
        return found


def _request(clip: ReadClip) -> CaptionRequest:
    seen = zip(clip["pictures"], clip["shapes"], strict=True)
    return CaptionRequest(
        clip["clip_id"],
        clip["uri"],
        clip["start_s"],
        clip["end_s"],
        clip["is_image"],
        json.loads(clip["extra"] or "{}"),
        pictures=tuple(np.frombuffer(p, np.uint8).reshape(shape) for p, shape in seen),
        times_s=tuple(clip["times_s"]),
        text=clip["text"],
    )


def _is_liked(found: list[SaidCaption] | CaptionFailed, rules: dict[str, Rule]) -> bool:
    """Do the rules on captions accept the answer? False asks the captioner once more.

    An answer without a caption may be better the next time. After other failures the captioner has already
    tried again itself, so the failure counts as liked.
    """
    if isinstance(found, CaptionFailed):
        return found.error not in _BAD_ANSWERS
    checks = [(checks_of(row).get(column), rule) for row in found for column, rule in rules.items()]
    return all(value is None or rule.allows(value) for value, rule in checks)


def _answer(clip_id: str, found: list[SaidCaption] | CaptionFailed) -> CaptionAnswer:
    if isinstance(found, CaptionFailed):
        return {
            "clip_id": clip_id,
            "captions": [],
            "error": found.error,
            "message": found.message,
            "spent": None,
        }
    return {"clip_id": clip_id, "captions": found, "error": None, "message": None, "spent": None}
