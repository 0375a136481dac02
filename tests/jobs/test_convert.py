"""`reelmill convert`: a published file becomes a folder, or one line says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from generation import transformer
from generation.pretrained import FILE
from jobs.cli import app
from tests.generation import sat

ROOT = Path(__file__).parents[2]


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_file_becomes_a_folder_and_what_it_is_is_told(tmp_path: Path) -> None:
    torch.save({"module": sat.transformer(stage2=True)}, tmp_path / "stage2.pt")
    result = reelmill("convert", tmp_path / "stage2.pt", "--out", tmp_path / "new" / "stage2")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "new" / "stage2")
    assert "stage2.pt: FlashVideo's Stage II: 2 layers of 32, rotary positions, 0.1 M" in result.stderr
    assert f"use it with transformer.pretrained={tmp_path}/new/stage2" in result.stderr
    assert sum(p.numel() for p in transformer.load(tmp_path / "new" / "stage2").parameters()) > 50_000


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


def test_it_runs_as_a_module_and_refuses_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.convert", str(tmp_path / "no.pt"), "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 2
    expected = f"reelmill: {tmp_path}/no.pt: there is no such file; name it itself, not its folder"
    assert ran.stderr.strip() == expected
    assert list(tmp_path.iterdir()) == []
