"""Invariant I2 for the commands without Ray: two of the same command start at once on one folder, and one of
them, or both, are killed at random moments (seeded). Pairs start until one ends. Then the place has the
content of a place where the command ran once without a kill."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.generation import synthetic, tiny_runs
from tests.jobs import left_behind

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "data" / "made-by-0.1.0"
CONTENTS = synthetic.contents(40, 5)
PREVIEW = "{place}/videos/0000-a-red-circle"
# Commands differ in these alone, whatever they do: how long a step of a recipe took, and files of
# TensorBoard, whose names and records are times.
TIMES = ("seconds",)  # keys of JSON files
TAKEN = re.compile(rb'title="[0-9.e-]+ s">\d+:\d\d:\d\d<')  # in recipe.html
UNEQUAL = ("tensorboard",)  # folders
# A kill comes at any time, at work, or while a file or folder is being written.
AT_WORK = ("work", "write")
MOMENTS = ("any", *AT_WORK, *AT_WORK)
WHOM = ("one", "one", "both")
PAIRS = 60  # of one command, at most
GONE_SECONDS = 15.0  # what a killed process started looks for it at intervals of seconds


@dataclass(frozen=True)
class Command:
    """arguments: of `reelmill`. lease: the file that names who works, from where all work begins. prepare:
    makes what the command reads in an empty folder."""

    arguments: str
    lease: str
    prepare: Callable[[Path], None]


def kept(place: Path) -> None:
    """Videos, dataset and run of an earlier version, and prompts."""
    shutil.copytree(KEPT, place, dirs_exist_ok=True)
    (place / "prompts.txt").write_text("".join(f"{what.caption}\n" for what in CONTENTS[:12]))


def clips(place: Path) -> None:
    """A dataset of some hundred clips."""
    shutil.copytree(KEPT / "dataset", place / "dataset")
    shutil.rmtree(place / "dataset" / "shards")
    synthetic.write_dataset(place / "dataset", 400, shards=3)


def training(place: Path) -> None:
    """A configuration with a checkpoint at every third step, and validation and samples between them."""
    tiny_runs.dataset(place / "dataset")
    train = {"steps": 45, "checkpoint_every": 3, "validate_every": 6, "sample_every": 15}
    config = tiny_runs.tiny(train={**train, "cache_latents": True})
    (place / "config.yaml").write_text(config.model_dump_json())


def trained(place: Path) -> None:
    """An autoencoder and both stages, and what their evaluation shall measure."""
    dataset = synthetic.write_dataset(place / "dataset", 24, frames=5, width=16, height=16)
    run = place / "run"
    codec = {"kind": "slice", "model": str(run / "vae"), "temporal": 4, "spatial": 4}
    diffusion = {"codec": codec, "transformer": {"patch": 1}}
    stages: dict[str, tuple[int, dict[str, Any]]] = {
        "vae": (16, {"vae_loss": {"adversarial": 0}}),
        "stage1": (8, diffusion),
        "stage2": (16, diffusion),
    }
    for stage, (side, sections) in stages.items():
        bucket = {"frames": 5, "height": side, "width": side}
        data = {"buckets": [bucket], "validation_fraction": 0.3, "single_frame_fraction": 0}
        config = tiny_runs.tiny(stage, data=data, train={"steps": 4, "cache_text": False}, **sections)
        tiny_runs.train(config, dataset, run)
        shutil.rmtree(run / stage / "cache")
    settings = {
        "clips": 3,
        "prompts": 6,
        "untrained": 2,
        "evaluations": [1, 2, 4],
        "attributes": {"colour": list(synthetic.COLOURS)},
        "judge_clips": 64,
        "judge_steps": 50,
    }
    (place / "evaluate.yaml").write_text(yaml.safe_dump(settings))


def datasets(place: Path) -> None:
    """A dataset and held-out clips for a recipe."""
    synthetic.write_dataset(place / "dataset", 16, frames=24)
    synthetic.write_dataset(place / "held-out", 8, frames=24, seed=3)


FEW = " ".join(f"--set {name}.config.train.steps=8" for name in ("vae", "stage1", "stage2", "lossless"))
OFTEN = " ".join(
    f"--set {name}.config.train.{key}=4"
    for name in ("vae", "stage1", "stage2", "lossless")
    for key in ("checkpoint_every", "validate_every")
)
COMMANDS = {
    "train": Command(
        "train stage1 --data {place}/dataset --out {place}/run --config {place}/config.yaml",
        "run/stage1/_lease.json",
        training,
    ),
    "sample": Command(
        "sample --prompts {place}/prompts.txt --run {place}/run --out {place}/made --steps 8",
        "made/_lease.json",
        kept,
    ),
    "enhance": Command(
        f"enhance {PREVIEW} --run {{place}}/run --size 64x64 --steps 60",
        "videos/0000-a-red-circle/_lease-final.mp4.json",
        kept,
    ),
    "evaluate": Command(
        "evaluate --run {place}/run --data {place}/dataset --config {place}/evaluate.yaml",
        "run/evaluation/_lease.json",
        trained,
    ),
    "export": Command(
        "export {place}/dataset --to files --out {place}/made",
        "made/_lease.json",
        clips,
    ),
    "export to tars": Command(
        "export {place}/dataset --to webdataset --out {place}/made",
        "made/_lease.json",
        clips,
    ),
    "report": Command(
        "report {place}/dataset",
        "dataset/_lease-report.html.json",
        kept,
    ),
    "recipe": Command(
        "recipe --data {place}/dataset --held-out {place}/held-out --out {place}/made --level smoke "
        f"--set evaluate.clips=4 --set evaluate.prompts=2 {FEW} {OFTEN}",
        "made/_lease.json",
        datasets,
    ),
}


def content(place: Path) -> dict[str, Any]:
    """All files and folders by name, without what differs between two runs that nobody killed."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if not set(UNEQUAL).isdisjoint(name.parts):
            continue
        if path.is_dir():
            found[str(name)] = "a folder"
            continue
        found[str(name)] = path.read_bytes()
        if path.suffix == ".json":
            found[str(name)] = _without_times(json.loads(found[str(name)]))
        elif path.name == "recipe.html":
            found[str(name)] = TAKEN.sub(b"", found[str(name)])
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [_without_times(inner) for inner in value] if isinstance(value, list) else value


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what only one of two places has, or has otherwise."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def unfinished(place: Path) -> list[str]:
    """Names that only exist while a command is at work: leases, and what is written aside."""
    return [str(path.relative_to(place)) for path in place.rglob("_*")]


