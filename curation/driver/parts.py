"""The driver's side of measuring: rows come from workers in any order, and parts are committed whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from curation.config.schema import Config
from curation.progress import Progress, Stopped
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.store.rows import ClipRow, SourceRow, keys_of, with_scores
from curation.store.spent import Phase
from curation.tasks.measure import MeasuredClip, MeasuredSource, MeasureTask, SourceTask, StreamRow
from curation.verdicts.todo import Todo, source_row


class _FailureLimit:
    def __init__(self, config: Config, named: int, failed: int):
        self._fraction = config.run.max_failed_fraction
        self._named = named
        self._failed = failed

    def count(self, row: SourceRow) -> None:
        self._failed += row["status"] == "failed"

    def check(self) -> None:
        # The limit counts against all named sources. So a limit that is passed once stays passed.
        if self._failed > self._fraction * self._named:
            raise Stopped(
                f"{self._failed} of {self._named} sources failed, more than run.max_failed_fraction="
                f"{self._fraction:g} allows; what was measured is kept. Repair or leave out the failed "
                "sources (reelmill report shows them) and resume with --retry-failed, or raise "
                "run.max_failed_fraction"
            )


class PartCommits:
    """Gathers measured rows until a part is whole, and then commits the part.

    `take` raises `Stopped` when more of the `named` sources have failed than `run.max_failed_fraction`
    allows.
    """

    def __init__(
        self, dataset: Dataset, todo: Todo, config: Config, progress: Progress, named: int | None = None
    ):
        self._dataset = dataset
        self._todo = todo
        self._progress = progress
        self._limit = _FailureLimit(config, todo.sources if named is None else named, todo.failed_before)
        self._phase = Phase()
        self._open = {part: len(sources) for part, sources in todo.parts.items()}  # sources still missing
        self._sources: dict[str, dict[str, MeasuredSource]] = {}  # part -> source_id -> row
        # part -> source, attempt -> clips
        self._clips: dict[str, dict[tuple[str, int], dict[str, MeasuredClip]]] = {}

    def tasks(self) -> list[MeasureTask]:
        """One task per part, with its sources. Rows that need no measuring are committed first."""
        self._commit_direct()
        return [
            {"part": part, "sources": [self._task(source) for source in sources]}
            for part, sources in self._todo.parts.items()
        ]

    def _task(self, source: Source) -> SourceTask:
        rescore = source.source_id in self._todo.rescore
        return {**source_row(source), "rescore": rescore, "attempts_before": 0, "group": None}

    def end(self) -> None:
        assert not self._open, f"parts were not finished: {sorted(self._open)}"
        self._progress.end(self._phase.commit(self._dataset))

    def _commit_direct(self) -> None:
        for part, rows in self._todo.direct.items():
            self._sources[part] = {
                row["source_id"]: {**row, "attempt": None, "rescored": False} for row in rows
            }
            for row in rows:
                self._progress.source(row)
                self._limit.count(row)
            if part not in self._open:
                self._commit(part)
        self._limit.check()

    def take(self, row: StreamRow) -> None:
        """Take one row from a worker. A part is committed when its last row has come."""
        part = row["part"]
        if row["spent"] is not None:
            self._phase.add(row["spent"])
            return
        if row["note"] is not None:
            self._progress.say(row["note"])
            return
        if part not in self._open:  # a worker died after its rows were taken, so its rows come again
            return
        if row["clip"] is not None:
            self._take_clip(part, row["clip"])
        elif row["source"] is not None:
            self._take_source(part, row["source"])
        # Scored clips may come after the row of their source.
        if self._open[part] == 0 and self._is_whole(part):
            self._commit(part)
            del self._open[part]
        self._limit.check()

    def _take_clip(self, part: str, clip: MeasuredClip) -> None:
        of_attempt = self._clips.setdefault(part, {}).setdefault((clip["source_id"], clip["attempt"]), {})
        of_attempt[clip["clip_id"]] = clip
        self._progress.clip()

    def _take_source(self, part: str, source: MeasuredSource) -> None:
        if source["source_id"] in self._sources.setdefault(part, {}):
            return
        self._sources[part][source["source_id"]] = source
        self._progress.source(source)
        if source["rescored"] and source["error"] is not None:
            what = f"{source['stage']}: {source['error']}: {source['message']}"
            self._progress.say(f"not scored again, its clips stay unscored: {source['uri']}: {what}")
        elif source["status"] == "measured" and source["message"]:
            self._progress.say(f"measured, with notes: {source['uri']}: {source['message']}")
        self._limit.count(source)
        self._open[part] -= 1

    def _is_whole(self, part: str) -> bool:
        return all(len(self._clips_of(part, s)) >= s["clips"] for s in self._sources[part].values())

    def _clips_of(self, part: str, source: MeasuredSource) -> Collection[MeasuredClip]:
        """The clips of the attempt that counts. A failed or unmeasured source has no such clips."""
        if source["status"] != "measured" or source["attempt"] is None:
            return ()
        return self._clips.get(part, {}).get((source["source_id"], source["attempt"]), {}).values()

    def _commit(self, part: str) -> None:
        found = self._sources.pop(part)
        clips = [clip for s in found.values() for clip in self._clips_of(part, s)]
        self._clips.pop(part, None)
        # The part exists already if some of its sources were measured or scored again.
        if self._dataset.exists(f"sources/{part}.parquet"):
            self._dataset.commit_part(part, *self._merged(part, found, clips))
        else:
            self._dataset.commit_part(part, found.values(), [_clip_row(clip) for clip in clips])

    def _merged(
        self, part: str, sources: Mapping[str, MeasuredSource], clips: Sequence[MeasuredClip]
    ) -> tuple[list[SourceRow], list[ClipRow]]:
        """The rows of the part: new rows replace old ones, and all other rows stay as they were."""
        committed: list[SourceRow] = self._dataset.read_part("sources", part).to_pylist()
        rows = {source["source_id"]: source for source in committed}
        rows |= {id_: source for id_, source in sources.items() if not source["rescored"]}
        of_part: list[ClipRow] = self._dataset.read_part("clips", part).to_pylist()
        before = {clip["clip_id"]: clip for clip in of_part}
        merged: list[ClipRow] = []
        for clip in clips:
            row = _clip_row(clip)
            if sources[clip["source_id"]]["rescored"]:
                keep = before[clip["clip_id"]]
                row["thumbnail"] = keep["thumbnail"]
                if not clip["new_embedding"]:
                    row["embedding"] = keep["embedding"]
            merged.append(row)
        untouched = [clip for clip in of_part if clip["source_id"] not in sources]
        merged += [{**clip, "keys": keys_of(clip)} for clip in untouched]
        return list(rows.values()), merged


def _clip_row(clip: MeasuredClip) -> ClipRow:
    row: ClipRow = {
        "clip_id": clip["clip_id"],
        "source_id": clip["source_id"],
        "uri": clip["uri"],
        "start_s": clip["start_s"],
        "end_s": clip["end_s"],
        "frames": clip["frames"],
        "fps": clip["fps"],
        "width": clip["width"],
        "height": clip["height"],
        "embedding": clip["embedding"],
        "thumbnail": clip["thumbnail"],
        "keys": clip["keys"],
    }
    return with_scores(row, clip["scores"])
