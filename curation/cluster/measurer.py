"""The worker that measures parts. It drives a decoding child and runs the scorers without a model.

This module does not import Ray. The worker gives rows of the type `tasks.StreamRow`: one row per candidate
clip, and one row per source after its clips.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.cluster.rows import check_unchanged, clip_info, retries, spent_row
from curation.config.load import validated
from curation.decode import answers
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.sources.spans import listed_spans
from curation.store.dataset import Dataset
from curation.store.rows import ClipRow, SourceRow, keys_of, named_source, scores_of, unmeasured
from curation.store.spent import Timed
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.measure import (
    STREAM,
    GroupDone,
    GroupTask,
    MeasuredClip,
    MeasureTask,
    SourceTask,
    StreamRow,
    stream_row,
)
from curation.verdicts.judge import spared
from curation.verdicts.stale import Staleness
from filters import EMBEDDER
from filters.base import Frames

_ROWS_PER_BLOCK = 16
_MAX_JPEG_BYTES = 4 << 20  # per clip
_RESCORE_FIELDS = ("clip_id", "start_s", "end_s", "frames", "fps", "width", "height")


class Measurer:
    """Measures parts, one source after another, through one decoding child."""

    def __init__(self, config: dict[str, Any], location: str):
        self._config = validated(config)
        self._plain = {key: value for key, value in config.items() if key != "captions"}  # for the child
        self._dataset = Dataset(location)
        self._child = Child(self._config.run.child_memory_mb, self._config.run.child_output_mb)
        self._rules = self._config.ordered_rules
        self._cheap = self._config.columns_of(self._config.local_scorers)
        self._keys = self._config.measure_keys()
        self._staleness = Staleness(self._config)
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        tables = Timed(self._tables(rows_of(batch)))
        yield from tables
        yield table_of([spent_row("measure", self._worker, tables.seconds)], STREAM)

    def _tables(self, tasks: Sequence[MeasureTask]) -> Iterator[pa.Table]:
        waiting: list[StreamRow] = []
        for task in tasks:
            for source in task["sources"]:
                for row in self._rows(task["part"], source):
                    waiting.append(row)
                    if len(waiting) == _ROWS_PER_BLOCK:
                        yield table_of(waiting, STREAM)
                        waiting = []
        yield table_of(waiting, STREAM)

    def _rows(self, part: str, source: SourceTask) -> Iterator[StreamRow]:
        if source["group"] is not None:
            return self._of_group(part, source, source["group"])
        return self._rescored(part, source) if source["rescore"] else self._measured(part, source)

    def _request(self, op: str, source: SourceTask) -> dict[str, Any]:
        return {"op": op, "uri": source["uri"], "source_id": source["source_id"], "config": self._plain}

    def _measured(self, part: str, source: SourceTask) -> Iterator[StreamRow]:
        """Measure one source. Its clips and its row carry the number of the attempt.

        Clips of an attempt that failed do not count.
        """
        request = {**self._request("measure", source), "listed": self._listed(source)}
        began = time.monotonic()
        for attempt in retries(self._config):
            number = source["attempts_before"] + attempt.number
            found: answers.SourceAnswer | None = None
            fault = SourceFailed("measure", "Incomplete", "it stopped early")
            try:
                messages = self._child.request(request, self._config.run.deadline_seconds)
                for answer in answers.measured(messages):
                    if isinstance(answer, answers.ClipAnswer):
                        yield self._clip_row(part, source, answer, number)
                    else:
                        found = answer
                check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                found, fault = None, error
            seconds = time.monotonic() - began
            row = self._source_row(source, found) if found else self._failed_row(source, fault, seconds)
            yield stream_row(part, source={**row, "attempt": number, "rescored": False})
            return

    def _listed(self, source: SourceTask) -> list[tuple[float, float]]:
        """The spans that are clips, although no shots were detected."""
        return listed_spans(source["extra"]) if self._config.spans.by == "list" else []

    def _source_row(self, source: SourceTask, found: answers.SourceAnswer) -> SourceRow:
        return {
            **named_source(source),
            "container": found.container,
            "codec": found.codec,
            "width": found.width,
            "height": found.height,
            "fps": found.fps,
            "is_vfr": found.is_vfr,
            "file_start_s": found.file_start_s,
            "duration_s": found.duration_s,
            "frames": found.frames,
            "transfer": found.transfer,
            "fields": found.fields,
            "status": "measured",
            "stage": None,
            "error": None,
            "message": found.message,
            "clips": found.clips,
            "seconds": found.seconds,
            "config_hash": self._config.spans_hash(found.transfer, self._listed(source)),
        }

    def _failed_row(self, source: SourceTask, fault: SourceFailed, seconds: float) -> SourceRow:
        return unmeasured(
            named_source(source),
            "failed",
            stage=fault.stage,
            error=fault.error,
            message=fault.message,
            seconds=seconds,
            config_hash=self._config.spans_hash(None, self._listed(source)),
        )

    def _of_group(self, part: str, source: SourceTask, group: GroupTask) -> Iterator[StreamRow]:
        """The clips of one group of spans of a long source, and a row with the result of the group.

        Every attempt gives the same clips. So the clips of all attempts may count.
        """
        where = {"spans": group["spans"], "from_s": group["from_s"], "at": group["at"]}
        request = {**self._request("score", source), **where}
        began = time.monotonic()
        for attempt in retries(self._config):
            fault: str | None = None
            try:
                messages = self._child.request(request, self._config.run.deadline_seconds)
                for answer in answers.measured(messages):
                    if isinstance(answer, answers.ClipAnswer):
                        yield self._clip_row(part, source, answer, 0)
                check_unchanged(source)
            except SourceFailed as error:
                if attempt.again(error):
                    continue
                fault = f"{error.error}: {error.message}"
            done: GroupDone = {
                "source_id": source["source_id"],
                "number": group["number"],
                "error": fault,
                "seconds": time.monotonic() - began,
            }
            yield stream_row(part, group=done)
            return

    def _clip_row(self, part: str, source: SourceTask, found: answers.ClipAnswer, attempt: int) -> StreamRow:
        media = "image" if found.fps is None else "video"
        scorers = self._config.local_scorers.items()
        clip: MeasuredClip = {
            "clip_id": found.clip_id,
            "source_id": source["source_id"],
            "uri": source["uri"],
            "start_s": found.start_s,
            "end_s": found.end_s,
            "frames": found.frames,
            "fps": found.fps,
            "width": found.width,
            "height": found.height,
            "scores": found.scores,
            "keys": {name: self._keys[name] for name, s in scorers if media in s.applies_to},
            "attempt": attempt,
            "new_embedding": True,
            "thumbnail": found.thumbnail,
            "jpegs": {},
            "embedding": None,
        }
        return stream_row(part, clip={**clip, "jpegs": self._wanted_jpegs(clip, found.jpegs)})

    def _wanted_jpegs(self, clip: MeasuredClip, jpegs: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
        """The frames for the model-backed scorers. The result is empty if these scorers skip the clip."""
        is_image = clip["fps"] is None
        if not self._config.score_all and spared(clip["scores"], self._rules, self._cheap, is_image=is_image):
            return {}
        groups = dict(jpegs)
        while _size(groups) > _MAX_JPEG_BYTES and max(map(len, groups.values())) > 1:
            # Only frames of tens of megapixels exceed the limit.
            largest = max(groups, key=lambda n: sum(map(len, groups[n])) if len(groups[n]) > 1 else 0)
            groups[largest] = groups[largest][::2]
        return groups

    def _rescored(self, part: str, source: SourceTask) -> Iterator[StreamRow]:
        """The clips of a committed source, after their missing and outdated columns are computed."""
        columns = [n for n in self._dataset.schema("clips").names if n not in ("thumbnail", "embedding")]
        table = self._dataset.read_part("clips", part, columns)
        mine: list[ClipRow] = rows_of(table.filter(pc.equal(table["source_id"], source["source_id"])))
        waiting = {clip["clip_id"]: self._committed(clip) for clip in mine}
        want = {clip["clip_id"]: self._staleness.wanted(clip) for clip in mine}
        count = len(waiting)
        fields = self._fields(part, source["source_id"])
        fault: SourceFailed | None = None
        for attempt in retries(self._config):
            try:
                check_unchanged(source)
                for found in self._scores(source["uri"], list(waiting.values()), want, fields):
                    clip = waiting.pop(found.clip_id)
                    clip["scores"] |= found.scores
                    local = [n for n in want[found.clip_id] if n in self._config.local_scorers]
                    clip["keys"] |= {n: self._keys[n] for n in local}
                    yield stream_row(part, clip={**clip, "jpegs": self._wanted_jpegs(clip, found.jpegs)})
                break
            except SourceFailed as error:
                if not attempt.again(error):
                    fault = error
                    break
        for clip in waiting.values():  # these clips stay without scores; the next build tries again
            yield stream_row(part, clip=clip)
        row = unmeasured(
            named_source(source),
            "measured",
            stage=fault.stage if fault else None,
            error=fault.error if fault else None,
            message=fault.message if fault else None,
            clips=count,
        )
        yield stream_row(part, source={**row, "attempt": 0, "rescored": True})

    def _fields(self, part: str, source_id: str) -> str | None:
        """What measuring found the committed source to be."""
        table = self._dataset.read_part("sources", part, ["source_id", "fields"])
        found = table.filter(pc.equal(table["source_id"], source_id))["fields"].to_pylist()
        return found[0] if found else None

    def _committed(self, row: ClipRow) -> MeasuredClip:
        """A committed clip without its outdated scores."""
        cleared = self._staleness.cleared(row)
        return {
            "clip_id": row["clip_id"],
            "source_id": row["source_id"],
            "uri": row["uri"],
            "start_s": row["start_s"],
            "end_s": row["end_s"],
            "frames": row["frames"],
            "fps": row["fps"],
            "width": row["width"],
            "height": row["height"],
            "scores": scores_of(cleared),
            "keys": keys_of(cleared),
            "attempt": 0,
            "new_embedding": EMBEDDER in self._staleness.outdated(row),
            "thumbnail": None,
            "jpegs": {},
            "embedding": None,
        }

    def _scores(
        self, uri: str, clips: Sequence[MeasuredClip], want: dict[str, list[str]], fields: str | None
    ) -> Iterator[answers.ScoresAnswer]:
        """Yield the wanted columns of every clip, and the frames for model-backed scorers."""
        scorers = self._config.scorers
        by_frames = []
        for clip in clips:
            wanted = want[clip["clip_id"]]
            if any(scorers[n].sampling.kind != "none" for n in wanted):
                by_frames.append(clip)
            else:  # these scorers need no frames, so nothing is decoded
                values: dict[str, float | None] = {}
                for name in wanted:
                    values |= scorers[name]([Frames(clip_info(clip, clip["frames"]))])[0].values
                yield answers.ScoresAnswer(clip["clip_id"], values, {})
        if not by_frames:
            return
        request = {
            "op": "rescore",
            "stage": "score",
            "uri": uri,
            "fields": fields,
            "clips": [
                {**{k: v for k, v in c.items() if k in _RESCORE_FIELDS}, "want": want[c["clip_id"]]}
                for c in by_frames
            ],
            "config": self._plain,
        }
        yield from answers.rescored(self._child.request(request, self._config.run.deadline_seconds))


def _size(groups: dict[str, list[bytes]]) -> int:
    return sum(len(jpeg) for group in groups.values() for jpeg in group)
