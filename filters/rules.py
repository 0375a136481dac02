"""Rules are data. A verdict is a pure function of scores and rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from filters.base import IMAGE_AND_VIDEO, Media


@dataclass(frozen=True)
class Rule:
    """One or two inclusive bounds on one score column. Raises `ValueError` for impossible bounds.

    applies_to: a still image has no motion, so a bound on motion does not apply to images.
    """

    min: float | None = None
    max: float | None = None
    applies_to: frozenset[Media] = IMAGE_AND_VIDEO

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("a rule needs min, max or both")
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and math.isnan(bound):
                raise ValueError(f"{name} is not a number")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing could pass")

    def allows(self, value: float) -> bool:
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


def between(lo: float, hi: float) -> Rule:
    return Rule(lo, hi)


def at_least(lo: float) -> Rule:
    return Rule(min=lo)


def at_most(hi: float) -> Rule:
    return Rule(max=hi)


@dataclass(frozen=True)
class Verdict:
    """The decision on one clip.

    `reason` is the column of the first broken rule, or the stage that failed. `value` is the column's score.
    """

    status: Literal["accepted", "rejected", "failed"]
    reason: str | None = None
    value: float | None = None
    message: str | None = None


ACCEPTED = Verdict("accepted")


def verdict(scores: Mapping[str, float | None], rules: Mapping[str, Rule]) -> Verdict:
    """Judge one clip: the first broken rule, in order, rejects the clip.

    A missing or NaN score rejects the clip, too. The caller leaves out rules on measures that do not apply
    to the clip (see `curation.verdicts.judge.applicable`).
    """
    for column, rule in rules.items():
        value = scores.get(column)
        if value is None or math.isnan(value):
            return Verdict("rejected", column, None, "not scored")
        if not rule.allows(value):
            if rule.min is not None and value < rule.min:
                message = f"{column} {value:.4g} is below {rule.min:g}"
            else:
                message = f"{column} {value:.4g} is above {rule.max:g}"
            return Verdict("rejected", column, value, message)
    return ACCEPTED
