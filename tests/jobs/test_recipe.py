"""`reelmill recipe` with the real parts: the smallest level end to end, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from generation.evaluate.bars import figure
from generation.evaluate.settings import Settings
from jobs.cli import app
from jobs.recipe import Recipe, recipe_settings
from tests.generation import synthetic
from tests.jobs import left_behind

ROOT = Path(__file__).parents[2]
LEVELS = ("smoke", "cpu", "gpu")
STEPS = ["corpus", "build", "build held-out", "train vae", "train stage1", "train stage2", "train lossless"]
STEPS += ["sample", "enhance", "evaluation", "evaluation-lossless"]
KILLS = 3
WEIGHTS = ("run/vae", "run/stage1", "run/stage2", "lossless/stage2")


def start(out: Path, *arguments: str | Path, mark: str = "", **environment: str) -> subprocess.Popen[bytes]:
    """A recipe in its own process. Its output goes to OUT.log beside OUT."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.recipe", "--out", str(out), *map(str, arguments)],
        cwd=ROOT,
        env=left_behind.environment(mark, **environment),
        stdout=subprocess.DEVNULL,
        stderr=out.with_suffix(".log").open("ab"),
        start_new_session=True,
    )


def finished(process: subprocess.Popen[bytes], out: Path) -> None:
    code = process.wait(600)
    assert code == 0, out.with_suffix(".log").read_text()[-4000:]


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["recipe", *map(str, arguments)])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def figures(out: Path) -> dict[str, Any]:
    """The figures of both evaluations."""
    return {
        name: json.loads((out / name / "evaluation.json").read_text())["figures"]
        for name in ("evaluation", "evaluation-lossless")
    }


def numbers(tree: Mapping[str, Any]) -> list[float]:
    found: list[float] = []
    for value in tree.values():
        found += numbers(value) if isinstance(value, dict) else [value] if isinstance(value, float) else []
    return found


def has_begun(out: Path, step: str) -> bool:
    record = out / "recipe.json"
    return record.is_file() and step in json.loads(record.read_text())["steps"]


@dataclass(frozen=True)
class Place:
    out: Path  # the folder of all recipes: ids of clips depend on their address
    whole: Path  # the uninterrupted recipe, moved to this folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The smallest level, from the start, without a stop."""
    folder = tmp_path_factory.mktemp("recipe")
    out = folder / "cooked"
    began = time.monotonic()
    finished(start(out, "--level", "smoke"), out)
    print(f"\nthe smoke level took {time.monotonic() - began:.0f} s")
    out.rename(folder / "whole")
    return Place(out, folder / "whole")


@pytest.mark.timeout(600)
def test_one_command_goes_from_nothing_to_figures(place: Place) -> None:
    whole = place.whole
    steps = json.loads((whole / "recipe.json").read_text())["steps"]
    assert list(steps) == STEPS
    assert all(step["done"] and step["seconds"] > 0 for step in steps.values())
    for stage in WEIGHTS:
        assert (whole / stage / "weights" / "weights.json").is_file()
    made = figures(whole)
    for part, path in (("evaluation", "vae.psnr_db"), ("evaluation", "stage2.usual.psnr_db")):
        assert figure(made[part], path) is not None, path
    assert figure(made["evaluation-lossless"], "stage2.bicubic.gain_db") == pytest.approx(0, abs=1e-4)
    assert len(numbers(made["evaluation"])) > 40
    prompts = (whole / "prompts.txt").read_text().splitlines()
    folders = sorted((whole / "evaluation" / "videos").iterdir())
    assert [json.loads((f / "preview.json").read_text())["prompt"] for f in folders] == prompts
    assert all((f / "final.mp4").stat().st_size > 500 for f in folders)


@pytest.mark.timeout(600)
def test_its_page_shows_results_and_costs(place: Place) -> None:
    page = (place.whole / "recipe.html").read_text()
    for prompt in (place.whole / "prompts.txt").read_text().splitlines():
        assert prompt in page
    videos = re.findall(r'src="([^"]+\.mp4)"', page)
    assert len(videos) == 8
    for address in videos:
        assert (place.whole / address).is_file(), address
    for name in STEPS:
        assert name in page
    assert page.count("<svg") >= len(WEIGHTS)


@pytest.mark.sampled("recipes", keep=2)
@pytest.mark.timeout(600)
def test_each_step_can_be_run_by_hand(place: Place, tmp_path: Path) -> None:
    """Each printed command can be run and finds its work done."""
    steps = json.loads((place.whole / "recipe.json").read_text())["steps"]
    shutil.copytree(place.whole, place.out)
    try:
        for name in ("train vae", "sample", "evaluation-lossless"):
            reelmill, *arguments = steps[name]["command"].split(" ")
            assert reelmill == "reelmill"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        assert figures(place.out) == figures(place.whole)
    finally:
        shutil.rmtree(place.out)


