"""The workers' own code in this process, without Ray, and a count of what it does: decodes, model calls,
encodes. The decoding children are real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation import pipeline
from curation.captions.makers import Step
from curation.cluster.caption_workers import ClipReader, ModelCaptioner
from curation.cluster.cutter import Cutter
from curation.cluster.measurer import Measurer
from curation.cluster.model_scorer import ModelScorer
from curation.config.schema import Config
from curation.sandbox.parent import Child
from curation.sandbox.protocol import Message
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.caption import CAPTION_TASKS, CaptionAnswer, CaptionTask
from curation.tasks.cut import CUT_TASKS, CutTask, WrittenShard
from curation.tasks.measure import MEASURE_TASKS, MeasureTask, StreamRow
from filters import SCORERS

Row = dict[str, Any]


class Inline:
    """`with Inline() as did:` and, inside, builds that start no Ray."""

    def __init__(self) -> None:
        self.measured: Counter[str] = Counter()  # file name -> how often it was measured
        self.rescored: Counter[str] = Counter()  # file name -> how often it was decoded to be scored again
        self.cut: Counter[str] = Counter()  # file name -> how often it was opened to be cut
        self.encoded: Counter[str] = Counter()  # clip_id -> how often it was encoded
        self.model_clips: Counter[str] = Counter()  # scorer -> clips that its model saw
        self.captioned: Counter[str] = Counter()  # clip_id -> how often a captioner was handed it
        self._patch = pytest.MonkeyPatch()

    @property
    def decodes(self) -> Counter[str]:
        return self.measured + self.rescored + self.cut

    def __enter__(self) -> Inline:
        request = Child.request
        seen = {"measure": self.measured, "rescore": self.rescored, "cut": self.cut}

        def counted(child: Child, asked: Row, deadline_s: float) -> Iterator[Message]:
            seen.setdefault(asked["op"], Counter())[Path(asked["uri"]).name] += 1
            for message in request(child, asked, deadline_s):
                if asked["op"] == "cut" and message.head["kind"] == "clip":
                    self.encoded[message.head["clip_id"]] += 1
                yield message

        self._patch.setattr(Child, "request", counted)
        for name, scorer in SCORERS.items():
            if scorer.uses_model:
                self._patch.setattr(scorer, "__call__", self._counted_model(name, scorer.__call__))
        self._patch.setattr(pipeline, "measured", measured)
        self._patch.setattr(pipeline, "written", written)
        self._patch.setattr(pipeline, "captioned", captioned)
        asked = ModelCaptioner._asked

        def counted_captions(worker: Any, captioner: Any, requests: Any, embeddings: Any) -> Any:
            self.captioned.update(r.clip_id for r in requests)
            return asked(worker, captioner, requests, embeddings)

        self._patch.setattr(ModelCaptioner, "_asked", counted_captions)
        return self

    def _counted_model(self, name: str, call: Any) -> Any:
        def counted(scorer: Any, clips: Any) -> Any:
            self.model_clips[name] += len(clips)
            return call(scorer, clips)

        return counted

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def measured(parts: list[MeasureTask], config: Config, location: str) -> Iterator[StreamRow]:
    plain = config.for_workers()
    measurer = Measurer(plain, location)
    models = [ModelScorer(plain, name) for name in config.model_scorers]
    try:
        for part in parts:
            for table in measurer(table_of([part], MEASURE_TASKS)):
                scored = table
                for model in models:
                    scored = model(scored)
                yield from rows_of(scored)
    finally:
        measurer._child.stop()


def written(tasks: list[CutTask], config: Config, location: str, config_hash: str) -> Iterator[WrittenShard]:
    cutter = Cutter(config.for_workers(), location, config_hash)
    try:
        for task in tasks:
            yield from rows_of(cutter(table_of([task], CUT_TASKS)))
    finally:
        cutter._child.stop()


def captioned(tasks: list[CaptionTask], config: Config, location: str, step: Step) -> Iterator[CaptionAnswer]:
    plain = config.for_workers()
    reader, model = ClipReader(plain, location, step), ModelCaptioner(plain, step)
    for task in tasks:
        for batch in reader(table_of([task], CAPTION_TASKS)):
            yield from rows_of(model(batch))
