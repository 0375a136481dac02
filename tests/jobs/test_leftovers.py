"""A build leaves no process, shared memory or temporary file behind, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.store.dataset import Dataset
from tests import render
from tests.jobs import left_behind
from tests.jobs.left_behind import until

ROOT = Path(__file__).parents[2]
CONFIG = """
base: none
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
filters: {duration: {}, resolution: {}, motion: {}}
rules: {duration.seconds: {min: 1}}
run: {object_store_mb: 128}
"""
# Long limits for busy machines. The times in brackets were measured on two idle cores.
ENDS_SECONDS = 15.0  # after Ctrl-C or SIGTERM (2)
GONE_SECONDS = 15.0  # the processes of a driver that was killed (2.5)
GIVES_UP_SECONDS = 60.0  # a worker that was just starting: it searches for its Ray, five times for 5 s


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources with some seconds of work each, so that a build can be stopped in the middle."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [render.texture(k, 120, 208) for k in range(4)]
    for i in range(4):
        shown = (frames[(k // 50 + i) % 4] for k in range(1200))
        render.write_video(folder / f"{i}.mp4", shown, fps=25)
    return folder


class Build:
    """`python -m jobs.build` in its own process group and temporary folder."""

    def __init__(self, videos: Path, place: Path, temp: Path):
        self.place = place
        self.temp = temp
        self.dataset = Dataset(str(place / "dataset"))
        self.mark = uuid.uuid4().hex
        self.shared_memory = left_behind.shared_memory()
        (place / "config.yaml").write_text(CONFIG)
        self.start(videos)

    def start(self, videos: Path) -> None:
        """Start the build, or start it again with the same dataset."""
        command = [sys.executable, "-m", "jobs.build", str(videos), "--out", self.dataset.location]
        self.process = subprocess.Popen(
            [*command, "--config", str(self.place / "config.yaml")],
            cwd=ROOT,
            env=left_behind.environment(self.mark, TMPDIR=str(self.temp)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        return left_behind.processes(self.mark)

    def wait_until_measuring(self) -> None:
        """Wait until the first part is committed. Workers and decoding children work on the next parts."""
        until(lambda: len(self.dataset.parts("sources")) >= 1 or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.process.communicate()[1]

    def wait_until_gone(self) -> None:
        """Wait until all processes of the build have ended by themselves."""
        until(lambda: all("default_worker.py" in command for command in self.commands()), GONE_SECONDS)
        until(lambda: self.processes() == [], GIVES_UP_SECONDS)

    def commands(self) -> list[str]:
        """Command lines of the build's processes. A started worker's command line is `ray::…`."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        return found

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=300)
        return self.process.returncode, err

    def left(self) -> list[str]:
        return [*left_behind.left(self.mark, self.temp, self.shared_memory), *self.dataset.unfinished()]

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def build(videos: Path, tmp_path: Path) -> Iterator[Build]:
    temp = Path("/tmp") / f"rm-{uuid.uuid4().hex[:6]}"  # short, because it contains Ray's sockets
    temp.mkdir()
    started = Build(videos, tmp_path, temp)
    yield started
    started.kill()
    subprocess.run(["rm", "-rf", str(temp)], check=True)


def test_a_build_that_ends_leaves_nothing(build: Build) -> None:
    until(lambda: any("gcs_server" in command for command in build.commands()), 120)
    until(lambda: any("curation.decode" in command for command in build.commands()), 120)
    build.wait_until_measuring()
    assert [p.name[: len("reelmill-")] for p in os.scandir(build.temp) if p.is_dir()] == ["reelmill-"]
    assert build.end()[0] == 0
    assert build.left() == []
    assert not build.dataset.exists("_lease.json")


@pytest.mark.sampled("leftovers", keep=1)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_within_seconds_and_leaves_a_resumable_dataset(
    build: Build, videos: Path, how: signal.Signals
) -> None:
    build.wait_until_measuring()
    if how == signal.SIGINT:
        os.killpg(build.process.pid, how)  # like a terminal: all foreground processes get the signal
    else:
        build.process.send_signal(how)
    began = time.monotonic()
    code, err = build.end()
    assert time.monotonic() - began < ENDS_SECONDS
    assert (code, err.strip().splitlines()[-1]) == (
        130,
        "reelmill: interrupted; run the same command again to continue",
    )
    assert build.left() == []
    done = set(build.dataset.parts("sources"))
    assert done
    assert len(done) < 4
    build.start(videos)
    assert build.end()[0] == 0
    assert done < set(build.dataset.parts("sources"))
    assert verify(build.dataset) == []


@pytest.mark.sampled("leftovers", keep=1)
def test_a_second_interrupt_leaves_at_once(build: Build) -> None:
    build.wait_until_measuring()
    build.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    build.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert build.end()[0] != 0  # 130, unless the signal came during the shutdown
    assert time.monotonic() - began < ENDS_SECONDS
    build.wait_until_gone()


@pytest.mark.sampled("leftovers", keep=1)
def test_leftovers_of_a_killed_driver_end_and_the_next_build_removes_files(
    build: Build, videos: Path
) -> None:
    build.wait_until_measuring()
    stranger = build.temp / "reelmill-of-somebody-else"
    stranger.mkdir()
    build.process.kill()
    build.end()
    build.wait_until_gone()
    (left,) = set(build.temp.iterdir()) - {stranger}
    assert left.name.startswith("reelmill-")
    build.start(videos)
    assert build.end()[0] == 0
    assert build.left() == [str(stranger)]


@pytest.mark.sampled("leftovers", keep=1)
def test_an_interrupt_while_ray_starts_leaves_nothing(build: Build) -> None:
    until(lambda: any("raylet" in p.name() for p in build.processes()), 60)
    build.process.send_signal(signal.SIGINT)
    assert build.end()[0] == 130
    until(lambda: build.left() == [], GONE_SECONDS)


@pytest.mark.sampled("leftovers", keep=1)
def test_killed_workers_are_replaced_and_their_work_is_repeated(build: Build) -> None:
    build.wait_until_measuring()
    killed = 0
    while build.process.poll() is None and killed < 3:
        for process in build.processes():
            try:
                if "Measurer" in " ".join(process.cmdline()):
                    process.kill()
                    killed += 1
                    break
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)  # the remaining sources take a second or two
    assert killed >= 2
    assert build.end()[0] == 0
    assert build.left() == []
    counts = accounting(build.dataset)
    assert (counts.sources, counts.failed_sources) == (4, 0)
    assert counts.check() == []
    assert verify(build.dataset) == []
