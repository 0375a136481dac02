"""Builds that are killed at every commit point: `python -m tests.killing PLACE`, in a process without Ray.

Each round runs in a forked process which kills itself with SIGKILL when it comes to the n-th change of the
dataset on disk (a file that is about to appear, of which half is written aside; one that is about to be moved
or removed). Then the same command is run again, to its end. The workers' code runs in that process, and the
decoder too: it is the commits that are tried here. Prints one JSON object per scenario.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioning import makers
from curation import pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.commands import caption, remove, select
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode import cut, measure, rescore
from curation.driver import captions as driver_captions
from curation.progress import Progress
from curation.sandbox.parent import Child
from curation.sandbox.protocol import Message
from curation.sources.listing import list_sources
from curation.store import whole_file
from curation.store.dataset import Dataset
from tests import render
from tests.conftest import CHEAP
from tests.curation.inline import Inline

Row = dict[str, Any]
SETTINGS = [
    "spans.min_seconds=1",
    "spans.max_seconds=1.5",
    "spans.trim_seconds=0.1",
    "rules.motion.speed.max=0.3",
    "cut.preset=ultrafast",
    "shards.target_mb=0.02",
]
_UNEQUAL = {"seconds", "config_hash"}  # how long it took; what the first cut of a shard row was made by


def config(*overrides: str) -> Config:
    return load_config(CHEAP, [*SETTINGS, *overrides])


@dataclass
class Scenario:
    """A command over a state of the dataset."""

    name: str
    command: Callable[[Dataset, Path], None]
    begins_built: bool


def _build(*overrides: str, **options: Any) -> Callable[[Dataset, Path], None]:
    def command(target: Dataset, footage: Path) -> None:
        listed = list_sources([str(footage)])
        if options.get("prune"):
            listed = [s for s in listed if not s.uri.endswith(("a.mp4", "torn.mp4"))]
        pipeline.build(target, listed, config(*overrides), Progress(), **options)

    return command


def _remove(target: Dataset, footage: Path) -> None:
    remove.remove(target, [str(footage / "a.mp4")], config())


def _select(target: Dataset, footage: Path) -> None:
    tighter = config("rules.motion.speed.max=2", "rules.resolution.short_side.min=97")
    select.reselect(target, tighter, Progress(), nullcontext)


# Some clips fail, some captions are turned down (half of them twice).
SPEAKER = [
    "captions.captioner=transformers",
    "captions.transformers={fails: 3, stutters: 6, stutters_again: 8, batch_clips: 2}",
    "rules.caption.repetition.max=0.3",
]


def _caption(*overrides: str) -> Callable[[Dataset, Path], None]:
    def command(target: Dataset, footage: Path) -> None:
        caption.recaption(target, config(*overrides), Progress(), nullcontext)

    return command


def _edited_sidecars(target: Dataset, footage: Path) -> None:
    before = (footage / "b.txt").read_text()
    try:
        (footage / "b.txt").write_text("another caption")
        (footage / "a.txt").write_text("one that is new")
        caption.recaption(target, config(), Progress(), nullcontext)
    finally:  # a kill leaves them: the next round writes the same
        (footage / "b.txt").write_text(before)
        (footage / "a.txt").unlink()


SCENARIOS = [
    Scenario("build", _build(), False),
    Scenario("build with captions by a model", _build(*SPEAKER), False),
    Scenario("captions by a model", _caption(*SPEAKER), True),
    Scenario("edited sidecars", _edited_sidecars, True),
    Scenario("a changed scorer", _build("filters.quality.frames=3", "filters.motion.per_second=5"), True),
    Scenario("a changed detector", _build("shots.detector=none", "spans.max_seconds=2"), True),
    Scenario("changed encoder and prune", _build("cut.crf=30", prune=True), True),
    Scenario("other rules", _select, True),
    Scenario("remove", _remove, True),
]


def write_footage(folder: Path) -> None:
    folder.mkdir(parents=True)
    render.write_video(folder / "a.mp4", render.scenes([30, 40], (128, 96), fps=20), fps=20)
    render.write_video(folder / "b.mkv", render.scenes([50], (128, 128), fps=20, seed=5), fps=20)
    render.write_video(folder / "fast.mp4", render.pan(3, (128, 96), fps=20, seconds=1.6, speed=0.6), fps=20)
    shutil.copy(folder / "b.mkv", folder / "copy.mkv")
    (folder / "b.txt").write_text("a caption")
    Image.fromarray(render.texture(4, 96, 128)).save(folder / "still.png")
    (folder / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))


class _InProcess:
    """Decoding without a child; a count of what was decoded and encoded."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> _InProcess:
        operations = {"measure": measure.run, "rescore": rescore.run, "cut": cut.run}

        def request(child: Child, asked: Row, deadline_s: float) -> Iterator[Message]:
            self.done[f"{asked['op']} {Path(asked['uri']).name}"] += 1
            for message in operations[asked["op"]](asked):
                if message.head["kind"] != "deadline":
                    yield Message(json.loads(json.dumps(message.head)), message.parts)

        self._inline = Inline()
        self._inline.__enter__()
        self._patch.setattr(Child, "request", _failing_as_a_child_does(request))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self._inline.__exit__()


def _failing_as_a_child_does(request: Any) -> Any:
    from curation.sandbox.protocol import SourceFailed

    def answered(child: Child, asked: Row, deadline_s: float) -> Iterator[Message]:
        try:
            yield from request(child, asked, deadline_s)
        except (OSError, ValueError) as error:
            raise SourceFailed("open", type(error).__name__, str(error)) from error

    return answered


