"""The cut-off of one column that agrees best with labels of clips, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curation.judging.agreement import wilson
from curation.judging.share import short_number

LEAST_LABELS = 10
_RESAMPLES = 500
_FOLDS = 10
_CHANCE = 0.05
_NOT_REJECTING = -math.inf


@dataclass(frozen=True)
class Fitted:
    """One bound on one column.

    agreement: the part of the labels that the bound alone gets right. held_out: the same on labels that did
    not choose the bound (tenths are left out in turn). baseline: the part that is right without any bound,
    if the more frequent judgement is always said. low, high: 90 % of the bounds from labels that are drawn
    again lie here.
    """

    column: str
    bound: str  # min, max
    value: float
    labels: int
    agreement: float
    agreement_95: tuple[float, float]
    held_out: float
    baseline: float
    low: float
    high: float
    unsure: float  # the part of the draws in which no bound was better than none
    now: float | None  # the bound of the rule today
    now_agreement: float | None

    @property
    def is_clear(self) -> bool:
        """Does the bound help on labels that did not choose it, more than chance does in one of 20 cases?"""
        return by_chance(round(self.held_out * self.labels), self.labels, self.baseline) < _CHANCE


def by_chance(right: int, of: int, p: float) -> float:
    """How likely at least `right` of `of` labels are right if each one is with probability p."""
    if right <= 0 or p >= 1:
        return 1.0

    def exactly(k: int) -> float:
        ways = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        return math.exp(ways + k * math.log(p) + (of - k) * math.log1p(-p))

    return math.fsum(map(exactly, range(right, of + 1)))


def fit(
    column: str, bound: str, values: np.ndarray, keep: np.ndarray, now: float | None = None
) -> Fitted | None:
    """The best bound of a column for labelled clips. None: fewer than 10 labels, or only one judgement.

    values: scores without NaN. keep: the judgements. Everything that is drawn is the same in each call.
    """
    n = len(values)
    if n < LEAST_LABELS or keep.all() or not keep.any():
        return None
    sign = 1.0 if bound == "min" else -1.0
    scores = sign * values
    cut = best_cut(scores, keep)
    if math.isinf(cut):
        return None
    right = int(((scores >= cut) == keep).sum())
    rng = np.random.default_rng(0)
    drawn = [best_cut(scores[i], keep[i]) for i in (rng.integers(0, n, n) for _ in range(_RESAMPLES))]
    found = np.array([d for d in drawn if not math.isinf(d)])
    ends = np.percentile(found, [5, 95]) if len(found) else np.array([cut, cut])
    low, high = sorted(sign * ends)
    baseline = max(float(keep.mean()), 1 - float(keep.mean()))
    rightly = None if now is None else float(((scores >= sign * now) == keep).mean())
    return Fitted(
        column,
        bound,
        sign * cut + 0.0,  # no negative zero
        n,
        right / n,
        wilson(right, n),
        _held_out(scores, keep),
        baseline,
        float(low),
        float(high),
        1 - len(found) / _RESAMPLES,
        now,
        rightly,
    )


def best_cut(scores: np.ndarray, keep: np.ndarray) -> float:
    """The lower bound that gets most labels right; the loosest of equally good ones. -inf: none is better."""
    order = np.argsort(scores, kind="stable")
    scores, keep = scores[order], keep[order]
    # right[k]: the first k are rejected, the others kept.
    right = np.concatenate([[0], np.cumsum(~keep)]) + keep.sum() - np.concatenate([[0], np.cumsum(keep)])
    between = np.concatenate([[True], scores[1:] > scores[:-1]])  # a bound cannot part equal scores
    places = np.flatnonzero(between)
    best = int(places[np.argmax(right[places])])
    return _NOT_REJECTING if best == 0 else short_number(float(scores[best - 1]), float(scores[best]))


def _held_out(scores: np.ndarray, keep: np.ndarray) -> float:
    """The part of the labels that is right under a bound which the other tenths chose."""
    right = 0
    for fold in _folds(len(scores)):
        cut = best_cut(scores[~fold], keep[~fold])
        right += int(((scores[fold] >= cut) == keep[fold]).sum())
    return right / len(scores)


def _folds(n: int) -> Iterator[np.ndarray]:
    tenth = np.random.default_rng(1).permutation(n) % min(_FOLDS, n)
    yield from (tenth == k for k in range(min(_FOLDS, n)))
