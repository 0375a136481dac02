"""The functions of the packages: how they are found, who may write, and what is refused in words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import generation
from curation import build, estimate, rows, select, status
from curation.config.named import load_named_config
from curation.store.dataset import Dataset
from curation.store.lease import Lease, LeaseHeld
from generation import enhance, sample, train
from generation.lock import alone

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "data" / "made-by-0.1.0"
DATASET = KEPT / "dataset"


def python(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


# --- how they are found -----------------------------------------------------------------------------


def test_packages_are_light_until_a_function_is_used() -> None:
    heavy = "[m for m in ('ray', 'torch', 'pyarrow', 'numpy', 'pydantic') if m in sys.modules]"
    assert python(f"import sys, curation, generation; print({heavy})") == "[]\n"
    said = python(f"import sys; from generation import frames, rows; print({heavy})")
    assert said == "['pyarrow', 'numpy']\n"
    assert "'ray'" not in python(f"import sys; from curation import build, rows; print({heavy})")


@pytest.mark.parametrize(
    "before", ["", "import generation.train.trainer\n", "from generation.api import train\n"]
)
def test_a_room_of_the_same_name_is_the_function_too(before: str) -> None:
    script = f"{before}from generation import train\ntrain('none', 'd', 'r')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "none" in done.stderr.splitlines()[-1]
    assert "not callable" not in done.stderr
    from generation.train import parallel  # the room is still a room

    assert parallel.join


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'bild'"):
        _ = generation.bild
    with pytest.raises(ImportError):
        from curation import bild  # type: ignore[attr-defined]  # noqa: F401


# --- rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["shards", "clips", "sources", "captions"])
def test_rows_are_those_of_the_files(table: str) -> None:
    files = sorted((DATASET / table).glob("*.parquet"))
    wanted = [row for file in files for row in pq.read_table(file).to_pylist()]
    found = list(rows(DATASET, table=table))  # type: ignore[arg-type]
    assert len(found) == len(wanted) > 0
    for row, other in zip(found, wanted, strict=True):
        assert {key: row[key] for key in other if key in row} == other
    name = "source_id" if table == "sources" else "clip_id"
    assert list(rows(DATASET, [name], table=table)) == [{name: row[name]} for row in wanted]  # type: ignore[arg-type]


def test_verdicts_are_rows_too() -> None:
    counts = status(DATASET)
    found = [row["status"] for row in rows(DATASET, table="verdicts")]
    assert found.count("accepted") == counts.accepted > 0
    assert len(found) == counts.clips


# --- one writer -------------------------------------------------------------------------------------


def test_a_call_and_a_command_keep_each_other_out(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "stage1"
    with alone(folder, "train"):
        with pytest.raises(LeaseHeld, match="another process has just begun to work on"):
            Lease(Dataset(str(folder)), "train").__enter__()
        with pytest.raises(ValueError, match="another process works on"), alone(folder, "train"):
            pass
        with alone(folder, "enhance", "_lease-a.mp4.json"):
            pass
    assert not (tmp_path / "run").exists()  # nothing was written
    with (
        Lease(Dataset(str(folder)), "sample"),
        pytest.raises(ValueError, match=r"reelmill sample \(pid \d+\) works on .*run this again"),
        alone(folder, "train"),
    ):
        pass
    folder.mkdir(parents=True)
    (folder / "_lease.json").write_text("left by a killed process")
    with alone(folder, "train"):
        (folder / "weights").touch()
    assert [path.name for path in folder.iterdir()] == ["weights"]
    with pytest.raises(ValueError, match="a file has this name"), alone(folder / "weights", "train"):
        pass


def test_functions_take_the_lock(tmp_path: Path) -> None:
    run = Path(shutil.copytree(KEPT / "run", tmp_path / "run"))
    with alone(run / "stage1", "train"), pytest.raises(ValueError, match="another process works on"):
        train("stage1", DATASET, run, config=run / "stage1" / "config.json", steps=3)
    with alone(tmp_path / "videos", "sample"), pytest.raises(ValueError, match="another process works on"):
        sample("a", run, tmp_path / "videos")
    with (
        alone(tmp_path, "enhance", "_lease-a.mp4.json"),
        pytest.raises(ValueError, match="another process works on"),
    ):
        enhance(KEPT / "corpus" / "videos" / "00000.mp4", run, tmp_path / "a.mp4", prompt="a")


# --- what is refused --------------------------------------------------------------------------------


def test_what_is_wrong_is_a_value_error_with_a_remedy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refusals = {
        "no numeric|there are": lambda: build(KEPT / "corpus", out, config="demo", set=["filters.sharp={}"]),
        "not exist|no such|nothing": lambda: build(tmp_path / "none", out, config="demo"),
        "base: ": lambda: estimate(KEPT / "corpus", out, config={"base": "mine"}),
        "select changes rules only": lambda: select(DATASET, set="spans.max_seconds=3"),
        "no column 'speed'; the columns are": lambda: rows(DATASET, ["speed"]),
        "the tables are shards": lambda: rows(DATASET, table="shard"),  # type: ignore[arg-type]
        "there are .*decoder_lr|unknown key": lambda: train("stage1", DATASET, out, set=["train.rate=1"]),
        "the presets are": lambda: train("stage1", DATASET, out, preset="huge"),
        "contains no prompt": lambda: sample([], KEPT / "run", out),
        "this is a folder": lambda: enhance("a.mp4", KEPT / "run", tmp_path),
    }
    for words, call in refusals.items():
        with pytest.raises(ValueError, match=words):
            call()
    assert not out.exists()


def test_a_dictionary_is_laid_over_like_a_file_and_stays_as_it_was(tmp_path: Path) -> None:
    mine = {"base": "demo", "filters": {"text": None}, "rules": {"motion.speed": {"min": 0.1}}}
    before = repr(mine)
    lines = estimate(KEPT / "corpus" / "videos", tmp_path / "d", config=mine, set=["spans.max_seconds=2"])
    assert lines
    assert repr(mine) == before
    demo = load_named_config("demo", ())
    settings = load_named_config(mine, ())
    assert set(demo.filters) - set(settings.filters) == {"text"}
    assert settings.rules["motion.speed"].min == 0.1
