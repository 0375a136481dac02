"""Each script of `examples/` runs as its first lines say, in a process of its own, on rendered footage."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from generation.train import checkpoint
from generation.train.trainer import losses_of
from tests import render
from tests.generation import tiny_runs

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KEPT = ROOT / "tests" / "data" / "made-by-0.1.0"
SECONDS, FPS, SIZE = 2, 20, (192, 144)
SPEEDS = {"fast": 0.2, "slow": 0.05, "grey": 0.1}  # frame widths per second


def run(*command: str | Path) -> str:
    """Runs Python with the arguments, in the folder of the examples. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=EXAMPLES,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(script: str) -> str:
    """The command in the script's first lines, without its arguments."""
    page = (EXAMPLES / script).read_text(encoding="utf-8").split('"""')[1]
    (command,) = re.findall(r"^    ((?:python|torchrun) .*)$", page, re.MULTILINE)
    return command.split(script)[0] + script


def shard_rows(dataset: Path) -> list[dict[str, object]]:
    return [
        row
        for part in sorted((dataset / "shards").glob("*.parquet"))
        for row in pq.read_table(part).to_pylist()
    ]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 2 s, each of one shot: one moves fast, one slowly, and one has no colours."""
    folder = tmp_path_factory.mktemp("footage")
    for seed, (name, speed) in enumerate(SPEEDS.items(), 1):
        frames = list(render.pan(seed, SIZE, fps=FPS, seconds=SECONDS, speed=speed))
        if name == "grey":
            frames = [np.repeat(f.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1) for f in frames]
        render.write_video(folder / f"{name}.mp4", frames, fps=FPS)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, footage: Path) -> tuple[Path, str]:
    """The dataset of the first example, and what it printed."""
    dataset = tmp_path_factory.mktemp("built") / "dataset"
    return dataset, run("build_a_dataset.py", footage, dataset)


@pytest.fixture
def dataset(built: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "dataset"))


def test_build_a_dataset(built: tuple[Path, str]) -> None:
    dataset, said = built
    assert f"3 sources, 3 clips, 3 accepted; see {dataset}/report.html" in said
    assert "2 of 3 clips move 0.1" in said  # half of them: the speed of the middle one
    assert said.endswith("OK\n")
    assert sorted(Path(str(row["uri"])).stem for row in shard_rows(dataset)) == ["fast", "grey"]


def test_a_filter_of_ones_own(footage: Path, dataset: Path) -> None:
    said = run("colourfulness.py", footage, dataset)
    assert "clips 3 = accepted 2 + rejected 1" in said
    assert "rejected 1 by colourfulness.value" in said
    assert sorted(Path(str(row["uri"])).stem for row in shard_rows(dataset)) == ["fast", "slow"]


def test_a_captioner_of_ones_own(dataset: Path) -> None:
    said = run("own_captioner.py", dataset)
    assert said.count("a bright scene of 2 seconds.") == 2
    assert {row["caption"] for row in shard_rows(dataset)} == {"a bright scene of 2 seconds."}


def test_read_for_training(built: tuple[Path, str]) -> None:
    assert "(2, 8, 3, 64, 64)" in run("read_for_training.py", built[0])


def test_train_on_two_processes(tmp_path: Path) -> None:
    data = tiny_runs.dataset(tmp_path / "data")
    small = [f"transformer.{key}=16" for key in ("head_dim", "time_embed_dim")]
    small += ["transformer.layers=1", "train.batch_size=2", "train.validate_every=0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(*torchrun, "train_on_two.py", data, tmp_path / "run", *small)
    stage = tmp_path / "run" / "stage1"
    assert len(losses_of(stage)) == 4
    (step,) = checkpoint.steps(stage / "checkpoints")
    assert checkpoint.load(stage / "checkpoints", step).state["world"] == 2
    assert not (stage / "_lease.json").exists()


def test_enhance_a_file(tmp_path: Path) -> None:
    video, out = KEPT / "corpus" / "videos" / "00000.mp4", tmp_path / "large.mp4"
    said = run("enhance_a_file.py", video, KEPT / "run", out, "a red circle")
    assert said == f"{out}\n"
    with av.open(str(out)) as file:
        shapes = [(f.width, f.height) for f in file.decode(video=0)]
    assert shapes == [(32, 32)] * 9


def test_every_example_is_run_and_listed_and_says_how_to_run_it() -> None:
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    here = Path(__file__).read_text(encoding="utf-8")
    assert sorted(listed) == scripts
    assert [name for name in scripts if f'"{name}", ' not in here] == []
    starts = {name: written(name) for name in scripts}
    two = starts.pop("train_on_two.py")
    assert two == "torchrun --nproc-per-node 2 train_on_two.py"
    assert starts == {name: f"python {name}" for name in starts}
