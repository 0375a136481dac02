"""Rules: which clips are rejected, the order of rules, and that looser bounds never reject more clips."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from filters.rules import ACCEPTED, Rule, at_least, at_most, between, verdict

COLUMNS = ["motion.speed", "text.area", "quality.sharpness", "borders.fraction"]
numbers = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
scores = st.dictionaries(st.sampled_from(COLUMNS), st.none() | st.floats())


@st.composite
def rule(draw: st.DrawFn) -> Rule:
    low, high = draw(st.none() | numbers), draw(st.none() | numbers)
    assume(low is not None or high is not None)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return Rule(low, high)


rules = st.dictionaries(st.sampled_from(COLUMNS), rule())


@given(scores, rules)
def test_accepted_exactly_when_every_rule_is_met(values: dict, bounds: dict) -> None:
    def met(column: str) -> bool:
        value = values.get(column)
        return value is not None and not math.isnan(value) and bounds[column].allows(value)

    judged = verdict(values, bounds)
    failed = [column for column in bounds if not met(column)]
    assert judged.status == ("rejected" if failed else "accepted")
    assert judged.reason == (failed[0] if failed else None)  # the first broken rule


@given(rule(), st.sampled_from([None, math.nan, "missing"]))
def test_a_missing_or_nan_score_rejects(bound: Rule, value: float | str | None) -> None:
    values = {} if value == "missing" else {"text.area": value}
    judged = verdict(values, {"text.area": bound})  # type: ignore[arg-type]
    assert (judged.status, judged.reason, judged.value) == ("rejected", "text.area", None)


@given(numbers, numbers)
def test_bounds_are_inclusive(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    for value in (low, high):
        assert verdict({"x": value}, {"x": between(low, high)}) == ACCEPTED
    assert verdict({"x": low}, {"x": at_least(low)}) == ACCEPTED
    assert verdict({"x": high}, {"x": at_most(high)}) == ACCEPTED


@given(finite)
def test_just_outside_a_bound_rejects(bound: float) -> None:
    below, above = math.nextafter(bound, -math.inf), math.nextafter(bound, math.inf)
    assert verdict({"x": below}, {"x": at_least(bound)}).status == "rejected"
    assert verdict({"x": above}, {"x": at_most(bound)}).status == "rejected"


@given(scores, rules, st.randoms(use_true_random=False))
def test_the_order_of_rules_changes_only_the_reason(values: dict, bounds: dict, random: object) -> None:
    order = list(bounds)
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = verdict(values, {column: bounds[column] for column in order})
    assert shuffled.status == verdict(values, bounds).status
    if shuffled.reason is not None:
        earlier = order[: order.index(shuffled.reason)]
        assert verdict(values, {column: bounds[column] for column in earlier}) == ACCEPTED


@given(scores, rules, st.data())
def test_loosening_a_bound_never_rejects_more(values: dict, bounds: dict, data: st.DataObject) -> None:
    def looser(old: Rule) -> Rule:
        low = None if old.min is None else data.draw(st.floats(max_value=old.min, allow_nan=False))
        high = None if old.max is None else data.draw(st.floats(min_value=old.max, allow_nan=False))
        if low is not None and high is not None and data.draw(st.booleans()):  # remove one bound
            return Rule(max=high) if data.draw(st.booleans()) else Rule(min=low)
        return Rule(low, high)

    loosened = {column: looser(old) for column, old in bounds.items()}
    if verdict(values, bounds) == ACCEPTED:
        assert verdict(values, loosened) == ACCEPTED
    for column, old in bounds.items():  # the same holds for each rule
        if verdict(values, {column: old}) == ACCEPTED:
            assert verdict(values, {column: loosened[column]}) == ACCEPTED


@given(st.lists(finite), finite, st.floats(min_value=0, allow_infinity=False, allow_nan=False))
def test_a_looser_bound_keeps_at_least_what_a_tighter_one_keeps(
    values: list[float], bound: float, more: float
) -> None:
    def kept(rule: Rule) -> set[int]:
        return {i for i, v in enumerate(values) if verdict({"x": v}, {"x": rule}) == ACCEPTED}

    assert kept(at_least(bound)) <= kept(at_least(bound - more))
    assert kept(at_most(bound)) <= kept(at_most(bound + more))


@given(scores)
def test_no_rules_accept_everything(values: dict) -> None:
    assert verdict(values, {}) == ACCEPTED


def test_the_verdict_names_column_and_value() -> None:
    bounds = {"motion.speed": between(0.003, 0.6), "text.area": at_most(0.02)}
    slow = verdict({"motion.speed": 0.001, "text.area": 0.5}, bounds)
    assert (slow.reason, slow.value) == ("motion.speed", 0.001)
    assert slow.message is not None
    assert "below 0.003" in slow.message
    wordy = verdict({"motion.speed": 0.1, "text.area": 0.5}, bounds)
    assert (wordy.reason, wordy.value) == ("text.area", 0.5)
    assert wordy.message is not None
    assert "above 0.02" in wordy.message


@pytest.mark.parametrize(("low", "high"), [(None, None), (2.0, 1.0), (math.nan, None), (None, math.nan)])
def test_impossible_rules_are_refused(low: float | None, high: float | None) -> None:
    with pytest.raises(ValueError):
        Rule(low, high)
