"""reelmill evaluate, end to end: the real command on a run with an autoencoder and both stages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from generation.media import read_video
from jobs.cli import app
from tests.generation import synthetic, tiny_runs

ROOT = Path(__file__).parents[2]
COLOURS = list(synthetic.COLOURS)
BARS: list[dict[str, Any]] = [
    {"figure": "vae.psnr_db", "min": 1},
    {"figure": "stage1.colour", "max": 1, "fails": []},
    {"figure": "stage2.usual.shown.colour", "min": 0},
]
SETTINGS: dict[str, Any] = {
    "clips": 3,
    "prompts": 4,
    "untrained": 2,
    "evaluations": [1, 2],
    "attributes": {"colour": COLOURS},
    "judge_clips": 64,
    "judge_steps": 50,
    "bars": BARS,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write_dataset(tmp_path_factory.mktemp("data"), 24, frames=5, width=16, height=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    """An autoencoder, and both stages in its latents."""
    run = tmp_path_factory.mktemp("runs") / "run"

    def train(stage: str, side: int, **sections: Any) -> None:
        bucket = {"frames": 5, "height": side, "width": side}
        data = {"buckets": [bucket], "validation_fraction": 0.3, "single_frame_fraction": 0}
        changed = {"data": data, "train": {"steps": 4}, **sections}
        tiny_runs.train(tiny_runs.tiny(stage, **changed), dataset, run)

    train("vae", 16, vae_loss={"adversarial": 0})
    codec = {"kind": "slice", "model": str(run / "vae"), "temporal": 4, "spatial": 4}
    train("stage1", 8, codec=codec, transformer={"patch": 1})
    train("stage2", 16, codec=codec, transformer={"patch": 1})
    return run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "evaluate.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def evaluate(run: Path, data: Path, config: Path, *more: str | Path) -> Result:
    arguments = ["evaluate", "--run", run, "--data", data, "--config", config, "--device", "cpu", *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def first(trained: Path, dataset: Path, settings: Path) -> Result:
    return evaluate(trained, dataset, settings)


@pytest.fixture
def run(first: Result, trained: Path, tmp_path: Path) -> Path:
    """A copy of the run with its first evaluation."""
    assert first.exit_code == 0, first.output
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return found


def test_a_run_is_evaluated(first: Result, trained: Path, dataset: Path) -> None:
    assert first.exit_code == 0, (first.output, first.exception)
    place = trained / "evaluation"
    found = content(place)
    assert list(found["figures"]) == ["judge", "vae", "stage1", "stage2", "chain"]
    assert (found["run"], found["data"], found["held_out"]) == (str(trained), str(dataset), None)
    assert found["settings"]["clips"] == 3
    lines = first.stdout.split("\n")
    for title in found["figures"]:
        assert title in lines
    assert any(line.split() == ["psnr_db", f"{found['figures']['vae']['psnr_db']:.4g}"] for line in lines)
    assert any(line.split() == ["spread", "-"] for line in lines)
    assert any(line.split() == ["fit", "False"] for line in lines)
    assert [bar["told"] for bar in found["bars"]] == [line for line in lines if line.startswith("passed: ")]
    assert len(found["bars"]) == 3
    assert set(found["notes"]) <= set(lines)
    assert any(note.startswith("stage2: VAE unfit") for note in found["notes"])
    assert f"figures  {place / 'evaluation.json'}" in lines
    assert f"page     {place / 'evaluation.html'}" in lines
    page = (place / "evaluation.html").read_text()
    assert f"{found['figures']['vae']['psnr_db']}" in page
    finals = sorted(place.glob("videos/*/final.mp4"))
    assert [read_video(path).frames.shape for path in finals] == [(5, 16, 16, 3)] * 4
    assert "reading held-out clips" in first.stderr


def test_a_repeated_evaluation_computes_nothing(run: Path, dataset: Path, settings: Path) -> None:
    again = evaluate(run, dataset, settings)
    assert again.exit_code == 0
    assert "evaluating" not in again.stderr
    assert "training the judge" not in again.stderr


def test_a_missed_bar_is_printed_and_gives_code_1(run: Path, dataset: Path, settings: Path) -> None:
    """No part is computed again. The figures of an unfit autoencoder pass no bar."""
    bars = [
        {"figure": "vae.psnr_db", "min": 99},
        {"figure": "stage2.usual.psnr_db", "min": 1},
        {"figure": "stage2.detail_over_fewest", "min": 0},
    ]
    result = evaluate(run, dataset, settings, "--set", f"bars={json.dumps(bars)}")
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    missed, void, passed = (bar["told"] for bar in content(run / "evaluation")["bars"])
    assert missed.endswith("at least 99")
    assert void.endswith("but this figure does not count: VAE unfit")
    assert passed.startswith("passed: stage2.detail_over_fewest")
    for told in (missed, void, passed):
        assert told in result.stdout.split("\n")
    assert "evaluating" not in result.stderr
    assert "2 of 3 bars missed" in (run / "evaluation" / "evaluation.html").read_text()


def test_parts_prompts_settings_and_the_layout_of_vbench(
    run: Path, dataset: Path, settings: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na red circle\n")
    out, videos = tmp_path / "out", tmp_path / "vbench"
    result = evaluate(
        run, dataset, settings, "--part", "stage1", "--prompts", prompts, "--out", out, "--vbench", videos,
        "--set", "untrained=0", "--set", "bars=[]",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = content(out)["figures"]
    assert list(figures) == ["judge", "stage1"]
    assert figures["stage1"]["videos"] == 3
    assert figures["stage1"]["spread"] > 0  # one prompt occurs twice
    assert "untrained" not in figures["stage1"]
    names = [f"a {what}.mp4" for what in ("blue square-0", "red circle-0", "red circle-1")]
    assert sorted(path.name for path in videos.iterdir()) == names
    assert f"videos   {videos}" in result.stdout
    first = next(out.glob("videos/0000-*/preview.mp4"))
    assert (videos / names[1]).read_bytes() == first.read_bytes()
    assert not list(out.glob("videos/*/final.mp4"))
    assert content(run / "evaluation")["settings"]["untrained"] == 2  # the other evaluation does not change


def test_clips_of_another_dataset(run: Path, dataset: Path, settings: Path, tmp_path: Path) -> None:
    others = synthetic.write_dataset(tmp_path / "others", 5, frames=5, width=16, height=16, seed=3)
    result = evaluate(run, dataset, settings, "--held-out", others, "--part", "vae")
    assert result.exit_code == 0, result.output
    found = content(run / "evaluation")
    assert list(found["figures"]) == ["vae"]
    assert found["held_out"] == str(others)
    assert "training the judge" not in result.stderr
    assert "--part: chain, stage1, stage2 were left out, so they have no verdicts" in result.stdout


def test_an_unfit_judge_gives_code_1(run: Path, dataset: Path, settings: Path) -> None:
    result = evaluate(run, dataset, settings, "--set", "judge_steps=1")
    assert result.exit_code == 1
    assert "reelmill: judge unfit: on " in result.stderr
    assert "judge_steps" in result.stderr
    assert "Traceback" not in result.output
    assert not (run / "evaluation" / "evaluation.json").exists()
    assert not (run / "evaluation" / "evaluation.html").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run", "{missing}"], ["{missing}: there is no such run folder", "reelmill train"]),
        (["--run", "{empty}"], ["{empty}: no stage has weights", "reelmill train"]),
        (["--data", "{missing}"], ["{missing} has no shards", "reelmill build"]),
        (["--held-out", "{missing}"], ["{missing} has no shards"]),
        (["--held-out", "{data}"], ["--held-out {data}: ", "clips are training clips of {data}"]),
        (["--part", "stage3"], ["--part stage3: the parts are vae, stage1, stage2, chain"]),
        (["--prompts", "{missing}"], ["--prompts {missing}: No such file"]),
        (["--prompts", "{blank}"], ["{blank}: contains no prompt"]),
        (["--config", "{missing}"], ["{missing}", "No such file"]),
        (["--config", "{broken}"], ["{broken}: not valid YAML"]),
        (["--config", "{list}"], ["{list}: the file must contain a mapping"]),
        (["--config", "{wrong}"], ["unknown key clipz: there are attributes, bars, ", "(not clipz)"]),
        (["--set", "clipz=3"], ["unknown key clipz", "clips"]),
        (["--set", "clips=few"], ["clips: ", "(got 'few')"]),
        (["--set", "clips"], ["clips", "key=value"]),
        (["--set", "evaluations=[]"], ["evaluations: ", "at least 1 item"]),
        (["--set", "bars=[{figure: vae.psnr_db}]"], ["bars.0: vae.psnr_db has no min and no max"]),
        (["--set", "bars=[{figure: vae.psnr_db, least: 3}]"], ["unknown key bars.0.least", "figure"]),
        (["--set", "focus=dotted"], ["focus: no caption of the 3 held-out clips has the word dotted"]),
        (["--set", "attributes={a: [red, purple]}"], ["attributes.a: none of 64 captions has purple"]),
        (["--set", "attributes={a: [red]}"], ["attributes.a: ", "at least 2 items"]),
        (["--set", "attributes={seen: [red, blue]}"], ["attributes.seen: "]),
        (["--set", "lpips=vgg"], ["lpips: the weights of vgg cannot be loaded", "or write lpips=null"]),
        (["--set", "lpips=alex"], ["lpips: alex needs pictures of at least 31 pixels a side"]),
        (["--out", "{blank}"], ["{blank}", "cannot be made", "name another"]),
        (["--device", "tpu"], ["device tpu: take cpu or cuda"]),
    ],
)
def test_wrong_usage_names_a_remedy(
    run: Path, dataset: Path, settings: Path, tmp_path: Path, arguments: list[str], says: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    monkeypatch.setattr("torch.hub.download_url_to_file", _unreachable)
    texts = {"blank": "\n \n", "broken": "clips: [", "list": "- clips", "wrong": "clipz: 3"}
    places = {name: tmp_path / name for name in (*texts, "missing", "empty")} | {"data": dataset}
    for name, text in texts.items():
        places[name].write_text(text)
    places["empty"].mkdir()

    def filled(text: str) -> str:
        for name, path in places.items():
            text = text.replace("{" + name + "}", str(path))
        return text

    result = evaluate(run, dataset, settings, *map(filled, arguments))
    assert result.exit_code == 2, (result.output, repr(result.exception))
    assert "Traceback" not in result.output
    for part in says:
        assert filled(part) in result.stderr


def _unreachable(*_: object, **__: object) -> None:
    raise OSError("no connection")


def test_videos_from_other_weights_are_not_used(run: Path, dataset: Path, settings: Path) -> None:
    about = run / "stage1" / "weights" / "weights.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "hash": "another"}))
    result = evaluate(run, dataset, settings)
    assert result.exit_code == 2
    place = run / "evaluation" / "videos"
    assert (
        f"{place} holds videos of another evaluation (other values of weights_hash); remove that folder, or"
        in result.stderr
    )
    assert "evaluating vae" not in result.stderr


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "jobs.evaluate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--held-out" in done.stdout
