"""The benchmark of generation runs without Ray, with random weights, on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks import generation as benchmark
from generation.models.cogvideox import skeleton
from tests.generation.tiny_runs import ROOT

LINE = re.compile(r"^(\w.{27}) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)% +([\d.]+) +(.+)$", re.M)


RATIO = re.compile(r"([\d.]+) \(([\d.]+)-([\d.]+)\)")


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
    said = run("--stage", "stage1", "--steps", "1", "--rounds", "2", "--device", "cpu")
    rows = {name.strip(): list(map(float, numbers)) for name, *numbers, _ in LINE.findall(said)}
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
    roof = float(re.findall(r"training.*roofline ([\d.]+) GFLOP/s", said)[0])
    giga, seconds, share = rows["step"][1:4]
    assert share == pytest.approx(100 * giga / seconds / roof, rel=0.1)
    assert said.count(" GFLOP ") == said.count("peak MB") == 2
    ratios = {name.strip(): ratio.strip() for name, *_, ratio in LINE.findall(said)}
    assert ratios.pop("diffusers' pipeline") == ratios.pop("step, diffusers' model") == "1"
    for ratio in ratios.values():
        middle, least, most = map(float, RATIO.fullmatch(ratio).groups())  # type: ignore[union-attr]
        assert 0 < least <= middle <= most
    assert rows["step"][4] > 2 * rows["guidance apart"][4]  # a training step keeps activations and moments


@pytest.mark.slow
def test_both_stages_in_one_go() -> None:
    said = run("--whole", "--device", "cpu")
    for part in ("stage1", "decode", "encode, large", "stage2", "decode, large", "evaluations"):
        assert re.search(rf"^{part} +[\d.]+ s", said, re.M), said


def test_the_published_sizes_are_those_of_the_papers() -> None:
    """The sizes are those of the presets, and Stage I has its LoRA as well. No weights are loaded."""
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


def test_a_ratio_is_of_the_same_round() -> None:
    """A machine that is three times slower for one round changes the seconds, but not the ratio."""
    ours, theirs = (
        benchmark.Case(name, 1, 1.0, 1, 0, lambda: None, rounds=rounds)
        for name, rounds in (("ours", [1.0, 3.0, 1.2]), ("diffusers'", [2.0, 6.0, 2.0]))
    )
    assert benchmark.of_theirs(ours, theirs, True) == "0.50 (0.50-0.60)"
    assert ours.seconds == 1.0
    ours.rounds = [1.5, 1.6]  # of training on a GPU, where the two do not take turns
    assert benchmark.of_theirs(ours, theirs, False) == "0.75 (bests)"


def test_units_are_by_size() -> None:
    assert benchmark.scale([3e9, 2e12], benchmark.FLOPS) == (1e9, "GFLOP")
    assert benchmark.scale([2e12], benchmark.FLOPS) == (1e12, "TFLOP")
    assert benchmark.scale([2e7], benchmark.BYTES) == (1e6, "MB")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--whole", "--stage", "stage1", "--rounds", "2"], "not with --stage, --rounds"),
        (["--whole", "--size", "270p", "--compile"], "not with --size, --compile"),
        (["--whole", "--steps", "1", "--no-training"], "not with --steps, --no-training"),
        (["--preset", "nope"], "preset nope does not exist; the presets are tiny, "),
        (["--steps", "0"], "argument --steps: 0: an integer of 1 or more"),
        (["--steps", "1001"], "steps: "),
        (["--rounds", "0"], "argument --rounds: 0: an integer of 1 or more"),
        (["--rounds", "two"], "argument --rounds: two: an integer of 1 or more"),
        (["--device", "cuda"], "device cuda: there is no GPU"),
    ],
)
def test_what_it_cannot_do_is_an_error_of_one_line(
    arguments: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("python -m benchmarks.generation: error: ")
    assert told in last
