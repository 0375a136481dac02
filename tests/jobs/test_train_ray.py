"""`reelmill train … --workers 2` on a local Ray: it trains, stops, resumes, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from generation.config import Config
from generation.train import checkpoint
from generation.train.parallel import join
from generation.train.trainer import losses_of
from tests.generation.tiny_runs import ROOT, dataset, different, kept, on_two_ranks, tiny, train
from tests.jobs import left_behind
from tests.jobs.left_behind import until

ENDLESS = 100_000  # steps
# Long limits for busy machines. The times in brackets were measured on two busy cores.
STARTS_SECONDS = 180.0  # until the first steps are logged (30)
ENDS_SECONDS = 30.0  # after Ctrl-C or SIGTERM (3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


class Command:
    """`reelmill train` with two workers, in its own process group and temporary folder."""

    def __init__(self, data: Path, place: Path):
        self.data, self.place = data, place
        self.run = place / "run"
        self.temp = Path("/tmp") / f"rm-{uuid.uuid4().hex[:6]}"  # short, because it contains Ray's sockets
        self.temp.mkdir()
        self.mark = uuid.uuid4().hex
        self.shared_memory = left_behind.shared_memory()
        self.process: subprocess.Popen[str] | None = None

    def start(self, config: Config, steps: int, data: Path | None = None) -> None:
        """Start the training, or start it again with the same run."""
        path = self.place / "config.json"
        path.write_text(config.model_dump_json())
        self.folder = self.run / config.stage
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jobs.cli", "train", config.stage, "--workers", "2"),
                *("--data", data or self.data, "--out", self.run, "--config", path),
                *("--steps", str(steps), "--device", "cpu"),
            ],
            cwd=ROOT,
            env=left_behind.environment(self.mark, TMPDIR=str(self.temp)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def logged(self) -> int:
        return len(losses_of(self.folder)) if (self.folder / "log.jsonl").exists() else 0

    def wait_for_step(self, step: int) -> None:
        assert self.process
        until(lambda: self.process.poll() is not None or self.logged() >= step, STARTS_SECONDS)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.process.communicate()[1]

    def processes(self) -> list[psutil.Process]:
        return left_behind.processes(self.mark)

    def end(self) -> tuple[int, list[str]]:
        """The exit code, and the lines of standard error."""
        assert self.process
        _, err = self.process.communicate(timeout=STARTS_SECONDS)
        return self.process.returncode, err.strip().splitlines()

    def left(self) -> list[str]:
        """Leftovers, including the files that Ray Train stores in the run during work."""
        storage = [str(path) for path in self.run.glob("*/_ray")]
        return [*left_behind.left(self.mark, self.temp, self.shared_memory), *storage]

    def clean_up(self) -> None:
        for process in self.processes():
            process.kill()
        if self.process:
            self.process.communicate()
        subprocess.run(["rm", "-rf", str(self.temp)], check=True)


@pytest.fixture
def command(data: Path, tmp_path: Path) -> Iterator[Command]:
    made = Command(data, tmp_path)
    yield made
    made.clean_up()


def _upto(config: Config, steps: int) -> Config:
    return Config.model_validate(
        {**config.model_dump(), "train": {**config.train.model_dump(), "steps": steps}}
    )


def straight_on_two(config: str, data: str, run: str) -> None:
    """The result of two processes without Ray and without a stop."""
    torch.set_num_threads(1)
    train(Config.model_validate_json(config), Path(data), Path(run), world=join("cpu"))


def test_workers_train_and_an_interrupt_leaves_a_checkpoint_and_nothing_else(command: Command) -> None:
    command.start(tiny(), ENDLESS)
    command.wait_for_step(4)
    names = [" ".join(p.cmdline()) for p in command.processes()]
    assert sum("RayTrainWorker" in name for name in names) == 2
    assert command.process
    os.killpg(command.process.pid, signal.SIGINT)  # like a terminal: all foreground processes get it
    began = time.monotonic()
    code, lines = command.end()
    assert time.monotonic() - began < ENDS_SECONDS
    assert (code, lines[-1]) == (130, "reelmill: interrupted; run the same command again to continue")
    text = "\n".join(lines)
    assert "Traceback" not in text
    assert "frames  height x width   clips  held out" in text  # printed by the first worker
    assert text.count("memory: about ") == 1
    assert command.left() == []
    last = command.logged()
    assert last >= 4
    assert checkpoint.steps(command.folder / "checkpoints") == [last]
    assert kept(command.folder)[1]["world"] == 2


@pytest.mark.slow
def test_a_training_with_a_stop_or_a_lost_worker_ends_with_the_same_bits(
    command: Command, tmp_path: Path
) -> None:
    config = tiny(train={"accumulate": 2, "checkpoint_every": 2, "keep_last": 100})
    command.start(config, ENDLESS)
    command.wait_for_step(3)
    assert command.process
    command.process.send_signal(signal.SIGTERM)
    assert command.end()[0] == 130
    stopped = command.logged()

    last = stopped + 120
    command.start(config, last)
    command.wait_for_step(stopped + 3)
    worker = next(p for p in command.processes() if "RayTrainWorker" in " ".join(p.cmdline()))
    worker.kill()
    code, lines = command.end()
    assert code == 0, lines
    text = "\n".join(lines)
    assert text.count(f"resuming from step {stopped}") == 1
    assert text.count("a worker was lost (") == 1
    assert "resuming from the newest checkpoint" in text
    assert text.count("resuming from step ") == 2
    assert f"step {last}/{last}: loss " in text
    assert command.left() == []

    whole = _upto(config, last).model_dump_json()
    on_two_ranks("tests.jobs.test_train_ray:straight_on_two", whole, command.data, tmp_path / "straight")
    assert different(tmp_path / "straight" / "stage1", command.folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["no dataset", "no clip", "another configuration", "no number"])
def test_an_error_of_the_workers_becomes_one_message(what: str, command: Command) -> None:
    config, data, expected = tiny(), command.data, 2
    if what == "no dataset":
        data = command.place / "nowhere"
        says = f"reelmill: {data} has no shards: reelmill build makes shards"
    elif what == "no clip":
        config = tiny(data={"buckets": [{"frames": 121, "height": 16, "width": 24}]})
        says = f"reelmill: {data} has no clip to train on: change data.buckets, data.fps or data.where"
    elif what == "another configuration":
        train(tiny(train={"steps": 1}), data, command.run)
        config = tiny(seed=1)
        says = (
            f"reelmill: {command.run / 'stage1'} holds a training of another configuration; take another "
            "--out, or resume with the same configuration. Changed: seed: 0 -> 1"
        )
    else:
        config = tiny(train={"learning_rate": 1e30, "warmup_steps": 0})
        says, expected = "reelmill: stopped: step ", 3
    command.start(config, 40, data)
    began = time.monotonic()
    code, lines = command.end()
    assert code == expected, lines
    assert time.monotonic() - began < STARTS_SECONDS
    assert not [line for line in lines if "Traceback" in line or "ray" in line.lower().replace("array", "")]
    (place,) = [k for k, line in enumerate(lines) if line.startswith("reelmill: ")]
    assert lines[place].startswith(says), lines
    assert command.left() == []


@pytest.mark.slow
def test_more_workers_than_processors_are_started(command: Command) -> None:
    """The configuration names a model by a path relative to the working directory of the command."""
    base = train(tiny(train={"steps": 2}), command.data, command.place / "base").folder
    related: dict[str, Any] = {
        "transformer": {"pretrained": os.path.relpath(base, ROOT)},
        "lora": {"rank": 2, "alpha": 2},
    }
    command.start(tiny(train={"batch_size": 1}, **related), 3)
    code, lines = command.end()
    assert code == 0, lines
    assert json.loads((command.folder / "weights" / "weights.json").read_text())["step"] == 3