@dataclass
class Killed:
    """Counts over all pairs of a command."""

    kills: Counter[str] = field(default_factory=Counter)  # of the one at work, or of another
    runs: int = 0
    refused: int = 0
    places: int = 0

    @property
    def sum(self) -> int:
        return sum(self.kills.values())

    def is_enough(self, kills: int) -> bool:
        """Whether there were so many kills, and half as many of one at work."""
        return self.sum >= kills and 2 * self.kills["at work"] >= kills


class Place:
    """A folder where one command runs again and again, and what it holds after a run without a kill."""

    def __init__(self, folder: Path, name: str):
        self.name, self.command = name, COMMANDS[name]
        self.place, self.inputs, self.told = folder / "place", folder / "inputs", folder / "told"
        self.place.mkdir(parents=True)
        self.told.mkdir()
        self.command.prepare(self.place)
        self.place.rename(self.inputs)  # paths that it holds are paths in `place`
        self.lease = self.place / self.command.lease
        self.mark = uuid.uuid4().hex
        self.renew()
        began = time.monotonic()
        process = self.start()
        while process.poll() is None and not self.lease.exists():
            time.sleep(0.001)
        at_work = time.monotonic()
        assert process.wait(600) == 0, self.said(process)
        self.seconds, self.work_seconds = time.monotonic() - began, time.monotonic() - at_work
        assert unfinished(self.place) == []
        self.expected = content(self.place)
        assert different(self.expected, content(self.inputs))

    def renew(self) -> None:
        """A place where the command has not run."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.inputs, self.place)

    def start(self) -> subprocess.Popen[bytes]:
        words = [word.format(place=self.place) for word in self.command.arguments.split()]
        aside = self.told / "started"
        with aside.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *words],
                cwd=ROOT,
                env=left_behind.environment(self.mark, OMP_NUM_THREADS="1"),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        aside.rename(self.told / str(process.pid))
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.told / str(process.pid)).read_text()[-4000:]

    def holder(self) -> int | None:
        """The process that the lease names."""
        try:
            found = json.loads(self.lease.read_bytes())
        except (FileNotFoundError, ValueError):  # it is being written
            return None
        return int(found["pid"])

    def is_at_work(self, pair: list[subprocess.Popen[bytes]]) -> bool:
        return self.holder() in {process.pid for process in alive(pair)}

    def is_writing(self) -> bool:
        folder = self.lease.parent
        return any(not path.name.startswith("_lease") for path in folder.rglob("_*"))


def alive(pair: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [process for process in pair if process.poll() is None]


def wait_for_it(
    place: Place, pair: list[subprocess.Popen[bytes]], draw: random.Random, moments: Sequence[str]
) -> None:
    """Wait for the moment of a kill, or until both have ended."""

    def wait(true: Callable[[], bool]) -> None:
        while alive(pair) and not true():
            time.sleep(0.001)

    moment, part = draw.choice(moments), draw.random()
    seconds = part * (place.seconds if moment == "any" else place.work_seconds)
    if moment != "any":
        wait(lambda: place.is_at_work(pair))
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() >= end)
    if moment == "write":
        wait(place.is_writing)


def kill(place: Place, pair: list[subprocess.Popen[bytes]], draw: random.Random, total: Killed) -> None:
    there, holder, whom = alive(pair), place.holder(), draw.choice(WHOM)
    victims = there if whom == "both" else draw.sample(there, min(1, len(there)))
    for process in victims:
        process.send_signal(signal.SIGKILL)
    for process in victims:
        if process.wait() == -signal.SIGKILL:
            total.kills["at work" if process.pid == holder else "else"] += 1


def run_pair(place: Place, draw: random.Random, total: Killed, moments: Sequence[str]) -> bool:
    """Start the command twice, and kill at one of the moments if there are any. Returns whether one of the
    two has done its work."""
    pair = [place.start(), place.start()]
    total.runs += 2
    if moments:
        wait_for_it(place, pair, draw, moments)
        kill(place, pair, draw, total)
    codes = [process.wait(600) for process in pair]
    for process, code in zip(pair, codes, strict=True):
        said = place.said(process)
        assert code in (0, 2, -signal.SIGKILL), said
        assert "Traceback" not in said
        if code == 2:
            (line,) = [line for line in said.splitlines() if line.startswith("reelmill: ")]
            assert " work" in line, line
            assert f" on {place.lease.parent}: run this again when it has ended" in line, line
            total.refused += 1
    left_behind.until(lambda: left_behind.processes(place.mark) == [], GONE_SECONDS)
    return 0 in codes


def kill_until_done(place: Place, draw: random.Random, kills: int, moments: Sequence[str]) -> Killed:
    """Kill, and start again, until one has done its work. Then the content is compared. All that again in a
    new place until there were enough kills."""
    total = Killed()
    for _ in range(PAIRS):
        if run_pair(place, draw, total, () if total.is_enough(kills) else moments):
            total.places += 1
            assert unfinished(place.place) == []
            assert different(content(place.place), place.expected) == []
            if total.is_enough(kills):
                return total
            place.renew()
    raise AssertionError(f"{place.name}: only {total.kills} in {PAIRS} pairs")


def report(place: Place, total: Killed, seconds: float) -> str:
    return (
        f"{place.name}: {total.sum} kills ({total.kills['at work']} at work) in {total.runs} runs "
        f"({total.refused} refused) over {total.places} places in {seconds:.0f} s; a run alone takes "
        f"{place.seconds:.1f} s, {place.work_seconds:.1f} s of them at work: content equal every time"
    )


def kill_command(
    folder: Path, name: str, draw: random.Random, kills: int, moments: Sequence[str] = MOMENTS
) -> Killed:
    place = Place(folder, name)
    began = time.monotonic()
    try:
        total = kill_until_done(place, draw, kills, moments)
    finally:
        for process in left_behind.processes(place.mark):
            process.kill()
    print(report(place, total, time.monotonic() - began))
    return total


def test_killed_once(tmp_path: Path, seed: int) -> None:
    """The command that the seed draws, at work."""
    draw = random.Random(seed)
    name = draw.choice(["train", "sample", "export"])
    kill_command(tmp_path, name, draw, 1, AT_WORK)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_sixty_times(tmp_path: Path) -> None:
    print()
    for k, name in enumerate(COMMANDS):
        kill_command(tmp_path / str(k), name, random.Random(k), 8)