@pytest.mark.sampled("recipes", keep=2)
@pytest.mark.timeout(600)
def test_other_sampling_and_evaluation_need_no_training(place: Place) -> None:
    shutil.copytree(place.whole, place.out)
    place.out.with_suffix(".log").unlink()
    try:
        trained = {
            stage: (place.out / stage / "weights" / "weights.json").stat().st_mtime_ns for stage in WEIGHTS
        }
        changes = [
            "lossless.config.sampling.noise_step=9",
            "stage1.config.sampling.steps=4",
            "evaluate.prompts=3",
        ]
        finished(start(place.out, "--level", "smoke", *(w for c in changes for w in ("--set", c))), place.out)
        for stage, when in trained.items():
            assert (place.out / stage / "weights" / "weights.json").stat().st_mtime_ns == when
        assert place.out.with_suffix(".log").read_text().count("is trained: ") == len(WEIGHTS)
        before, now = figures(place.whole), figures(place.out)
        assert now["evaluation"]["vae"] == before["evaluation"]["vae"]
        assert now["evaluation"]["stage1"] != before["evaluation"]["stage1"]
        assert now["evaluation"]["stage2"] == before["evaluation"]["stage2"]
        of_lossless = [f["evaluation-lossless"]["stage2"]["usual"]["psnr_db"] for f in (before, now)]
        assert of_lossless[0] != of_lossless[1]
        prompts = (place.out / "prompts.txt").read_text().splitlines()
        assert len(prompts) == 3
        made = [json.loads(f.read_text()) for f in sorted(place.out.glob("evaluation/videos/*/preview.json"))]
        assert [(p["prompt"], p["sampling"]["steps"]) for p in made] == [(prompt, 4) for prompt in prompts]
    finally:
        shutil.rmtree(place.out)


@pytest.mark.sampled("recipes", keep=2)
@pytest.mark.timeout(900)
def test_killed_three_times_and_resumed_it_gives_the_same(place: Place) -> None:
    """Kills the recipe and its child processes with SIGKILL, in three random steps at random moments."""
    rng = random.Random(20261122)
    out = place.out
    shutil.rmtree(out, ignore_errors=True)
    victims = sorted(rng.sample(STEPS, KILLS), key=STEPS.index)  # in the order of the steps
    try:
        for step in victims:
            mark = uuid.uuid4().hex
            process = start(out, "--level", "smoke", mark=mark)
            left_behind.until(lambda step=step: has_begun(out, step), 300)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 1.5))
            assert process.poll() is None, "it ended before the kill"
            os.kill(process.pid, signal.SIGKILL)
            for left in left_behind.processes(mark):
                try:
                    left.kill()
                except psutil.NoSuchProcess:
                    continue
            process.wait(60)
        finished(start(out, "--level", "smoke"), out)
        print(f"\nkilled in {', '.join(victims)}, or soon after")
        assert figures(out) == figures(place.whole)
        for stage in WEIGHTS:
            one, other = (next((p / stage / "weights").rglob("*.safetensors")) for p in (out, place.whole))
            before, after = load_file(other), load_file(one)
            assert before.keys() == after.keys()
            assert all(before[name].equal(after[name]) for name in before)
        log = out.with_suffix(".log").read_text()
        assert "done before" in log
    finally:
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.sampled("recipes", keep=2)
@pytest.mark.timeout(600)
def test_an_existing_dataset_needs_no_build_and_no_ray(place: Place, tmp_path: Path) -> None:
    (tmp_path / "no" / "ray").mkdir(parents=True)
    (tmp_path / "no" / "ray" / "__init__.py").write_text("raise AssertionError('Ray was imported')\n")
    out = tmp_path / "own"
    few = [f"{name}.config.train.steps=4" for name in ("vae", "stage1", "stage2", "lossless")]
    options = [word for change in [*few, "evaluate.prompts=2"] for word in ("--set", change)]
    data = ["--data", place.whole / "dataset", "--held-out", place.whole / "held-out"]
    process = start(out, "--level", "smoke", *data, *options, PYTHONPATH=str(tmp_path / "no"))
    finished(process, out)
    assert list(json.loads((out / "recipe.json").read_text())["steps"]) == STEPS[3:]
    assert not (out / "dataset").exists()
    # The words of a user's footage are unknown, so there is no focus and no bar.
    assert json.loads((out / "evaluation" / "evaluation.json").read_text())["settings"]["focus"] is None


def test_impossible_recipes_are_refused_before_the_work(tmp_path: Path) -> None:
    assert "--out" in refused("--level", "smoke")
    assert "smoke, cpu, gpu" in refused("--out", tmp_path / "a", "--level", "huge")
    assert "not both" in refused("film.mp4", "--data", "d", "--out", tmp_path / "a", "--level", "smoke")
    assert "--held-out needs --data" in refused("--held-out", "d", "--out", tmp_path / "a")
    assert "threads" in refused("--out", tmp_path / "a", "--set", "thread=1")
    wrong = refused("--out", tmp_path / "a", "--level", "smoke", "--set", "stage1.config.train.batch_size=0")
    assert "train.batch_size" in wrong
    wrong = refused("--out", tmp_path / "a", "--level", "smoke", "--set", "evaluate.clip=0")
    assert "clip" in wrong
    assert "--seed" in refused("--out", tmp_path / "a", "--level", "smoke", "--set", "evaluate.seed=5")
    wrong = refused("--out", tmp_path / "a", "--level", "cpu", "--set", "evaluate.focus=plain")
    assert "set corpus.evaluate.focus and corpus.lossless.focus" in wrong
    assert "gpu" in refused("--out", tmp_path / "a", "--level", "smoke", "--device", "gpu")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused("--out", tmp_path / "file", "--level", "smoke")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "not empty" in refused("--out", tmp_path / "full", "--level", "smoke")


