"""Verdicts over a dataset: the same as a few plain lines say, for any scores, rules and failures."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.schema import FAILURES, SCORE_COLUMNS
from curation.verdicts.judge import (
    applicable,
    judge,
    spared,
    verdict_rows,
    write_verdicts,
)
from filters import SCORERS
from filters.rules import Rule

Row = dict[str, Any]
EVERYTHING = Config.model_validate({"filters": {name: {} for name in SCORERS}})
KEY = "cut-1"
SOME = ("duration.seconds", "motion.speed", "quality.sharpness", "text.area", "aesthetics.mean")


def clip(clip_id: str, fps: float | None = 25.0, **scores: float | None) -> Row:
    named = {c.replace("_", ".", 1): v for c, v in scores.items()}
    return {
        "clip_id": clip_id,
        "source_id": "s",
        "start_s": 0.0,
        "fps": fps,
        **dict.fromkeys(SCORE_COLUMNS),
        **named,
    }


def failure(clip_id: str, key: str = KEY, stage: str = "cut") -> Row:
    return {"clip_id": clip_id, "stage": stage, "error": "BadEncode", "message": "so and so", "key": key}


def ordered(rules: dict[str, Rule]) -> dict[str, Rule]:
    return EVERYTHING.model_copy(update={"rules": rules}).verdict_rules


def judged(
    clips: list[Row], rules: dict[str, Rule], failures: list[Row] | None = None, key: str = KEY
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(folder)
        dataset.commit_part("p", [{"source_id": "s", "uri": "u"}], clips)
        if failures:
            dataset.write_table("failures/f.parquet", failures, FAILURES)
        rules = ordered(rules)
        accepted = write_verdicts(dataset, rules, {key})
        rows = list(dataset.verdicts())
        assert rows == list(verdict_rows(dataset, rules, {key}))
        assert [c["clip_id"] for c in accepted] == [r["clip_id"] for r in rows if r["status"] == "accepted"]
        return rows


def plain_verdict(scores: Row, rules: dict[str, Rule], failed: bool) -> tuple[str, str | None, float | None]:
    """What the design says, in plain words."""
    image = scores["fps"] is None
    for name, scorer in SCORERS.items():
        if image and "image" not in scorer.applies_to:
            continue
        for column in (c.name for c in scorer.columns):
            assert column.startswith(f"{name}.")
            if column not in rules:
                continue
            value, low, high = scores[column], rules[column].min, rules[column].max
            if value is None or math.isnan(value):
                return "rejected", column, None
            if (low is not None and value < low) or (high is not None and value > high):
                return "rejected", column, value
    return ("failed", "cut", None) if failed else ("accepted", None, None)


numbers = st.none() | st.just(math.nan) | st.floats(-1, 1) | st.sampled_from([-0.5, 0.0, 0.5, math.inf])
bounds = st.tuples(st.none() | st.sampled_from([-0.5, 0.0]), st.none() | st.sampled_from([0.0, 0.5])).filter(
    lambda pair: pair != (None, None)
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.booleans(), st.lists(numbers, min_size=5, max_size=5)), max_size=12),
    st.permutations(SOME).flatmap(
        lambda columns: st.dictionaries(st.sampled_from(columns), bounds, max_size=len(columns))
    ),
    st.sets(st.integers(0, 11)),
)
def test_verdicts_are_what_the_design_says(
    scores: list[tuple[bool, list[float | None]]],
    pairs: dict[str, tuple[float | None, float | None]],
    bad: set[int],
) -> None:
    rules = {column: Rule(*pair) for column, pair in pairs.items()}
    clips = [
        {**clip(f"c{k:02d}", None if image else 25.0), **dict(zip(SOME, values, strict=True))}
        for k, (image, values) in enumerate(scores)
    ]
    rows = judged(clips, rules, [failure(f"c{k:02d}") for k in bad])
    assert [r["clip_id"] for r in rows] == [c["clip_id"] for c in clips]
    for k, (row, scored) in enumerate(zip(rows, clips, strict=True)):
        expected = plain_verdict(scored, rules, k in bad)
        assert (row["status"], row["reason"], row["value"]) == expected
        assert (row["message"] is None) == (row["status"] == "accepted")


def test_a_measure_that_does_not_apply_is_not_missing() -> None:
    rules = {"motion.speed": Rule(0.1), "duration.seconds": Rule(3), "aesthetics.mean": Rule(4)}
    still = clip("still", None, aesthetics_mean=5.0)
    video = clip("video", 25.0, aesthetics_mean=5.0, duration_seconds=4.0)
    of_still, of_video = judged([still, video], rules)
    assert of_still["status"] == "accepted"
    assert (of_video["status"], of_video["reason"], of_video["message"]) == (
        "rejected",
        "motion.speed",
        "not scored",
    )
    assert set(applicable(ordered(rules), is_image=True)) == {"aesthetics.mean"}
    assert set(applicable(ordered(rules), is_image=False)) == set(rules)


def test_a_missing_score_that_applies_to_images_rejects_them_too() -> None:
    (row,) = judged([clip("still", None)], {"aesthetics.mean": Rule(4)})
    assert (row["status"], row["message"]) == ("rejected", "not scored")


def test_the_message_names_the_bound_that_was_missed() -> None:
    rules = {"motion.speed": Rule(0.1, 0.6)}
    low, high, edge = judged(
        [clip("a", motion_speed=0.05), clip("b", motion_speed=0.7), clip("c", motion_speed=0.1)], rules
    )
    assert low["message"] == "motion.speed 0.05 is below 0.1"
    assert high["message"] == "motion.speed 0.7 is above 0.6"
    assert edge["status"] == "accepted"


def test_a_failure_fails_what_was_accepted_and_rejected_stays_rejected() -> None:
    rules = {"motion.speed": Rule(0.1)}
    clips = [clip("good", motion_speed=0.5), clip("slow", motion_speed=0.0), clip("fine", motion_speed=0.2)]
    good, slow, fine = judged(clips, rules, [failure("good", stage="caption"), failure("slow")])
    assert (good["status"], good["reason"], good["message"]) == ("failed", "caption", "BadEncode: so and so")
    assert good["value"] is None
    assert (slow["status"], slow["reason"]) == ("rejected", "motion.speed")
    assert fine["status"] == "accepted"


def test_a_failure_under_other_cut_settings_is_no_failure_now() -> None:
    clips, old = [clip("a", motion_speed=0.5)], [failure("a", key="cut-0")]
    assert judged(clips, {}, old)[0]["status"] == "accepted"
    assert judged(clips, {}, old, key="cut-0")[0]["status"] == "failed"


def test_the_order_of_the_cascade_decides_not_that_of_the_file() -> None:
    bad = clip("a", duration_seconds=1.0, motion_speed=9.0, aesthetics_mean=0.0)
    rules = {"aesthetics.mean": Rule(4), "motion.speed": Rule(None, 1), "duration.seconds": Rule(3)}
    assert list(ordered(rules)) == ["duration.seconds", "motion.speed", "aesthetics.mean"]
    assert judged([bad], rules)[0]["reason"] == "duration.seconds"
    assert judged([bad], dict(reversed(rules.items())))[0]["reason"] == "duration.seconds"


def test_uncommitted_clips_are_not_judged(tmp_path: Any) -> None:
    dataset = Dataset(str(tmp_path))
    dataset.commit_part("p", [{"source_id": "s", "uri": "u"}], [clip("a")])
    dataset.commit_part("q", [{"source_id": "t", "uri": "v"}], [clip("b")])
    dataset.remove("sources/q.parquet")
    (accepted,) = write_verdicts(dataset, {}, {KEY}, columns=["source_id"])
    assert (accepted["clip_id"], accepted["source_id"], accepted["motion.speed"]) == ("a", "s", None)
    assert write_verdicts(dataset, ordered({"motion.speed": Rule(0)}), {KEY}) == []
    assert [v["status"] for v in dataset.verdicts()] == ["rejected"]  # rewritten whole


@pytest.mark.parametrize(
    ("scored", "is_spared"),
    [
        ({"motion_speed": 0.5, "duration_seconds": 4.0}, False),
        ({"motion_speed": 0.0, "duration_seconds": 4.0}, True),
        ({"duration_seconds": 4.0}, True),  # a missing cheap score rejects already
    ],
)
def test_only_cheap_rules_spare_a_dear_score(scored: Row, is_spared: bool) -> None:
    rules = {"duration.seconds": Rule(3), "motion.speed": Rule(0.1), "text.area": Rule(None, 0.1)}
    rules = ordered(rules)
    cheap = EVERYTHING.columns_of(["duration", "motion"])
    assert spared(clip("a", **scored), rules, cheap, is_image=False) == is_spared
    assert (
        judge(clip("a", **scored), rules, None, is_image=False).status == "rejected"
    )  # as long as text is not scored
    assert not spared(clip("still", None), rules, cheap, is_image=True)  # they do not apply to it
