"""What each rule rejects alone, and what no other rule rejects. Clips are columns here, as in the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from curation.report.read import STATUSES, Clips
from curation.store.schema import CAPTION_COLUMNS
from curation.verdicts.judge import applicable
from filters.rules import Rule


@dataclass(frozen=True)
class Judging:
    """Which clip breaks which rule. All arrays have one entry for each clip."""

    clips: Clips
    rules: Mapping[str, Rule]
    breaks: dict[str, np.ndarray]  # scored, and outside of the bounds
    missing: dict[str, np.ndarray]  # the rule applies, and there is no score: rejected as not scored
    skipped: dict[str, np.ndarray]  # those of `missing` whose model-backed score a build may still compute
    refused: np.ndarray  # rejected for something that is no rule on a column, and no rule can change

    @property
    def passes(self) -> np.ndarray:
        """The clips that all rules accept. Some may have failed later, such as when they were cut."""
        return ~np.logical_or.reduce([self.refused, *self.breaks.values(), *self.missing.values()])


@dataclass(frozen=True)
class Cost:
    """What one rule rejects."""

    column: str
    scored: int
    alone: int  # clips that the rule rejects, whatever the others do
    alone_s: float
    last: int  # clips that the rule rejects and no other rule does
    last_s: float
    last_unscored: int  # those of `last` that lack a model-backed score, so another rule may reject them yet
    missing: int  # clips without a score, which are rejected as not scored


def judging(clips: Clips, rules: Mapping[str, Rule], by_model: Collection[str] = ()) -> Judging:
    """Apply the rules to all clips. A rule without any score to judge is left out.

    by_model: the columns of model-backed filters, which a build skips for clips that a cheaper rule rejects.
    """
    known = {c: r for c, r in rules.items() if c in clips.scores and np.isfinite(clips.scores[c]).any()}
    breaks = {column: outside(clips.scores[column], rule) for column, rule in known.items()}
    missing = {column: _missing(clips, column, rule) for column, rule in known.items()}
    skipped = {column: without for column, without in missing.items() if column in by_model}
    columns = {*clips.scores, *rules}
    others = [i for i, reason in enumerate(clips.reasons) if reason not in columns]
    refused = (clips.status == STATUSES.index("rejected")) & np.isin(clips.reason, others)
    return Judging(clips, known, breaks, missing, skipped, refused)


def outside(values: np.ndarray, rule: Rule) -> np.ndarray:
    """The clips whose score breaks the rule. A missing score (NaN) does not."""
    found = np.zeros(len(values), dtype=bool)
    with np.errstate(invalid="ignore"):
        if rule.min is not None:
            found |= values < rule.min
        if rule.max is not None:
            found |= values > rule.max
    return found


def _missing(clips: Clips, column: str, rule: Rule) -> np.ndarray:
    if column in CAPTION_COLUMNS:  # a rule on captions applies to checked captions alone
        return np.zeros(len(clips), dtype=bool)
    unscored = np.isnan(clips.scores[column])
    for is_image in (True, False):
        if not applicable({column: rule}, is_image=is_image):
            unscored &= clips.is_image != is_image
    return unscored


def costs(judged: Judging) -> list[Cost]:
    """One row for each rule, in the order in which rules are tried."""
    seconds = judged.clips.seconds
    broken = sum((b.astype(int) for b in judged.breaks.values()), np.zeros(len(seconds), dtype=int))
    skipped = np.logical_or.reduce([np.zeros(len(seconds), dtype=bool), *judged.skipped.values()])
    others = [m for c, m in judged.missing.items() if c not in judged.skipped]
    rejected = np.logical_or.reduce([judged.refused, *others])
    found = []
    for column, breaks in judged.breaks.items():
        last = breaks & (broken == 1) & ~rejected
        found.append(
            Cost(
                column,
                int(np.isfinite(judged.clips.scores[column]).sum()),
                int(breaks.sum()),
                float(seconds[breaks].sum()),
                int(last.sum()),
                float(seconds[last].sum()),
                int((last & skipped).sum()),
                int(judged.missing[column].sum()),
            )
        )
    return found