def test_clips_without_captions_are_reported_before_the_training(tmp_path: Path) -> None:
    data = synthetic.write_dataset(
        tmp_path / "data", 12, frames=24, change=lambda k, row: {**row, "caption": None}
    )
    told = refused("--data", data, "--out", tmp_path / "out", "--level", "smoke")
    assert "no held-out clip has a caption" in told
    assert "reelmill caption" in told
    assert not (tmp_path / "out" / "run").exists()


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    made_of = {"sources": [], "data": None, "held_out": None, "level": "smoke", "seed": 0}
    made_of["settings"] = recipe_settings("smoke", []).model_dump(mode="json")
    steps = {"corpus": {"seconds": 1.0, "done": True, "code": 0, "command": ""}}
    (tmp_path / "recipe.json").write_text(json.dumps({"made_of": made_of, "steps": steps}))
    assert "other settings: seed: 0 -> 1." in refused("--out", tmp_path, "--level", "smoke", "--seed", "1")
    change = "stage1.config.train.steps=61"
    told = refused("--out", tmp_path, "--level", "smoke", "--set", change)
    assert "other settings: stage1.config.train.steps: 60 -> 61." in told


@pytest.mark.parametrize(("sources", "section"), [(["film.mp4"], "build"), ([], "corpus.build")])
def test_the_error_for_a_setting_of_the_build_names_its_place_in_a_recipe(
    tmp_path: Path, sources: list[str], section: str
) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    named = [str(tmp_path / name) for name in sources]
    change = f"{section}.set=[filters.nonsense=1]"
    settings = recipe_settings("smoke", [change]).model_dump(mode="json")
    made_of = {"sources": named, "data": None, "held_out": None, "level": "smoke", "seed": 0}
    rendered = {} if sources else {"corpus": {"seconds": 1.0, "done": True, "code": 0, "command": ""}}
    (tmp_path / "out").mkdir()
    state = {"made_of": {**made_of, "settings": settings}, "steps": rendered}
    (tmp_path / "out" / "recipe.json").write_text(json.dumps(state))
    told = refused(*named, "--out", tmp_path / "out", "--level", "smoke", "--set", change)
    assert "filters.nonsense" in told
    assert f"--set '{section}.set=[KEY=VALUE, …]'" in told


def test_a_folder_without_finished_steps_takes_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no shards" in refused("--data", tmp_path / "datasett", "--out", out, "--level", "smoke")
    data = synthetic.write_dataset(
        tmp_path / "dataset", 12, frames=24, change=lambda k, row: {**row, "caption": None}
    )
    assert "no held-out clip has a caption" in refused("--data", data, "--out", out, "--level", "smoke")


def test_held_out_clips_that_are_trained_on_are_refused_before_the_training(tmp_path: Path) -> None:
    data = synthetic.write_dataset(tmp_path / "data", 24, frames=24)
    out = tmp_path / "out"
    told = refused("--data", data, "--held-out", data, "--out", out, "--level", "smoke")
    assert "of 24 clips are training clips of" in told
    assert "--held-out" in told
    assert not (out / "run").exists()


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_valid_throughout(level: str) -> None:
    recipe: Recipe = recipe_settings(level, [])  # the command reads each section in the same way
    assert recipe.threads == 1 or level == "gpu"
    settings = Settings.model_validate({**recipe.evaluate, **recipe.corpus.evaluate})
    Settings.model_validate({**recipe.evaluate, **recipe.corpus.lossless})
    if level != "smoke":
        controlled = [bar for bar in settings.bars if bar.fails]
        assert len(controlled) >= 5


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_level_for_two_cores_passes_its_bars(tmp_path: Path) -> None:
    """Prints the time of each step, and the bars."""
    out = tmp_path / "recipe"
    began = time.monotonic()
    process = start(out, "--level", "cpu")
    code = process.wait()
    minutes = (time.monotonic() - began) / 60
    print(f"\n{minutes:.1f} minutes")
    for name, step in json.loads((out / "recipe.json").read_text())["steps"].items():
        print(f"{name:22s} {step['seconds']:7.1f} s")
    for name in ("evaluation", "evaluation-lossless"):
        for bar in json.loads((out / name / "evaluation.json").read_text())["bars"]:
            print(bar["told"])
    assert code == 0, out.with_suffix(".log").read_text()[-3000:]
    assert minutes <= 45
