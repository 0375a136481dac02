"""Invariant I2: killed at any moment and run again, the dataset is that of an uninterrupted run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCENARIOS = {"build", "captions by a model", "a changed scorer", "a changed detector", "remove"}


def rounds(place: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rounds of `tests.killing`, in a process that has no Ray: it forks."""
    command = [sys.executable, "-m", "tests.killing", str(place), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[dict[str, Any]]) -> int:
    """Every round ended with the rows of the uninterrupted run; what was decoded by the run that went on is
    no more than what a whole run decodes. Returns how many rounds there were."""
    assert {f["scenario"] for f in found} >= SCENARIOS
    for scenario in found:
        assert scenario["different"] == 0, scenario
        assert scenario["most_decodes_after_a_kill"] <= scenario["decodes_uninterrupted"], scenario
    return sum(f["rounds"] for f in found)


def test_killed_at_every_ninth_commit_point_and_run_again(tmp_path: Path, seed: int) -> None:
    """Nine days in a row come to all of them."""
    assert check(rounds(tmp_path, "9", str(1 + seed % 9))) >= 7


@pytest.mark.slow
def test_killed_at_every_commit_point_and_run_again(tmp_path: Path) -> None:
    found = rounds(tmp_path)
    print("\n".join(map(json.dumps, found)))
    assert check(found) >= 80
    assert all(f["rounds"] == f["changes"] for f in found)
