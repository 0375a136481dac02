"""`reelmill convert`: a published file becomes a folder, or one line reports the error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from typer.testing import CliRunner, Result

from generation.models import cogvideox
from generation.models.pretrained import FILE
from jobs.cli import app
from tests.generation.published import sat, sat_vae

ROOT = Path(__file__).parents[2]


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_file_becomes_a_folder_and_its_kind_is_printed(tmp_path: Path) -> None:
    torch.save({"module": sat.transformer(stage2=True)}, tmp_path / "stage2.pt")
    result = reelmill("convert", tmp_path / "stage2.pt", "--out", tmp_path / "new" / "stage2")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "new" / "stage2")
    assert "stage2.pt: FlashVideo's Stage II: 2 layers of 32, rotary positions, 0.1 M" in result.stderr
    assert f"use it with transformer.pretrained={tmp_path}/new/stage2" in result.stderr
    assert sum(p.numel() for p in cogvideox.load(tmp_path / "new" / "stage2").parameters()) > 50_000


def test_options_reach_the_conversion(tmp_path: Path) -> None:
    torch.save({"module": sat.transformer()}, tmp_path / "plain.pt")
    asked = reelmill("convert", tmp_path / "plain.pt", "--out", tmp_path / "plain")
    assert (asked.exit_code, "--positions rotary" in asked.stderr) == (2, True)
    assert not (tmp_path / "plain").exists()
    told = reelmill("convert", tmp_path / "plain.pt", "--out", tmp_path / "plain", "--positions", "rotary")
    assert told.exit_code == 0, told.output
    torch.save({"module": sat.transformer(rank=2)}, tmp_path / "lora.pt")
    for alpha in ("1", "2"):
        made = reelmill(
            "convert",
            tmp_path / "lora.pt",
            "--out",
            tmp_path / alpha,
            *(["--lora-alpha", alpha] * (alpha != "1")),
        )
        assert made.exit_code == 0, made.output
    default = reelmill("convert", tmp_path / "lora.pt", "--out", tmp_path / "d", "--lora-alpha", "1.0")
    assert default.exit_code == 0
    assert (tmp_path / "d" / FILE).read_bytes() == (tmp_path / "1" / FILE).read_bytes()
    assert (tmp_path / "2" / FILE).read_bytes() != (tmp_path / "1" / FILE).read_bytes()


SMALL = {
    "transformer.layers": 2,
    "transformer.heads": 2,
    "transformer.head_dim": 16,
    "transformer.time_embed_dim": 24,
    "text": "{kind: minilm, max_tokens: 16}",
    "data.buckets": "[{frames: 9, height: 32, width: 48}]",
}


def overrides(**more: str | Path) -> list[str]:
    settings = {**SMALL, **{key.replace("__", "."): value for key, value in more.items()}}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """stage1.pt, stage2.pt and 3d-vae.pt, very small."""
    size = sat.Shape(text=384)  # the width of MiniLM
    torch.save({"module": sat.transformer(size, rank=2)}, tmp_path / "stage1.pt")
    torch.save({"module": sat.transformer(size, stage2=True)}, tmp_path / "stage2.pt")
    torch.save({"state_dict": sat_vae.autoencoder()}, tmp_path / "3d-vae.pt")
    return tmp_path


def test_published_files_make_a_run_that_can_sample_videos(files: Path) -> None:
    vae, run = files / "vae", files / "run"
    assert reelmill("convert", files / "3d-vae.pt", "--out", vae).exit_code == 0
    for stage in ("stage1", "stage2"):
        made = reelmill("convert", files / f"{stage}.pt", "--run", run, *overrides(codec__model=vae))
        assert made.exit_code == 0, (made.output, made.exception)
        assert made.stdout.strip() == str(run / stage)
    sampled = reelmill(
        "sample", "a red car", "--run", run, "--out", files / "videos", "--steps", "3",
        "--enhance-steps", "2", "--final-size", "96x64",
    )  # fmt: skip
    assert sampled.exit_code == 0, (sampled.output, sampled.exception)
    folder = files / "videos" / "0000-a-red-car"
    about = json.loads((folder / "preview.json").read_text())
    assert (about["sampling"]["guidance_ramp"], about["sampling"]["timesteps"]) == ("published", "floored")
    with av.open(str(folder / "final.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert (len(frames), *frames[0].shape[:2]) == (9, 64, 96)


def test_files_that_do_not_match_make_no_run(files: Path) -> None:
    run = files / "run"

    def refused(*arguments: str | Path) -> str:
        result = reelmill("convert", *arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        return " ".join(result.stderr.split())

    codec = overrides(codec__model="THUDM/CogVideoX-5b")
    assert "not both" in refused(files / "stage1.pt")
    assert "not both" in refused(files / "stage1.pt", "--run", run, "--out", files / "out")
    assert "--preset and --set need --run" in refused(files / "stage1.pt", "--out", files / "out", *codec)
    assert "convert it with --out FOLDER" in refused(files / "3d-vae.pt", "--run", run)
    assert "transformer.layers: 2, not 42" in refused(files / "stage1.pt", "--run", run)
    assert "--lora-alpha: a number above 0, not nan" in refused(
        files / "stage1.pt", "--run", run, "--lora-alpha", "nan", *codec
    )
    assert "stage2.pt has no LoRA" in refused(
        files / "stage2.pt", "--run", run, "--lora-alpha", "128", *codec
    )
    missing = overrides(codec__model=files / "nothing")
    assert "codec.model: there is no folder" in refused(files / "stage1.pt", "--run", run, *missing)
    odd = ["--preset", "tiny", *overrides(), "--set", "sampling.timesteps=trailing"]
    assert "input channels (the codec's): 4, not 48" in refused(files / "stage1.pt", "--run", run, *odd)
    (files / "file").write_text("")
    assert f"{files}/file" in refused(files / "stage1.pt", "--run", files / "file", *codec)
    assert f"{files}/file" in refused(files / "stage1.pt", "--out", files / "file" / "out")
    assert not run.exists()
    assert reelmill("convert", files / "stage1.pt", "--run", run, *codec).exit_code == 0
    assert "stage1: this folder exists already; name another run" in refused(
        files / "stage1.pt", "--run", run, *codec
    )


def test_it_runs_as_a_module_and_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.convert", str(tmp_path / "no.pt"), "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 2
    expected = f"reelmill: {tmp_path}/no.pt: there is no such file; name the file itself, not its folder"
    assert ran.stderr.strip() == expected
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_kept_and_leftovers_of_a_kill_are_removed(files: Path) -> None:
    (files / "_vae").mkdir()
    (files / "_vae-notes").mkdir()
    (files / "_vae-0123456789abcdef.part").mkdir()
    assert reelmill("convert", files / "3d-vae.pt", "--out", files / "vae").exit_code == 0
    there = {path.name for path in files.iterdir() if path.is_dir()}
    assert there == {"_vae", "_vae-notes", "vae"}


def test_folders_and_damaged_files_are_reported(files: Path) -> None:
    assert reelmill("convert", files / "3d-vae.pt", "--out", files / "vae").exit_code == 0
    for source in (files / "vae", files / "vae" / FILE):
        again = reelmill("convert", source, "--out", files / "again")
        assert again.exit_code == 2
    assert "it is a folder; it looks like diffusers' layout" in " ".join(
        reelmill("convert", files / "vae", "--out", files / "again").stderr.split()
    )
    tensors = sat.transformer(sat.Shape(text=384), stage2=True)
    tensors["model.diffusion_model.time_embed.0.bias"][0] = torch.nan
    torch.save({"module": tensors}, files / "damaged.pt")
    damaged = reelmill("convert", files / "damaged.pt", "--out", files / "again")
    assert damaged.exit_code == 2
    assert "time_embed.0.bias has infinite or undefined values" in " ".join(damaged.stderr.split())
    assert not any(path.name.startswith(("again", "_again")) for path in files.iterdir())
