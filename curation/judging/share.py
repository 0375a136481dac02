"""Cut-offs for a wanted share of the clips or seconds: all bounds are loosened or tightened together.

A bound is moved by ranks, not by values, so that columns of any scale move alike. To loosen by t (0 to 1) is
to reject the part 1 - t of what the bound rejects alone now: its clips that are nearest to the cut-off come
in first. To tighten by t is to reject the part t of what the bound lets pass now. The same t goes for all.
Clips are whole, so the bounds take their next clip one after the other.

A build skips model-backed scores of clips that a cheaper rule rejects. Where looser rules let such a clip in,
it counts with the part of the scored clips that the rule on the missing score accepts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curation.judging.costs import Judging, outside
from filters.rules import Rule

# What training can take, and what a caption says: wishes for more or fewer clips do not change these.
HELD = ("duration.", "resolution.", "caption.")
_STEPS = 40  # of the search for t: exact to 1e-12


@dataclass(frozen=True)
class Share:
    """Cut-offs that keep a wanted share."""

    wanted: float
    now: float  # the share that the rules keep now
    kept: float  # the share that the proposed rules keep; an estimate if there are clips without a score
    kept_clips: int  # clips that the proposed rules accept
    unscored: int  # clips that they accept but for a model-backed score that a build has skipped
    rules: dict[str, Rule]  # the rules that change, with their proposed bounds
    t: float  # how far: above 0 loosened, below 0 tightened
    held: tuple[str, ...]  # rules that were not moved

    @property
    def is_reached(self) -> bool:
        return self.kept >= self.wanted - 1e-9


def propose(judged: Judging, wanted: float, weights: np.ndarray) -> Share:
    """The tightest cut-offs that keep at least the share `wanted` of the weights (ones, or seconds).

    If even without any movable bound less is kept, all are moved to where they reject nothing.
    """
    total = float(weights.sum()) or 1.0
    movable = {c: r for c, r in judged.rules.items() if not c.startswith(HELD)}
    scores = judged.clips.scores
    ranked = {c: _sorted(scores[c]) for c in movable}
    others = [m for c, m in judged.missing.items() if c not in judged.skipped]
    held = [b for c, b in judged.breaks.items() if c not in movable]
    fixed = np.logical_or.reduce([judged.refused, *others, *held])

    def moved_rules(t: float) -> dict[str, Rule]:
        return {c: moved(r, ranked[c], t, k / len(movable)) for k, (c, r) in enumerate(movable.items())}

    def chances(rules: Mapping[str, Rule]) -> np.ndarray:
        """How likely each clip is accepted: 0, 1, or in between where a score was skipped."""
        broken = np.logical_or.reduce([fixed, *(outside(scores[c], rule) for c, rule in rules.items())])
        chance = np.where(broken, 0.0, 1.0)
        for column, without in judged.skipped.items():
            breaking = outside(scores[column], rules.get(column, judged.rules[column]))
            chance[without] *= 1 - breaking.sum() / np.isfinite(scores[column]).sum()
        return chance

    low, high = -1.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        enough = float(weights @ chances(moved_rules(middle))) >= wanted * total - 1e-9
        low, high = (low, middle) if enough else (middle, high)
    rules = moved_rules(high)
    chance = chances(rules)
    skipped = np.logical_or.reduce([np.zeros(len(weights), dtype=bool), *judged.skipped.values()])
    return Share(
        wanted,
        float(weights[judged.passes].sum()) / total,
        float(weights @ chance) / total,
        int(((chance > 0) & ~skipped).sum()),
        int(((chance > 0) & skipped).sum()),
        {c: rule for c, rule in rules.items() if rule != movable[c]},
        high,
        tuple(c for c in judged.rules if c not in movable),
    )


def _sorted(values: np.ndarray) -> np.ndarray:
    return np.sort(values[np.isfinite(values)])


def moved(rule: Rule, ranked: np.ndarray, t: float, ahead: float = 0.0) -> Rule:
    """The rule with its bounds moved by t. ranked: the scores in rising order. ahead: of a clip, 0 to 1: by
    how much this rule is ahead of others in tightening, and behind them in loosening."""
    low = None if rule.min is None else _moved(rule.min, ranked, t, ahead)
    high = None if rule.max is None else 0.0 - _moved(-rule.max, -ranked[::-1], t, ahead)
    if low is not None and high is not None and low > high:  # nothing passes between them
        low = high = (low + high) / 2
    return dataclasses.replace(rule, min=low, max=high)


def _moved(bound: float, ranked: np.ndarray, t: float, ahead: float) -> float:
    """A lower bound moved by t, between two neighbouring scores, as a number of few digits."""
    n = len(ranked)
    rejected = int(np.searchsorted(ranked, bound, side="left"))
    wanted = rejected * (1 - t) if t >= 0 else rejected + (n - rejected) * -t
    target = min(math.floor(wanted + ahead), n - 1)
    if target == rejected:
        return bound
    value = float(ranked[target])  # the first score that passes
    first = int(np.searchsorted(ranked, value, side="left"))
    new = short_number(float(ranked[first - 1]) if first else -math.inf, value)
    return new if t >= 0 else max(new, bound)  # equal scores just above the bound stay together


def short_number(above: float, most: float) -> float:
    """A number with few digits, above `above` and at most `most`; near the middle, if one is as short.

    above: -inf for any number that is not much smaller than `most`.
    """
    if math.isinf(above):
        step = 10.0 ** (math.floor(math.log10(abs(most))) - 1) if most else 1.0
        return min(most, float(f"{math.floor(most / step) * step:.12g}"))
    for digits in range(1, 18):
        for value in ((above + most) / 2, most):
            rounded = float(f"{value:.{digits}g}")
            if above < rounded <= most:
                return rounded
    return most
