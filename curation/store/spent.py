"""The time that builds took: seconds of work in each stage, and the seconds in which its workers existed.

A worker reports the seconds of each piece of work (`told`). After each phase the driver adds these seconds to
`spent.json`. So `spent.json` holds all work for a dataset, except phases in which the driver was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from curation.store.dataset import Dataset
from curation.store.rows import Spent

T = TypeVar("T")
_FILE = "spent.json"
_MAX_SECONDS = 1e15


def told(stage: str, worker: str, seconds: float) -> Spent:
    """One worker's report about a piece of its work."""
    return {"stage": stage, "worker": worker, "seconds": seconds}


class Timed(Iterator[T]):
    """The same items as `items`. `seconds` is the time that `items` took to produce them.

    The time of the caller between two items does not count.
    """

    def __init__(self, items: Iterator[T]):
        self._items = items
        self.seconds = 0.0

    def __next__(self) -> T:
        began = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - began


@dataclass
class Stage:
    """The time of one stage.

    busy_s: seconds of work, summed over the workers. worker_s: seconds in which the workers existed, summed
    over the workers. wall_s: seconds that the phase lasted.
    """

    busy_s: float = 0.0
    worker_s: float = 0.0
    wall_s: float = 0.0

    @property
    def busy(self) -> float:
        """The share of the workers' time in which the workers worked, from 0 to 1."""
        return min(1.0, self.busy_s / self.worker_s) if self.worker_s else 0.0


class Phase:
    """One run of measuring, cutting or captioning, summed up from the reports of its workers."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy_s: dict[str, float] = {}
        self._workers: dict[str, set[str]] = {}

    def add(self, spent: Spent) -> None:
        stage = spent["stage"]
        self._busy_s[stage] = self._busy_s.get(stage, 0.0) + spent["seconds"]
        self._workers.setdefault(stage, set()).add(spent["worker"])

    def commit(self, dataset: Dataset) -> str:
        """Add the phase to `spent.json`. Returns a summary for the user, or "" if no work was done."""
        wall_s = time.monotonic() - self._began
        if not self._busy_s:
            return ""
        stages = read(dataset)
        lines = []
        for name, busy_s in self._busy_s.items():
            workers = len(self._workers[name])
            here = Stage(busy_s, workers * wall_s, wall_s)
            lines.append(f"{name} {here.busy:.0%} of {workers} worker{'s' * (workers > 1)}")
            stage = stages.setdefault(name, Stage())
            stage.busy_s += here.busy_s
            stage.worker_s += here.worker_s
            stage.wall_s += here.wall_s
        text = json.dumps({name: asdict(stage) for name, stage in stages.items()}, indent=2)
        dataset.write(_FILE, text.encode())
        return f"{wall_s:.0f} s, at work in them: {', '.join(lines)}"


def read(dataset: Dataset) -> dict[str, Stage]:
    """The time of each stage, in the order in which the stages first ran."""
    if not dataset.exists(_FILE):
        return {}
    found = dataset.read_json(_FILE)
    if not isinstance(found, dict) or not all(map(_is_stage, found.values())):
        raise dataset.damaged(_FILE, "it does not hold seconds by stage; it may be removed as well")
    return {name: Stage(**stage) for name, stage in found.items()}


def _is_stage(value: Any) -> bool:
    names = {field.name for field in fields(Stage)}
    return (
        isinstance(value, dict)
        and value.keys() <= names
        and all(type(v) in (int, float) and abs(v) < _MAX_SECONDS for v in value.values())
    )
