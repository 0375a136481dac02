"""Four counts of a decision beside a curator's, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

_NORMAL = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Agreement:
    """How often the curator and the dataset say keep, reject, or one of each."""

    both_keep: int
    false_accepts: int  # the curator rejects, and the dataset accepts
    false_rejects: int  # the curator keeps, and the dataset rejects
    both_reject: int

    @property
    def labels(self) -> int:
        return self.both_keep + self.false_accepts + self.false_rejects + self.both_reject

    @property
    def share(self) -> float | None:
        """The part of the labels on which both agree."""
        return _ratio(self.both_keep + self.both_reject, self.labels)

    @property
    def precision(self) -> float | None:
        """Of what the dataset accepts, the part that the curator keeps."""
        return _ratio(self.both_keep, self.both_keep + self.false_accepts)

    @property
    def recall(self) -> float | None:
        """Of what the curator keeps, the part that the dataset accepts."""
        return _ratio(self.both_keep, self.both_keep + self.false_rejects)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: the agreement beyond chance. None if both always say the same, or without labels."""
        n = self.labels
        if n == 0:
            return None
        kept, accepted = self.both_keep + self.false_rejects, self.both_keep + self.false_accepts
        # In whole numbers, times n squared, so that rounding cannot hide an agreement by chance of 1.
        by_chance = kept * accepted + (n - kept) * (n - accepted)
        agreed = n * (self.both_keep + self.both_reject)
        return None if by_chance == n * n else (agreed - by_chance) / (n * n - by_chance)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def wilson(right: int, of: int) -> tuple[float, float]:
    """Wilson's interval: where a share lies with 95 % confidence if `right` of `of` labels showed it."""
    if of == 0:
        return 0.0, 1.0
    p, z2 = right / of, _NORMAL**2
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _NORMAL * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)
