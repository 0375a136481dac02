"""Measuring, from the driver's side: rows come in any order from the workers, parts are committed whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from curation.config.schema import Config
from curation.progress import Progress, Stopped
from curation.store.dataset import Dataset
from curation.store.schema import CLIPS, SOURCES
from curation.store.spent import Phase
from curation.verdicts.todo import Todo, source_row

Row = dict[str, Any]


class _FailureLimit:
    def __init__(self, config: Config, named: int, failed: int):
        self._fraction = config.run.max_failed_fraction
        self._named = named
        self._failed = failed

    def count(self, row: Row) -> None:
        self._failed += row["status"] == "failed"

    def check(self) -> None:
        # Against all that were named, not against those seen so far: what is too much now stays too much.
        if self._failed > self._fraction * self._named:
            raise Stopped(
                f"{self._failed} of {self._named} sources failed, more than run.max_failed_fraction="
                f"{self._fraction:g} allows; what was measured is kept. Mend or leave out the failed sources "
                "(reelmill report shows them) and go on with --retry-failed, or raise run.max_failed_fraction"
            )


class PartCommits:
    """Rows of what is measured, gathered until a part is whole, and then committed.

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
        self._sources: dict[str, dict[str, Row]] = {}  # part -> source_id -> row
        self._clips: dict[str, dict[tuple[str, int], dict[str, Row]]] = {}  # part -> source, attempt -> clips

    def tasks(self) -> list[Row]:
        """What `cluster.measurer.Measurer` takes: the sources of one part each. What needs no measuring is
        committed first."""
        self._commit_direct()
        return [
            {
                "part": part,
                "sources": json.dumps(
                    [{**source_row(s), "rescore": s.source_id in self._todo.rescore} for s in sources]
                ),
            }
            for part, sources in self._todo.parts.items()
        ]

    def end(self) -> None:
        assert not self._open, f"parts were not finished: {sorted(self._open)}"
        self._progress.end(self._phase.commit(self._dataset))

    def _commit_direct(self) -> None:
        for part, rows in self._todo.direct.items():
            self._sources[part] = {row["source_id"]: row for row in rows}
            for row in rows:
                self._progress.source(row)
                self._limit.count(row)
            if part not in self._open:
                self._commit(part)
        self._limit.check()

    def take(self, row: Row) -> None:
        """A row of `cluster.rows.STREAM`."""
        part, data = row["part"], json.loads(row["data"])
        if row["kind"] == "spent":
            self._phase.add(data)
            return
        if row["kind"] == "note":
            self._progress.say(data["text"])
            return
        if part not in self._open:  # a worker died after its rows were taken, and its work came once more
            return
        of_part = self._clips.setdefault(part, {})
        if row["kind"] == "clip":
            clip = {**data, "thumbnail": row["thumbnail"], "embedding": row["embedding"]}
            of_part.setdefault((data["source_id"], data["attempt"]), {})[data["clip_id"]] = clip
            self._progress.clip()
        elif data["source_id"] not in self._sources.setdefault(part, {}):
            data.setdefault("status", "measured")
            self._sources[part][data["source_id"]] = data
            self._progress.source(data)
            if data["status"] == "measured" and data.get("message") and "rescored" not in data:
                self._progress.say(f"measured with damage: {data['uri']}: {data['message']}")
            if "rescored" in data and "error" in data:
                what = f"{data['stage']}: {data['error']}: {data['message']}"
                self._progress.say(f"not scored again, its clips stay unscored: {data['uri']}: {what}")
            self._limit.count(data)
            self._open[part] -= 1
        # Scored clips may come after their source's row.
        if self._open[part] == 0 and self._is_whole(part):
            self._commit(part)
            del self._open[part]
        self._limit.check()

    def _is_whole(self, part: str) -> bool:
        of_part = self._clips[part]
        return all(
            len(of_part.get((s["source_id"], s["attempt"]), ())) >= s["clips"]
            for s in self._sources[part].values()
            if s["status"] == "measured" and "attempt" in s
        )

    def _commit(self, part: str) -> None:
        sources = self._sources.pop(part)
        of_part = self._clips.pop(part, {})
        clips = [
            clip
            for s in sources.values()
            if s["status"] == "measured" and "attempt" in s
            for clip in of_part.get((s["source_id"], s["attempt"]), {}).values()
        ]
        if self._dataset.exists(
            f"sources/{part}.parquet"
        ):  # some of its sources were measured or scored again
            sources, clips = self._merged(part, sources, clips)
        self._dataset.commit_part(
            part, [_of(SOURCES.names, s) for s in sources.values()], [_of(CLIPS.names, c) for c in clips]
        )

    def _merged(
        self, part: str, sources: dict[str, Row], clips: list[Row]
    ) -> tuple[dict[str, Row], list[Row]]:
        """The part with what is new in it, and with the rest as it was."""
        old = {s["source_id"]: s for s in self._dataset.read_part("sources", part).to_pylist()}
        rescored = {id_ for id_, s in sources.items() if s.get("rescored")}
        before = {c["clip_id"]: c for c in self._dataset.read_part("clips", part).to_pylist()}
        merged = []
        for clip in clips:
            if clip["source_id"] in rescored:
                keep = before[clip["clip_id"]]
                clip["thumbnail"] = keep["thumbnail"]
                if not clip["new_embedding"]:
                    clip["embedding"] = keep["embedding"]
            merged.append(clip)
        untouched = [c for c in before.values() if c["source_id"] not in sources]
        merged += [{**c, "keys": dict(c["keys"] or [])} for c in untouched]
        new = {id_: s for id_, s in sources.items() if id_ not in rescored}
        return {**old, **new}, merged


def _of(names: Iterable[str], row: Row) -> Row:
    return {n: row.get(n) for n in names}
