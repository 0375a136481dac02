"""Cut-offs from labels: the best one by trying all, and how sure it is."""

from __future__ import annotations

import json
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest

from curation import advise
from curation.judging.fitted import best_cut, by_chance, fit
from tests.curation.judging.small import Span, build


def right(scores: np.ndarray, keep: np.ndarray, cut: float) -> int:
    return int(((scores >= cut) == keep).sum())


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.random(30), 1 + seed % 3)
    keep = rng.random(30) < 0.2 + 0.6 * scores
    cut = best_cut(scores, keep)
    tried = [-np.inf, *scores, *(np.unique(scores)[:-1] + np.diff(np.unique(scores)) / 2)]
    assert right(scores, keep, cut) == max(right(scores, keep, t) for t in tried)


@pytest.mark.parametrize("bound", ["min", "max"])
def test_labels_without_an_error_give_their_cut_off(bound: str) -> None:
    """50 labels that keep what is at least (at most) 0.6."""
    scores = np.linspace(0, 1, 50)
    keep = scores >= 0.6 if bound == "min" else scores <= 0.6
    found = fit("motion.speed", bound, scores, keep, now=0.1)
    assert found is not None
    edge = np.searchsorted(scores, 0.6)
    assert scores[edge - 1] <= found.value <= scores[edge]
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.15
    assert (found.labels, found.agreement, found.unsure) == (50, 1.0, 0.0)
    assert found.held_out >= 0.96
    assert found.is_clear
    assert found.baseline == max(keep.mean(), 1 - keep.mean())
    assert found.now_agreement == float(((scores >= 0.1 if bound == "min" else scores <= 0.1) == keep).mean())


def test_labels_that_say_nothing_are_rarely_taken_for_a_cut_off() -> None:
    """Of 100 columns of noise, a clear bound is found for about 1 in 20 at most."""
    rng = np.random.default_rng(0)
    found = [fit("noise.value", "min", rng.random(50), rng.random(50) < 0.5) for _ in range(100)]
    fits = [f for f in found if f is not None]
    assert sum(f.is_clear for f in fits) <= 8
    assert np.mean([f.agreement for f in fits]) > 0.57  # the labels that chose the bound seem to agree
    assert np.mean([f.held_out for f in fits]) < 0.54  # and others do not


def test_the_range_of_a_cut_off_holds_the_truth_most_of_the_time() -> None:
    """Of 40 draws of 50 labels with errors around 0.5, the range of 90 % holds 0.5 in most."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(40):
        scores = rng.random(50)
        keep = (scores >= 0.5) ^ (rng.random(50) < 0.1)
        found = fit("motion.speed", "min", scores, keep)
        assert found is not None
        held += found.low <= 0.5 <= found.high
    assert held >= 34


def test_few_labels_and_one_judgement_give_none() -> None:
    scores = np.linspace(0, 1, 9)
    assert fit("a.b", "min", scores, scores > 0.5) is None
    scores = np.linspace(0, 1, 30)
    assert fit("a.b", "min", scores, np.ones(30, dtype=bool)) is None
    assert fit("a.b", "min", scores, scores < 0.5) is None  # a lower bound can only harm


def test_chance_is_counted_exactly() -> None:
    p = Fraction(3, 5)
    exact = sum(comb(20, k) * p**k * (1 - p) ** (20 - k) for k in range(15, 21))
    assert by_chance(15, 20, 0.6) == pytest.approx(float(exact))
    assert by_chance(0, 20, 0.6) == 1.0
    assert by_chance(3000, 5000, 0.6) == pytest.approx(0.5, abs=0.02)


def test_labels_reach_the_clips_and_a_column_is_advised(tmp_path: Path) -> None:
    """50 shots of 4 s, one in each clip; the curator keeps what is faster than 0.3."""
    speeds = np.random.default_rng(5).permutation(np.linspace(0.02, 0.98, 50))
    spans = [Span(5.0 * k, 5.0 * k + 5, float(v)) for k, v in enumerate(speeds)]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans})
    rows = [
        {
            "path": "a.mp4",
            "start": 5.0 * k + 0.5,
            "end": 5.0 * k + 4.5,
            "judgement": "keep" if v > 0.3 else "reject",
        }
        for k, v in enumerate(speeds)
    ]
    rows += [{"path": "a.mp4", "start": 0.0, "end": 1.5, "judgement": "reject"}]  # too short to count
    rows += [{"path": "b.mp4", "judgement": "keep"}]
    (tmp_path / "l.json").write_text(json.dumps(rows))
    found = advise(tmp_path / "d", labels=tmp_path / "l.json")
    assert found.labels is not None
    assert (len(found.labels.keep), found.labels.conflicts, found.labels.unknown) == (50, 0, ("b.mp4",))
    assert sum(found.labels.keep.values()) == int((speeds > 0.3).sum())
    (best,) = found.clear
    below, above = speeds[speeds <= 0.3].max(), speeds[speeds > 0.3].min()
    assert (best.column, best.bound, best.now) == ("motion.speed", "min", 0.1)
    assert below < best.value <= above
    assert f"  --set rules.motion.speed.min={best.value!r}" in found.lines()


def test_a_clip_with_both_judgements_is_left_out(tmp_path: Path) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 10), Span(10, 15)]})
    text = "path,start,end,judgement\na.mp4,0,5,keep\na.mp4,5,10,reject\na.mp4,10,15,keep\n"
    (tmp_path / "l.csv").write_text(text)
    labels = advise(tmp_path / "d", labels=tmp_path / "l.csv").labels
    assert labels is not None
    assert (labels.keep, labels.conflicts) == ({1: True}, 1)
