"""Invariant I2 with real processes: drivers, workers and decoders are killed at random moments (seeded). The
same command runs again until it ends. The rows equal the rows of an uninterrupted run."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from PIL import Image

from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.store.dataset import Dataset
from tests import render
from tests.jobs import left_behind
from tests.killing import rows_of

ROOT = Path(__file__).parents[2]
CONFIG = """
base: none
spans: {min_seconds: 1, max_seconds: 1.5, trim_seconds: 0.1}
filters: {duration: {}, resolution: {}, motion: {}, quality: {}}
rules: {duration.seconds: {min: 1}}
cut: {preset: ultrafast}
shards: {target_mb: 0.05}
run: {object_store_mb: 128, retry_seconds: 0.1, measure_cpus: 0.5, cut_cpus: 0.5}
"""
# Python runs this code at every start, also in Ray's workers. It logs every request to a decoding child.
TRACE = """
import importlib.abc, importlib.util, json, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "curation.sandbox.parent":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def execute_and_patch(module):
            execute(module)
            request = module.Child.request
            def traced(child, asked, deadline_s):
                line = json.dumps({"op": asked["op"], "source": os.path.basename(asked["uri"])})
                fd = os.open(os.environ["REELMILL_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(fd, line.encode() + b"\\n")
                os.close(fd)
                yield from request(child, asked, deadline_s)
            module.Child.request = traced
        spec.loader.exec_module = execute_and_patch
        return spec

sys.meta_path.insert(0, Finder())
"""
SOURCES = 14
# Unfinished parts at a kill: one in each of the four workers, and as many parts whose rows are in transit.
IN_FLIGHT = 8


@dataclass
class Killed:
    """Counts over all rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    datasets: int = 0
    repeated: list[int] = field(default_factory=list)  # repeated sources per dataset


class Place:
    """Footage, a configuration, the dataset of an uninterrupted run, and a log of decoding requests."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.footage = folder / "footage"
        self.footage.mkdir()
        for k in range(SOURCES - 4):
            frames = render.scenes([30, 30 + k], (128, 96), fps=20, seed=10 * k)
            render.write_video(self.footage / f"{k}.mp4", frames, fps=20)
        shutil.copy(self.footage / "3.mp4", self.footage / "copy.mp4")
        Image.fromarray(render.texture(4, 96, 128)).save(self.footage / "still.png")
        (self.footage / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))
        (self.footage / "text.mp4").write_text("no video\n" * 100)
        (folder / "c.yaml").write_text(CONFIG)
        (folder / "traced").mkdir()
        (folder / "traced" / "sitecustomize.py").write_text(TRACE)
        done = self.run("reference").wait(300)
        assert done == 0, (folder / "reference.err").read_text()[-3000:]
        self.expected = rows_of(Dataset(str(folder / "reference")))
        assert accounting(Dataset(str(folder / "reference"))).sources == SOURCES
        self.mark = ""

    def run(self, name: str) -> subprocess.Popen[bytes]:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "jobs.build", str(self.footage), "--out", str(self.folder / name)]
        log, traced = str(self.folder / f"{name}.log"), str(self.folder / "traced")
        return subprocess.Popen(
            [*command, "--config", str(self.folder / "c.yaml")],
            cwd=ROOT,
            env=left_behind.environment(self.mark, REELMILL_LOG=log, PYTHONPATH=traced),
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / f"{name}.err").open("ab"),
            start_new_session=True,
        )

    def victims(self, driver: subprocess.Popen[bytes], what: str) -> list[psutil.Process]:
        """The processes of this run: the driver, Ray's workers, or the decoding children."""
        if what == "driver":
            return [psutil.Process(driver.pid)]
        found = []
        for process in left_behind.processes(self.mark):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            wanted = "curation.decode" in line if what == "decoder" else line.startswith("ray::")
            if wanted:
                found.append(process)
        return found

    def measured(self, name: str) -> Counter[str]:
        path = self.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(json.loads(line)["source"] for line in lines if json.loads(line)["op"] == "measure")


def wait_for_it(place: Place, driver: subprocess.Popen[bytes], name: str, draw: random.Random) -> None:
    """Wait for the moment of a kill: during work in three of four cases, otherwise at any time."""
    log = place.folder / f"{name}.log"
    lines = log.stat().st_size if log.exists() else 0
    at_work, wait_s = draw.random() < 0.75, draw.uniform(0.0, 3.0)
    while at_work and driver.poll() is None and (not log.exists() or log.stat().st_size == lines):
        time.sleep(0.01)
    end = time.monotonic() + (wait_s if at_work else 3 * wait_s)
    while driver.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def kill_until_done(place: Place, draw: random.Random, total: Killed, rounds: int) -> None:
    """Make one dataset: kill at random moments and run again, until a run ends."""
    name = f"d{total.datasets}"
    total.datasets += 1
    drivers_killed = 0
    while True:
        total.runs += 1
        driver = place.run(name)
        whom = draw.choice(["driver", "driver", "worker", "decoder", "both"])
        if sum(total.kills.values()) < rounds:
            wait_for_it(place, driver, name, draw)
            targets = {"both": ["worker", "driver"]}.get(whom, [whom])
            for what in targets if driver.poll() is None else []:
                alive = place.victims(driver, what)
                if alive:
                    draw.choice(sorted(alive, key=lambda p: p.pid)).send_signal(signal.SIGKILL)
                    total.kills[what] += 1
                    drivers_killed += what == "driver"
        code = driver.wait()
        if code == 0:
            break
        assert code in (-signal.SIGKILL, 1), (place.folder / f"{name}.err").read_text()[-3000:]
    dataset = Dataset(str(place.folder / name))
    assert verify(dataset) == []
    assert dataset.unfinished() == []
    assert rows_of(dataset) == place.expected
    measured = place.measured(name)
    assert len(measured) == SOURCES - 1  # the copy is not decoded
    again = sum(measured.values()) - len(measured)
    total.repeated.append(again)
    assert again <= IN_FLIGHT * max(1, drivers_killed) + sum(total.kills.values())
    shutil.rmtree(place.folder / name)


def report(total: Killed) -> str:
    return (
        f"{sum(total.kills.values())} kills ({dict(total.kills)}) in {total.runs} runs over {total.datasets} "
        f"datasets: rows equal every time; {sum(total.repeated)} of {total.datasets * (SOURCES - 1)} sources "
        "were measured once more"
    )


def test_killed_once_or_twice(tmp_path: Path, seed: int) -> None:
    """Whom the seed draws: the driver, a worker, a decoder, or a worker and then the driver."""
    place, total = Place(tmp_path), Killed()
    draw = random.Random(seed)
    while not total.kills:
        kill_until_done(place, draw, total, 1)
    print(report(total))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_a_hundred_times(tmp_path: Path) -> None:
    place, total = Place(tmp_path), Killed()
    draw = random.Random(0)
    while sum(total.kills.values()) < 100:
        kill_until_done(place, draw, total, 100)
    print(report(total))
    assert set(total.kills) == {"driver", "worker", "decoder"}
