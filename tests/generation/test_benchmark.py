"""The benchmark of generation runs for anyone: without Ray, from random weights, on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import generation as benchmark
from generation.transformer import skeleton
from tests.generation.tiny_runs import ROOT

LINE = re.compile(r"^(\w.{27}) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)% +([\d.]+)$", re.M)


def run(*arguments: str) -> str:
    script = (
        "import sys; sys.modules['ray'] = None; from benchmarks.generation import main; "
        f"sys.argv[1:] = {list(arguments)!r}; main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_it_prints_a_table_of_ours_and_of_diffusers() -> None:
    said = run("--stage", "stage1", "--steps", "1", "--rounds", "1", "--device", "cpu")
    rows = {name.strip(): list(map(float, numbers)) for name, *numbers in LINE.findall(said)}
    assert list(rows) == [
        "guidance together",
        "guidance apart",
        "no guidance",
        "diffusers' pipeline",
        "step",
        "step, diffusers' model",
    ], said
    assert {row[0] for row in rows.values()} == {3 * 8 * 12 + 64}  # tokens of video and text
    assert all(0 < row[3] < 200 for row in rows.values())  # percent
    roof = float(re.findall(r"training.*roofline ([\d.]+) TFLOP/s", said)[0])
    tera, seconds, share = rows["step"][1:4]
    assert share == pytest.approx(100 * tera / seconds / roof, rel=0.1)
    assert rows["step"][4] > 2 * rows["guidance apart"][4]  # it keeps activations and moments


@pytest.mark.slow
def test_both_stages_in_one_go() -> None:
    said = run("--whole", "--device", "cpu")
    for part in ("stage1", "decode", "encode, large", "stage2", "decode, large", "evaluations"):
        assert re.search(rf"^{part} +[\d.]+ s", said, re.M), said


def test_the_published_sizes_are_those_of_the_papers() -> None:
    """Without weights: of Stage I the LoRA is added, of both the sizes are the preset's."""
    first, second = (benchmark.settings("flashvideo", stage) for stage in ("stage1", "stage2"))
    assert first.lora is not None
    for config, billions, tera in ((first, 5.5703, 83.1), (second, 1.6943, 2806)):
        model = skeleton(config.transformer, benchmark.channels(config), 4096)
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=5e-5)
        assert benchmark.forward_flops(config, config.data.buckets[0]) / 1e12 == pytest.approx(tera, rel=0.01)
    assert benchmark.SIZES["1080p"] == second.data.buckets[0]
    half = benchmark.settings("flashvideo", "stage2", benchmark.SIZES["540p"])
    assert half.latent_grid(half.data.buckets[0]) == (13, 66, 120)


def test_memory_of_a_case_is_its_own() -> None:
    config, device = benchmark.settings("tiny", "stage1"), torch.device("cpu")
    cases = [case for case in benchmark.sampling_cases(config, 1, device, False) if "guidance" in case.name]
    benchmark.measure(cases, device, 1)
    together, apart, none = (case.peak - case.weights for case in cases)
    assert 0 < none <= apart < together
    assert cases[0].flops == cases[1].flops == 2 * cases[2].flops
    assert all(0 < case.seconds < 60 for case in cases)
