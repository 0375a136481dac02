"""Filters of one's own, in a file outside of the package: built with on Ray, and read where they are not
installed. A dataset's score columns are those that its dataset.json names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from tests import render

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests" / "data" / "made-by-0.1.0"
COLUMN = "colourfulness.value"
CONFIG = """
base: none
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
filters: {duration: {}, "colour:Colourfulness": {}}
rules: {duration.seconds: {min: 1}, colourfulness.value: {min: 10}}
run: {object_store_mb: 128}
"""
# The import of this module leaves a file beside it.
TRAP = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
"""
# reelmill with one filter more: its column `extra.value` is the number of sampled frames.
MORE = """
import sys
from dataclasses import dataclass
import filters
from filters.base import Scorer

@dataclass(frozen=True)
class Extra(Scorer):
    def measure(self, frames):
        return len(frames.images)

filters.SCORERS["extra"] = Extra
from jobs.cli import main
sys.argv[0] = "reelmill"
main()
"""


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run(*command: str | Path, cwd: Path, code: int = 0, more: bool = False) -> str:
    """reelmill in a process of its own, with the working folder `cwd`. Returns what it printed."""
    start = ["-c", MORE] if more else ["-m", "jobs.cli"]
    done = subprocess.run(
        [sys.executable, *start, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def shard_rows(dataset: Path) -> list[dict[str, object]]:
    parts = sorted((dataset / "shards").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage of two videos, one of them without colours, the filter, and a dataset built with it."""
    place = tmp_path_factory.mktemp("own")
    (place / "footage").mkdir()
    frames = list(render.scenes([40], (128, 96), fps=20, seed=1))
    grey = [np.repeat(f.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1) for f in frames]
    render.write_video(place / "footage" / "coloured.mp4", frames, fps=20)
    render.write_video(place / "footage" / "grey.mp4", grey, fps=20)
    shutil.copy(ROOT / "examples" / "colourfulness.py", place / "colour.py")
    (place / "c.yaml").write_text(CONFIG)
    run("build", "footage", "--out", "d", "--config", "c.yaml", cwd=place)
    return place


@pytest.fixture
def dataset(place: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, in a folder where the filter is not found."""
    return Path(shutil.copytree(place / "d", tmp_path / "d"))


def test_it_runs_on_ray_and_its_column_is_in_shards_and_report(place: Path) -> None:
    (accepted,) = shard_rows(place / "d")
    assert str(accepted["uri"]).endswith("coloured.mp4")
    assert accepted[COLUMN] > 10  # type: ignore[operator]
    clips = pq.read_table(place / "d" / "clips").to_pylist()
    assert sorted(c[COLUMN] < 5 for c in clips) == [False, True]  # the other one has no colours
    assert f">{COLUMN}<" in (place / "d" / "report.html").read_text()


@pytest.mark.sampled("own filters", keep=1)
def test_the_dataset_is_used_where_the_filter_is_not(dataset: Path, tmp_path: Path) -> None:
    assert reelmill("verify", dataset).exit_code == 0
    selected = reelmill("select", dataset, "--set", f"rules.{COLUMN}.min=0")
    assert selected.exit_code == 0, selected.output
    assert "accepted 2 + rejected 0" in selected.output
    assert reelmill("select", dataset, "--set", f"rules.{COLUMN}=null").exit_code == 0
    for command in ("status", "verify", "report"):
        assert reelmill(command, dataset).exit_code == 0, command
    assert COLUMN in (dataset / "report.html").read_text()
    assert reelmill("export", dataset, "--to", "files", "--out", tmp_path / "files").exit_code == 0
    lines = (tmp_path / "files" / "metadata.jsonl").read_text().splitlines()
    assert all(json.loads(line)[COLUMN] is not None for line in lines)


@pytest.mark.sampled("own filters", keep=1)
def test_a_build_without_the_filter_says_what_is_missing_and_how_to_go_without(
    dataset: Path, place: Path
) -> None:
    arguments = ["build", place / "footage", "--out", dataset, "--config", dataset / "dataset.json"]
    refused = reelmill(*arguments)
    assert refused.exit_code == 2
    assert "colour:Colourfulness" in refused.output
    assert "you have not said so" in refused.output
    allowed = reelmill(*arguments, "--set", "filters.colour:Colourfulness={}")
    assert allowed.exit_code == 2
    assert "No module named 'colour'" in allowed.output
    without = reelmill(*arguments, "--set", "filters.colour:Colourfulness=null")
    assert without.exit_code == 0, without.output
    assert "accepted 2" in without.output
    # Its column and numbers stay.
    assert sum(row[COLUMN] is not None for row in shard_rows(dataset)) == 2
    assert COLUMN in json.loads((dataset / "dataset.json").read_text())["score_columns"]
    assert reelmill("verify", dataset).exit_code == 0


def test_no_command_runs_the_code_that_a_dataset_names(
    dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(place / "colour.py", tmp_path / "colour.py")
    with (tmp_path / "colour.py").open("a") as file:
        file.write(TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (
        ("status", dataset),
        ("status", dataset, "--explain", place / "footage"),
        ("verify", dataset),
        ("report", dataset),
        ("select", dataset, "--set", f"rules.{COLUMN}.min=0"),
        ("caption", dataset),
        ("export", dataset, "--to", "files", "--out", tmp_path / "files"),
        ("build", place / "footage", "--out", dataset, "--config", dataset / "dataset.json"),
        ("build", place / "footage", "--out", tmp_path / "new", "--config", dataset / "dataset.json"),
    ):
        done = reelmill(*command)
        assert "Traceback" not in done.output
        assert not (tmp_path / "imported").exists(), command
    allow = ["--set", "filters.colour:Colourfulness={}"]
    built = run("build", place / "footage", "--out", "new", "--config", dataset / "dataset.json", *allow,
                cwd=tmp_path)  # fmt: skip
    assert "accepted 2" in built
    assert (tmp_path / "imported").exists()
    again = run("build", place / "footage", "--out", "new", "--config", "new/dataset.json", cwd=tmp_path)
    assert "accepted 2" in again  # it was said once, for this dataset


@pytest.mark.sampled("own filters", keep=1)
def test_a_filter_that_is_added_later_measures_that_alone(place: Path, tmp_path: Path) -> None:
    """Older parts have no such column; afterwards the shards have it, and their clips are the same bytes."""
    for name in ("footage", "colour.py", "c.yaml"):
        os.symlink(place / name, tmp_path / name)
    without = ["--set", "filters.colour:Colourfulness=null"]
    run("build", "footage", "--out", "d", "--config", "c.yaml", *without, cwd=tmp_path)
    before = {row["clip_id"]: row for row in shard_rows(tmp_path / "d")}
    assert len(before) == 2
    assert COLUMN not in next(iter(before.values()))
    said = run("build", "footage", "--out", "d", "--config", "c.yaml", cwd=tmp_path)
    assert "2 sources are measured or scored again" in said
    (kept,) = shard_rows(tmp_path / "d")
    assert kept[COLUMN] > 10  # type: ignore[operator]
    assert kept["video"] == before[kept["clip_id"]]["video"]
    assert reelmill("verify", tmp_path / "d").exit_code == 0


@pytest.mark.sampled("own filters", keep=1)
def test_a_package_with_one_filter_more_reads_older_datasets(tmp_path: Path) -> None:
    for name in ("dataset", "corpus"):
        shutil.copytree(KEPT / name, tmp_path / name)
    for command in (["status"], ["verify"], ["report"], ["select"]):
        run(*command, "dataset", cwd=tmp_path, more=True)
    assert (
        "extra.value" not in json.loads((tmp_path / "dataset" / "dataset.json").read_text())["score_columns"]
    )
    assert reelmill("verify", tmp_path / "dataset").exit_code == 0


def test_a_package_with_one_filter_less_reads_newer_datasets(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "d", tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "dataset.json").read_text())
    # The filter has another name than any that is installed here.
    manifest["config"]["filters"]["newer"] = manifest["config"]["filters"].pop("colour:Colourfulness")
    manifest["measures"]["newer"] = manifest["measures"].pop("colour:Colourfulness")
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(manifest))
    for command in ("status", "verify", "report", "select"):
        done = reelmill(command, tmp_path / "d")
        assert done.exit_code == 0, done.output
    assert len(shard_rows(tmp_path / "d")) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"score_columns": ["../evil"]},
        {"score_columns": ["caption.refusal"]},
        {"score_columns": {"a.b": 1}},
        {"score_columns": [None]},
        {"measures": []},
        {"measures": {"colour:Colourfulness": {"name": 3}}},
    ],
)
def test_a_wrong_record_is_one_sentence(dataset: Path, change: dict[str, object]) -> None:
    manifest = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(manifest | change))
    for command in ("status", "select", "report"):
        done = reelmill(command, dataset)
        assert done.exit_code == 2, done.output
        assert "Traceback" not in done.output
        assert "dataset.json" in done.output


@pytest.mark.sampled("own filters", keep=1)
def test_a_filter_that_no_worker_finds_is_one_sentence(place: Path, tmp_path: Path) -> None:
    """The driver alone knows the module, as on a cluster to which it was not sent."""
    config = CONFIG.replace("colour:", "ghost:")
    (tmp_path / "c.yaml").write_text(config)
    start = (
        "import sys, types; ghost = sys.modules['ghost'] = types.ModuleType('ghost')\n"
        f"exec(open({str(place / 'colour.py')!r}).read(), ghost.__dict__)\n"
        "from jobs.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        start,
        "build",
        str(place / "footage"),
        "--out",
        "d",
        "--config",
        "c.yaml",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "a worker of the cluster cannot use this configuration: filters: ghost:Colourf" in done.stderr
    assert "--working-dir" in done.stderr
