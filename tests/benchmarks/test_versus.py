"""The comparison with other ways: the accepted share, and a run of two ways on short footage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import versus
from benchmarks.versus import Took, bound_for, nearest_to

ROOT = Path(__file__).parents[2]


def test_the_bound_accepts_the_share_of_the_seconds() -> None:
    clips = [(5.0, 0.3), (4.0, 0.1), (6.0, 0.2), (9.0, 0.5)]
    assert bound_for(clips, 40.0) == 0.2
    assert bound_for(clips, 24.0) == 0.1
    assert bound_for([], 24.0) == float("-inf")


def test_a_bound_accepts_all_clips_of_its_score() -> None:
    same = [(5.0, 0.3)] * 8
    assert bound_for([(5.0, 0.1), *same], 45.0) == 0.1
    assert bound_for(same, 40.0) == float("-inf")


def test_the_number_of_clips_with_equal_scores_is_nearest_to_the_share() -> None:
    same = dict.fromkeys("dbcaefgh", (5.0, 0.3))
    assert nearest_to(0.25, same, 40.0) == ["a", "b"]
    assert nearest_to(0.3, {**same, "z": (4.0, 0.1)}, 44.0) == ["z", "a", "b"]
    assert nearest_to(0.01, same, 40.0) == []
    assert nearest_to(0.25, {}, 40.0) == []


def test_costs_of_steps_are_summed() -> None:
    split, scored, start = Took(10, 5), Took(4, 3), Took(1, 2)
    assert split + (scored - start) == Took(13, 6)


def test_a_missing_runner_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="contains no bin/dj-process"):
        versus.Juicer(tmp_path, tmp_path / "work")


def test_a_runner_that_does_not_start_is_an_error_before_the_work(tmp_path: Path) -> None:
    runner = tmp_path / "bin" / "dj-process"
    runner.parent.mkdir()
    runner.write_text("#!/bin/sh\necho no module named aiohttp >&2\nexit 1\n")
    runner.chmod(0o755)
    with pytest.raises(SystemExit, match="no module named aiohttp"):
        versus.Juicer(tmp_path, tmp_path / "work")


@pytest.mark.slow
def test_two_ways_in_one_run(footage: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.versus", "--footage", str(footage), "--minutes", "1.5"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    rows = {line[:32].strip(): line[32:].split() for line in printed.splitlines() if line.endswith("x")}
    assert list(rows) == ["ours", "ours, exact", "the customary way"]
    for name, (cpu_s, wall_s, clips, accepted, share, *_) in rows.items():
        assert float(cpu_s) > 0, name
        assert float(wall_s) > 0, name
        assert 0 < int(accepted) < int(clips), name
        assert 15 < float(share.rstrip("%")) < 35, name
