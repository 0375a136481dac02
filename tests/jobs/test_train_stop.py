"""`reelmill train` in one process: after any kind of end, the next start resumes with the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from generation.config import Config
from generation.train import checkpoint
from generation.train.trainer import losses_of
from tests.generation.tiny_runs import ROOT, dataset, different, tiny, train

ENDLESS = 100_000  # steps


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


class Command:
    """`reelmill train` in its own process group."""

    def __init__(self, config: Config, data: Path, run: Path, steps: int):
        self.folder = run / config.stage
        path = run.with_name(f"{run.name}.json")
        path.write_text(config.model_dump_json())
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jobs.cli", "train", config.stage),
                *("--data", data, "--out", run, "--config", path, "--steps", str(steps), "--device", "cpu"),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def logged(self) -> int:
        return len(losses_of(self.folder)) if (self.folder / "log.jsonl").exists() else 0

    def wait_for_step(self, step: int) -> None:
        until(lambda: self.process.poll() is not None or self.logged() >= step, 120)
        assert self.process.poll() is None, self.process.communicate()[1]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> tuple[int, list[str]]:
        """The exit code, and the lines of standard error."""
        _, err = self.process.communicate(timeout=120)
        return self.process.returncode, err.strip().splitlines()


def until(true: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


@pytest.fixture
def started() -> Iterator[list[Command]]:
    commands: list[Command] = []
    yield commands
    for command in commands:
        command.process.kill()
        command.process.communicate()


def _gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_resumes_with_the_same_result(
    how: signal.Signals, data: Path, tmp_path: Path, started: list[Command]
) -> None:
    kept_every = 3 if how == signal.SIGKILL else 1000
    config = tiny(train={"accumulate": 2, "checkpoint_every": kept_every}, data={"workers": 1})
    command = Command(config, data, tmp_path / "stopped", ENDLESS)
    started.append(command)
    command.wait_for_step(5)
    children = command.children()
    assert children
    if how == signal.SIGINT:
        os.killpg(command.process.pid, how)  # like a terminal: all foreground processes get it
    else:
        command.process.send_signal(how)
    code, lines = command.end()
    until(lambda: _gone(children), 30)
    steps = checkpoint.steps(command.folder / "checkpoints")
    if how == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert steps[-1] % 3 == 0
    else:
        assert (code, lines[-1]) == (130, "reelmill: interrupted; run the same command again to continue")
        assert not [line for line in lines if "Traceback" in line]
        assert steps == [command.logged()]  # the step ended and its checkpoint is kept
    last = command.logged() + 3
    whole = Config.model_validate(
        {**config.model_dump(), "train": {**config.train.model_dump(), "steps": last}}
    )
    straight = train(whole, data, tmp_path / "straight")
    assert different(straight.folder, train(whole, data, tmp_path / "stopped").folder) == []


def test_a_second_interrupt_ends_at_once(data: Path, tmp_path: Path, started: list[Command]) -> None:
    """The first interrupt has no effect yet, because a step takes minutes."""
    config = tiny(train={"accumulate": 20_000})
    command = Command(config, data, tmp_path / "run", ENDLESS)
    started.append(command)
    until(lambda: command.process.poll() is not None or (command.folder / "tensorboard").exists(), 120)
    time.sleep(1)
    command.process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, lines = command.end()
    assert time.monotonic() - began < 15
    assert (code, lines[-1]) == (130, "reelmill: interrupted; run the same command again to continue")
    assert checkpoint.steps(command.folder / "checkpoints") == []


def test_a_complete_training_is_not_changed_again(data: Path, tmp_path: Path, started: list[Command]) -> None:
    config = tiny(train={"steps": 3})
    folder = train(config, data, tmp_path / "run").folder
    shutil.copytree(folder, tmp_path / "before" / "stage1", symlinks=True)
    command = Command(config, data, tmp_path / "run", 3)
    started.append(command)
    code, lines = command.end()
    assert code == 0
    assert lines[-1] == f"{folder} is trained: 3 steps"
    assert different(folder, tmp_path / "before" / "stage1") == []
