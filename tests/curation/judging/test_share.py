"""What rules cost, and cut-offs for a wanted share, by counting and sorting."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from curation import advise
from curation.api import dataset_at, its_config
from curation.captions.chosen import Captions
from curation.config.load import validated
from curation.judging.advice import share_of
from curation.judging.costs import Cost, costs, judging
from curation.judging.share import moved, propose, short_number
from curation.report.read import read_clips
from curation.store.dataset import Dataset
from curation.store.schema import VERDICTS
from curation.verdicts.judge import verdict_rows, write_verdicts
from filters.rules import Rule
from tests.curation import dataset_fixture as fixture
from tests.curation.judging.small import Span, build


def test_what_each_rule_rejects_alone_and_last(tmp_path: Path) -> None:
    """By hand from the table of the fixture: 13 clips; 6 are accepted, and one fails when it is cut."""
    fixture.build(str(tmp_path / "d"))
    found = advise(tmp_path / "d")
    assert (found.clips, found.passing, found.seconds, found.passing_s) == (13, 7, 57.0, 30.0)
    assert found.costs == [
        Cost("duration.seconds", 12, 1, 2.0, last=1, last_s=2.0, last_unscored=0, missing=0),
        Cost("motion.speed", 12, 2, 10.0, last=2, last_s=10.0, last_unscored=0, missing=0),
        Cost("aesthetics.mean", 12, 2, 10.0, last=2, last_s=10.0, last_unscored=0, missing=1),
    ]


def test_a_clip_that_two_rules_reject_is_last_of_none(tmp_path: Path) -> None:
    spans = [
        Span(0, 5, 0.05, {"aesthetics.mean": 4.0}),  # both
        Span(5, 10, 0.05, {"aesthetics.mean": 5.0}),  # motion
        Span(10, 15, 0.05, {"aesthetics.mean": None}),  # motion; the other score was skipped
        Span(15, 20, 0.5, {"aesthetics.mean": 4.0}),  # aesthetics
    ]
    rules = {"motion.speed": {"min": 0.1}, "aesthetics.mean": {"min": 4.5}}
    build(str(tmp_path / "d"), {"/v/a.mp4": spans}, rules)
    found = {c.column: (c.alone, c.last, c.last_unscored, c.missing) for c in advise(tmp_path / "d").costs}
    assert found == {"motion.speed": (3, 2, 1, 0), "aesthetics.mean": (2, 1, 0, 1)}


def test_clips_whose_dear_score_was_skipped_count_with_the_rate_of_the_others(tmp_path: Path) -> None:
    """20 slow clips have no aesthetics, since motion rejects them. 15 of the 20 others pass. With the slow
    ones 15 + 20 * 15 / 20 = 30 of 40 clips are kept."""
    spans = [Span(5.0 * k, 5.0 * k + 5, 0.05, {"aesthetics.mean": None}) for k in range(20)]
    for k in range(20):
        spans.append(Span(100 + 5.0 * k, 105 + 5.0 * k, 0.5, {"aesthetics.mean": 5.0 if k < 15 else 4.0}))
    rules = {"motion.speed": {"min": 0.1}, "aesthetics.mean": {"min": 4.5}}
    dataset = build(str(tmp_path / "d"), {"/v/a.mp4": spans}, rules)
    clips = read_clips(dataset, Captions.read(dataset, its_config(dataset)))
    judged = judging(clips, {c: Rule(**r) for c, r in rules.items()}, ["aesthetics.mean"])
    found = propose(judged, 0.75, np.ones(40))
    assert found.now == 15 / 40
    assert (found.kept, found.kept_clips, found.unscored) == (0.75, 15, 20)
    assert list(found.rules) == ["motion.speed"]
    told = advise(tmp_path / "d", keep="75%")
    assert "75.0 %, 15 clips and a part of 20 that a build has yet to score" in str(told)


def test_what_no_rule_rejects_stays_rejected(tmp_path: Path) -> None:
    dataset = build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 5, 0.05), Span(5, 10), Span(10, 15)]})
    rows = list(dataset.verdicts())
    rows[2] |= {"status": "rejected", "reason": "source.hdr"}
    dataset.write_table("verdicts.parquet", rows, VERDICTS)
    found = advise(tmp_path / "d", keep=1.0)
    assert found.passing == 1
    assert found.share is not None
    assert (found.share.kept_clips, found.share.is_reached) == (2, False)


def ten(place: Path, rules: dict[str, dict[str, float]]) -> Dataset:
    """Ten clips of 5 s, of speeds 0.1 to 1.0, in no order."""
    speeds = [0.3, 1.0, 0.7, 0.1, 0.5, 0.9, 0.2, 0.6, 0.4, 0.8]
    spans = [Span(5.0 * k, 5.0 * k + 5, speed) for k, speed in enumerate(speeds)]
    return build(str(place / "d"), {"/v/a.mp4": spans}, rules)


@pytest.mark.parametrize(
    ("keep", "above", "most"),
    [
        ("70%", 0.3, 0.4),
        (0.4, 0.6, 0.7),
        ("20%", 0.8, 0.9),
        ("10%", 0.9, 1.0),
        ("100%", -1, 0.1),
        (0.65, 0.3, 0.4),
    ],
)
def test_a_lower_bound_for_a_share_is_found_by_sorting(
    tmp_path: Path, keep: str | float, above: float, most: float
) -> None:
    """To keep 7 of 10, the bound lies above the third score and at most at the fourth."""
    ten(tmp_path, {"motion.speed": {"min": 0.65}})
    found = advise(tmp_path / "d", keep=keep)
    assert found.share is not None
    assert found.share.now == 0.4
    rule = found.share.rules.get("motion.speed", Rule(min=0.65))
    assert rule.min is not None
    assert above < rule.min <= most
    assert found.share.kept_clips == math.ceil(10 * share_of(keep))


def test_an_upper_bound_is_found_as_well(tmp_path: Path) -> None:
    ten(tmp_path, {"motion.speed": {"max": 0.35}})
    found = advise(tmp_path / "d", keep="60%")
    assert found.share is not None
    rule = found.share.rules["motion.speed"]
    assert rule.min is None
    assert rule.max is not None
    assert 0.6 <= rule.max < 0.7
    assert found.settings == [f"rules.motion.speed.max={rule.max!r}"]


def test_seconds_and_clips_are_shares_of_their_own(tmp_path: Path) -> None:
    """A clip of 9 s and nine of 1 s: half of the seconds is one clip, half of the clips are five."""
    spans = [Span(0, 9, 1.0)] + [Span(8.0 + k, 9.0 + k, k / 10) for k in range(1, 10)]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans})
    seconds = advise(tmp_path / "d", keep="50%", by="seconds").share
    clips = advise(tmp_path / "d", keep="50%").share
    assert seconds is not None
    assert clips is not None
    assert (seconds.kept_clips, clips.kept_clips) == (1, 5)
    assert (seconds.kept, clips.kept) == (0.5, 0.5)


def test_what_training_can_take_is_not_moved(tmp_path: Path) -> None:
    rules = {"duration.seconds": {"min": 3.0}, "motion.speed": {"min": 0.1}}
    spans = [
        Span(0, 2, 0.5, {"duration.seconds": 2.0}),
        Span(2, 7, 0.05, {"duration.seconds": 5.0}),
        Span(7, 12, 0.5, {"duration.seconds": 5.0}),
    ]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans}, rules)
    found = advise(tmp_path / "d", keep="90%")
    assert found.share is not None
    assert found.share.held == ("duration.seconds",)
    assert (found.share.kept_clips, found.share.is_reached) == (2, False)
    assert list(found.share.rules) == ["motion.speed"]
    assert "more cannot be kept" in str(found)


@pytest.mark.parametrize("seed", range(6))
def test_the_rules_that_are_proposed_keep_what_they_promise(tmp_path: Path, seed: int) -> None:
    """The settings, given back to the dataset's own configuration, accept as many clips as was said; of a few
    hundred scores with equal ones and missing ones, in any place."""
    rng = np.random.default_rng(seed)
    rules = {
        "motion.speed": {"min": 0.2, "max": 0.8},
        "quality.brightness": {"max": 0.5},
        "aesthetics.mean": {"min": 4.5},
    }
    spans = []
    for k in range(200):
        scores = {
            "quality.brightness": round(float(rng.random()), 1),
            "aesthetics.mean": None if rng.random() < 0.05 else float(rng.normal(5, 1)),
        }
        spans.append(Span(5.0 * k, 5.0 * k + 5, round(float(rng.random()), 2), scores))
    config_rules = {
        "filters": {"motion": {}, "quality": {}, "aesthetics": {}},
        "rules": rules,
    }
    dataset = build_of(tmp_path, spans, config_rules)
    before = sum(row["status"] == "accepted" for row in dataset.verdicts())
    kept = []
    for keep in sorted((0.05, 0.3, before / 200, 0.6, 0.9)):
        found = advise(tmp_path / "d", keep=keep)
        assert found.share is not None
        config = its_config(dataset_at(tmp_path / "d"), found.settings)
        rows = verdict_rows(dataset, config.verdict_rules, (), Captions.read(dataset, config))
        assert sum(row["status"] == "accepted" for row in rows) == found.share.kept_clips
        assert found.share.is_reached
        assert found.share.kept >= keep - 1e-9
        certain, possible = found.share.kept_clips, found.share.kept_clips + found.share.unscored
        assert certain <= 200 * found.share.kept + 1e-6 <= possible + 1e-6
        assert 200 * found.share.kept < 200 * keep + 20  # some clips have equal scores
        kept.append(found.share.kept_clips)
    assert kept == sorted(kept)
    assert kept[0] < before < kept[-1]


def build_of(place: Path, spans: list[Span], values: dict[str, object]) -> Dataset:
    """As `build`, with filters of its own."""
    dataset = build(str(place / "d"), {"/v/a.mp4": spans})
    config = validated(values)
    manifest = dataset.manifest() | {"config": config.model_dump(mode="json"), "config_hash": config.hash()}
    dataset.write("dataset.json", json.dumps(manifest).encode())
    write_verdicts(dataset, config.verdict_rules, ())
    return dataset


def test_more_is_kept_by_looser_rules_and_never_less() -> None:
    ranked = np.sort(np.random.default_rng(3).normal(size=500))
    rule = Rule(min=-0.5, max=0.7)
    kept = [
        int(((ranked >= (m.min or 0.0)) & (ranked <= (m.max or 0.0))).sum())
        for m in (moved(rule, ranked, t) for t in np.linspace(-0.3, 1, 60))
    ]
    assert kept == sorted(kept)
    assert kept[-1] == 500
    assert moved(rule, ranked, 0.0) == rule


def test_equal_scores_stay_together_and_a_tighter_bound_is_never_looser() -> None:
    """Of [0.1 0.1 0.1 0.5 0.5 0.5 0.9] at least 0.45 keeps 4. A clip is not parted from its equals."""
    ranked = np.array([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.9])
    rule = Rule(min=0.45)
    assert moved(rule, ranked, -0.3).min == 0.45
    tighter = moved(rule, ranked, -0.8).min
    assert tighter is not None
    assert 0.5 < tighter <= 0.9
    looser = moved(rule, ranked, 0.5).min
    assert looser is not None
    assert looser <= 0.1


def test_numbers_are_short_and_between() -> None:
    assert short_number(0.3, 0.4) == 0.4
    assert short_number(0.0213, 0.0279) == 0.025
    assert short_number(-0.4, -0.3) in (-0.35, -0.3)
    assert short_number(-math.inf, 0.0) == 0.0
    assert -0.53 <= short_number(-math.inf, -0.520005) <= -0.520005
    assert 0.11 <= short_number(-math.inf, 0.1234) <= 0.1234
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 6))
        assert low < short_number(low, high) <= high
        assert short_number(-math.inf, high) <= high
    high = 1.0 + 2**-52
    assert short_number(1.0, high) == high


@pytest.mark.parametrize(
    ("keep", "share"), [("30%", 0.3), ("0.3", 0.3), (0.3, 0.3), ("100 %", 1.0), ("1", 1.0)]
)
def test_shares_are_read(keep: str | float, share: float) -> None:
    assert share_of(keep) == pytest.approx(share)


@pytest.mark.parametrize("keep", ["30", "0", "-1%", "101%", "most", "nan", ""])
def test_what_is_no_share_is_refused(keep: str) -> None:
    with pytest.raises(ValueError, match=r"--keep .*30% or 0\.3"):
        share_of(keep)


def test_rules_without_clips_and_datasets_without_clips_are_no_fault(tmp_path: Path) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": []})
    found = advise(tmp_path / "d", keep="30%")
    assert (found.clips, found.costs) == (0, [])
    dataset = Dataset(str(tmp_path / "d"))
    clips = read_clips(dataset, Captions.read(dataset, its_config(dataset)))
    judged = judging(clips, {"motion.speed": Rule(min=0.1)})
    assert costs(judged) == []
    assert propose(judged, 0.5, np.ones(0)).rules == {}
