"""Bars: which figures meet or miss a bar, and the words of the verdict."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from generation.evaluate.bars import Bar, Verdict, figure, judge_bars

FIGURES: dict[str, Any] = {
    "stage1": {"colour": 0.9, "seen": {"colour": 0.95}, "shuffled": {"colour": 0.25}, "spread": None},
    "vae": {"psnr_db": 27.5, "broken": math.nan, "fit": True, "told": "yes"},
}


def verdict(figure: str, void: str = "", **bar: Any) -> Verdict:
    (found,) = judge_bars(FIGURES, [Bar.model_validate({"figure": figure, **bar})], lambda path: void)
    return found


@pytest.mark.parametrize(
    ("bounds", "holds", "misses", "told"),
    [
        ({"min": 2}, [2, 2.5, math.inf], [1.999, -math.inf, math.nan], "at least 2"),
        ({"max": 0.65}, [0.65, -1], [0.651], "at most 0.65"),
        ({"min": -1, "max": 1}, [-1, 0, 1], [-1.01, 1.01, math.nan], "at least -1 and at most 1"),
        ({"min": 3, "max": 3}, [3], [2.9, 3.1], "at least 3 and at most 3"),
    ],
)
def test_bounds(bounds: dict[str, float], holds: list[float], misses: list[float], told: str) -> None:
    bar = Bar.model_validate({"figure": "a", **bounds})
    assert [bar.holds(value) for value in holds] == [True] * len(holds)
    assert [bar.holds(value) for value in misses] == [False] * len(misses)
    assert bar.told == told


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "stage1.colour has no min and no max"),
        ({"fails": ["stage1.seen.colour"]}, "has no min and no max"),
        ({"min": 2, "max": 1}, "stage1.colour: no number is at least 2 and at most 1"),
        ({"min": math.nan}, "finite"),
        ({"least": 1}, "Extra inputs"),
    ],
)
def test_bars_that_cannot_be_met_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Bar.model_validate({"figure": "stage1.colour", **wrong})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vae.psnr_db", 27.5),
        ("stage1.seen.colour", 0.95),
        ("vae.fit", 1.0),
        ("vae.broken", None),
        ("vae.told", None),
        ("stage1.spread", None),
        ("stage1.seen", None),
        ("stage1.unseen.colour", None),
        ("vae.psnr_db.more", None),
        ("", None),
    ],
)
def test_a_path_leads_to_a_number_or_to_none(path: str, expected: float | None) -> None:
    assert figure(FIGURES, path) == expected


def test_a_figure_that_meets_its_bar_passes() -> None:
    found = verdict("vae.psnr_db", min=26)
    assert found.passed
    assert found.told == "passed: vae.psnr_db 27.500, at least 26"


def test_a_figure_that_does_not_is_missed() -> None:
    found = verdict("stage1.colour", min=0.95)
    assert not found.passed
    assert found.told == "missed: stage1.colour 0.900, at least 0.95"
    assert not verdict("stage1.colour", max=0.4).passed


@pytest.mark.parametrize("path", ["vae.broken", "stage1.spread", "stage1.unseen.colour", "chain.colour"])
@pytest.mark.parametrize("bounds", [{"min": -1e9}, {"max": 1e9}])
def test_what_was_not_measured_is_missed(path: str, bounds: dict[str, Any]) -> None:
    found = verdict(path, **bounds)
    assert found.value is None
    assert not found.passed
    assert found.told == f"missed: {path} was not measured"


def test_controls_that_miss_the_bar_are_as_they_must_be() -> None:
    found = verdict("stage1.colour", min=0.85, fails=["stage1.shuffled.colour"])
    assert found.passed
    unlike = "the controls miss the bar, as they must: stage1.shuffled.colour 0.250"
    assert found.told == f"passed: stage1.colour 0.900, at least 0.85; {unlike}"


def test_a_control_that_meets_the_bar_too_makes_it_missed() -> None:
    found = verdict("stage1.colour", min=0.85, fails=["stage1.shuffled.colour", "stage1.seen.colour"])
    assert not found.passed
    assert found.told.startswith("missed: stage1.colour 0.900, at least 0.85, but controls that must miss")
    assert "stage1.seen.colour 0.950" in found.told
    assert "shuffled" not in found.told


@pytest.mark.parametrize("control", ["stage1.untrained.colour", "stage1.spread", "vae.broken"])
def test_a_control_that_was_not_measured_makes_it_missed(control: str) -> None:
    found = verdict("stage1.colour", min=0.85, fails=["stage1.shuffled.colour", control])
    assert not found.passed
    assert found.told.endswith(f"but its controls were not measured: {control}")


def test_what_counts_for_nothing_is_missed_though_it_meets_the_bar() -> None:
    found = verdict("vae.psnr_db", "VAE unfit", min=26)
    assert not found.passed
    assert found.told == "missed: vae.psnr_db 27.500, at least 26, but this figure does not count: VAE unfit"


def test_what_is_told_is_of_the_same_verdict_as_the_figure() -> None:
    """The value 0.84996 must not be printed as 0.850, which would meet the bar."""
    bar = Bar(figure="a", min=0.85)
    assert Verdict(bar, 0.84996, {}).told == "missed: a 0.84996, at least 0.85"
    assert Verdict(bar, 0.85004, {"b": 0.8499999}).told.endswith("as they must: b 0.8499999")


def test_every_bar_has_its_verdict_in_order() -> None:
    bars = [Bar(figure="vae.psnr_db", min=30), Bar(figure="stage1.colour", max=1)]
    found = judge_bars(FIGURES, bars)
    assert [v.bar for v in found] == bars
    assert [v.passed for v in found] == [False, True]