class _Killer:
    """Counts changes of the dataset on disk, and kills this process before the n-th one."""

    def __init__(self, at: int | None):
        self.count = 0
        self._at = at
        whole_exit, remove, move = whole_file.Whole.__exit__, Dataset.remove, Dataset.move

        def exit_(whole: Any, kind: Any, *rest: Any) -> None:
            if kind is None and self._due():
                whole._file.flush()
                os.truncate(whole._aside, os.path.getsize(whole._aside) // 2)
                self._kill()
            whole_exit(whole, kind, *rest)

        def removing(target: Dataset, name: str) -> None:
            if target.exists(name) and self._due():
                self._kill()
            remove(target, name)

        def moving(target: Dataset, name: str, to: str) -> None:
            if self._due():
                self._kill()
            move(target, name, to)

        whole_file.Whole.__exit__ = exit_  # type: ignore[method-assign]
        Dataset.remove = removing  # type: ignore[method-assign]
        Dataset.move = moving  # type: ignore[method-assign]

    def _due(self) -> bool:
        self.count += 1
        return self.count == self._at

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _run(scenario: Scenario, target: Dataset, footage: Path, at: int | None) -> Any:
    """In a process of its own: (changes of the disk, what was decoded); None when it was killed."""

    def work() -> tuple[int, dict[str, int]]:
        killer = _Killer(at)
        with _InProcess() as did:
            scenario.command(target, footage)
        return killer.count, dict(did.done)

    return _forked(work)


def _forked(work: Callable[[], Any]) -> Any:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        code = 1
        try:
            sys.stderr = open(os.devnull, "w")
            answer = pickle.dumps(work())
            sys.stderr = sys.__stderr__
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(answer)
            code = 0
        except BaseException:
            sys.stderr = sys.__stderr__
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.waitstatus_to_exitcode(status) == 0, "the round failed"
    return pickle.loads(answer)


def rows_of(target: Dataset, *, with_bytes: bool = True) -> dict[str, dict[str, Row]]:
    """Every row of every table by its id, but for what may differ from run to run."""
    tables: dict[str, dict[str, Row]] = {}
    for name in ("sources", "clips", "captions", "failures", "shards"):
        for row in target.rows(name):
            if name == "shards" and not with_bytes:
                row["video"] = None
            if name == "clips":
                row["keys"] = dict(row["keys"] or [])
                row["embedding"] = None if row["embedding"] is None else list(row["embedding"])
            id_ = row["source_id"] if name == "sources" else row["clip_id"]
            if name == "captions":
                id_ = f"{id_} {row['kind']} {row['key']}"
            assert id_ not in tables.setdefault(name, {}), f"{id_} is there twice in {name}"
            tables[name][id_] = {k: v for k, v in row.items() if k not in _UNEQUAL}
    tables["verdicts"] = {v["clip_id"]: v for v in target.verdicts()}
    return tables


def _state(target: Dataset) -> Any:
    return _forked(lambda: (rows_of(target), verify(target), accounting(target).check(), target.unfinished()))


def run_scenario(
    scenario: Scenario, place: Path, footage: Path, every: int = 1, first: int = 1
) -> dict[str, Any]:
    """Kill the command at its change number `first` and at every `every`-th one after that, run it again, and
    compare."""
    base = place / "base"
    if scenario.begins_built and not base.exists():
        _run(SCENARIOS[0], Dataset(str(base)), footage, None)

    def fresh(name: str) -> Dataset:
        shutil.rmtree(place / name, ignore_errors=True)
        if scenario.begins_built:
            shutil.copytree(base, place / name)
        return Dataset(str(place / name))

    reference = fresh("reference")
    changes, once = _run(scenario, reference, footage, None)
    expected = _state(reference)
    assert expected[1:] == ([], [], []), expected[1:]
    rounds = different = repeated = 0
    problems: list[str] = []
    for n in range(first, changes + 1, every):
        target = fresh("killed")
        assert _run(scenario, target, footage, n) is None, f"change {n} of {changes} was not come to"
        # Every third time, the one that goes on is killed as well.
        if n % 3 == 0:
            _run(scenario, target, footage, 1 + n // 3)
        _, again = _run(scenario, target, footage, None)
        found = _state(target)
        rounds += 1
        repeated = max(repeated, sum(again.values()))
        if found != expected:
            different += 1
            tables = [t for t in expected[0] if found[0].get(t) != expected[0][t]]
            problems.append(f"change {n}: {found[1:]}, {tables}")
    return {
        "scenario": scenario.name,
        "changes": changes,
        "rounds": rounds,
        "different": different,
        "decodes_uninterrupted": sum(once.values()),
        "most_decodes_after_a_kill": repeated,
        "problems": problems[:5],
    }


def main() -> None:
    place = Path(sys.argv[1])
    patch = pytest.MonkeyPatch()  # in this process and those that it forks
    places = {**makers._PLACES, "transformers": ("tests.curation.speaker", "Speaker")}
    patch.setattr(makers, "_PLACES", places)
    patch.setattr(driver_captions, "_PART_ROWS", 2)
    every, first = map(int, sys.argv[2:4]) if len(sys.argv) > 3 else (1, 1)
    footage = place / "footage"
    _forked(lambda: write_footage(footage))
    for scenario in SCENARIOS:
        print(json.dumps(run_scenario(scenario, place, footage, every, first)), flush=True)


if __name__ == "__main__":
    main()
