"""One command at a time writes to a folder: a run, an export, an evaluation, samples, a recipe."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from curation.store.dataset import Dataset
from curation.store.lease import Lease
from jobs.cli import app

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "data" / "made-by-0.1.0"
HOLDER = """
import sys, time
from curation.store.dataset import Dataset
from curation.store.lease import Lease
with Lease(Dataset(sys.argv[1]), sys.argv[2], name=sys.argv[3]):
    print("held", flush=True)
    time.sleep(600)
"""
PREVIEW = "videos/0000-a-red-circle"
TRAIN = ["train", "stage1", "--data", "{place}/dataset", "--out", "{place}/run",
         "--config", "{place}/run/stage1/config.json"]  # fmt: skip
COMMANDS = {
    "train": ([*TRAIN, "--steps", "3"], "run/stage1"),
    "train on Ray": ([*TRAIN, "--steps", "3", "--workers", "2"], "run/stage1"),
    "sample": (["sample", "a", "--run", "{place}/run", "--out", "{place}/made"], "made"),
    "enhance": (["enhance", "{place}/" + PREVIEW, "--run", "{place}/run"], PREVIEW),
    "evaluate": (["evaluate", "--run", "{place}/run", "--data", "{place}/dataset"], "run/evaluation"),
    "export": (["export", "{place}/dataset", "--to", "files", "--out", "{place}/made"], "made"),
    "report": (["report", "{place}/dataset"], "dataset"),
    "advise": (["advise", "{place}/dataset"], "dataset"),
    "recipe": (["recipe", "--data", "{place}/dataset", "--out", "{place}/made", "--level", "smoke"], "made"),
}


def reelmill(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    shutil.copytree(KEPT, tmp_path / "made-by-0.1.0")
    return tmp_path / "made-by-0.1.0"


@pytest.fixture
def hold() -> Iterator[Callable[[Path, str, str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, command: str, name: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", HOLDER, str(folder), command, name]
        started.append(subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_command_is_refused_in_a_sentence(
    made: Path, hold: Callable[[Path, str, str], subprocess.Popen[str]], command: str
) -> None:
    arguments, folder = COMMANDS[command]
    one_file = {"enhance": "_lease-final.mp4.json", "report": "_lease-report.html.json"}
    one_file["advise"] = "_lease-advice.html.json"
    name = one_file.get(command, "_lease.json")
    holder = hold(made / folder, command, name)
    lease = f"{folder}/{name}"
    before = content(made)
    refused = reelmill(*(word.format(place=made) for word in arguments))
    assert refused.exit_code == 2, refused.output
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("reelmill: ")]
    assert f"pid {holder.pid} on " in line
    assert f"works on {made / folder}" in line
    assert f"kill {holder.pid}" in line
    after = content(made)
    assert after.pop(lease)
    assert before.pop(lease)
    assert after == before


def test_two_stages_of_a_run_are_trained_at_the_same_time(
    made: Path, hold: Callable[[Path, str, str], subprocess.Popen[str]]
) -> None:
    """They write to folders of their own."""
    hold(made / "run" / "stage2", "train", "_lease.json")
    trained = reelmill(*(word.format(place=made) for word in COMMANDS["train"][0]))
    assert trained.exit_code == 0, trained.output


def test_a_training_is_taken_over_from_a_dead_one_and_from_no_other(made: Path) -> None:
    """Two trainings in one folder would take each other's unfinished checkpoint for litter."""
    arguments = [word.format(place=made) for word in TRAIN]
    more = ["--set", "train.steps=100000", "--set", "train.checkpoint_every=2"]
    shutil.rmtree(made / "run" / "stage1" / "checkpoints")
    (made / "run" / "stage1" / "log.jsonl").unlink()
    first = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments, *more],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        log = made / "run" / "stage1" / "log.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            assert first.poll() is None
            time.sleep(0.1)
        for _ in range(2):
            second = reelmill(*arguments, *more, "--steps", "4")
            assert second.exit_code == 2, second.output
            assert f"pid {first.pid}" in second.stderr
            assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    third = reelmill(*arguments, *more, "--steps", "3")
    assert third.exit_code == 0, third.output
    assert not (made / "run" / "stage1" / "_lease.json").exists()


def test_an_export_that_was_killed_before_it_had_begun_is_taken_up(made: Path) -> None:
    (made / "out").mkdir()
    (made / "out" / "_lease.json").write_bytes(b"")
    (made / "out" / "_tmp-01234567-reelmill-export.json").write_bytes(b"{")
    done = reelmill("export", str(made / "dataset"), "--to", "files", "--out", str(made / "out"))
    assert done.exit_code == 0, done.output
    assert not [name for name in content(made / "out") if name.startswith("_")]


def test_an_unfinished_report_goes_with_the_next_one_unless_a_command_is_at_work(made: Path) -> None:
    """Whoever works on the dataset may be writing that file."""
    report = ["report", str(made / "dataset")]
    assert reelmill(*report).exit_code == 0
    before = content(made)
    left = made / "dataset" / "_tmp-01234567-report.html"
    left.write_text("half")
    with Lease(Dataset(str(made / "dataset")), "build"):
        assert reelmill(*report).exit_code == 0
        assert left.exists()
    assert reelmill(*report).exit_code == 0
    assert content(made) == before


def test_a_recipe_that_was_killed_before_it_had_begun_is_taken_up(made: Path) -> None:
    out = made / "recipe"
    out.mkdir()
    for name in ("_lease.json", "_recipe.json"):
        (out / name).write_text("{")
    begun = reelmill("recipe", "--data", str(made / "dataset"), "--out", str(out), "--level", "smoke")
    assert "not empty" not in begun.output
    assert (out / "recipe.json").is_file()  # these few clips are not enough for more
    assert not list(out.glob("_*"))


def test_what_a_training_left_that_was_killed_at_its_end_goes_with_the_next_start(made: Path) -> None:
    """No step is trained and no checkpoint saved, which would remove it."""
    train, stage = [word.format(place=made) for word in TRAIN], made / "run" / "stage1"
    assert reelmill(*train).exit_code == 0
    before = content(made)
    checkpoints = ("_step-0000003", "_old-step-0000002", "step-0000000", "step-0000001")
    for name in ("_weights", "_old-weights", *(f"checkpoints/{name}" for name in checkpoints)):
        (stage / name).mkdir()
        (stage / name / "model.safetensors").write_bytes(b"half")
    (stage / "cache" / "text" / "ab").mkdir(parents=True)
    (stage / "cache" / "text" / "ab" / "_tmp-0123456789abcdef").write_bytes(b"half")
    done = reelmill(*train, "--set", "train.keep_last=1")
    assert done.exit_code == 0, done.output
    assert content(made) == before
