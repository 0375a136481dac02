"""What `reelmill judge` found, as counts and lists, and as plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from curation.judging.agreement import Agreement, wilson
from curation.judging.changes import Changes
from curation.judging.shots import LeftOut, Outcome


@dataclass(frozen=True)
class Seconds:
    """Seconds of accepted clips, by what the curator says of them."""

    keep: float
    reject: float
    unlabelled: float


@dataclass(frozen=True)
class Result:
    """What a dataset's verdicts are worth beside a curator's labels."""

    sources: int  # labelled sources that the dataset has
    unknown: list[str]  # labelled names that it does not have
    left_out: LeftOut
    min_seconds: float
    agreement: Agreement
    seconds: Seconds
    outcomes: list[Outcome]
    changes: Changes

    @property
    def by_reason(self) -> dict[str, tuple[int, int]]:
        """The curator's reason to reject -> (shots, of these accepted). A shot counts under each reason."""
        found: dict[str, tuple[int, int]] = {}
        for outcome in self.outcomes:
            for reason in outcome.reasons if not outcome.keep else ():
                shots, accepted = found.get(reason, (0, 0))
                found[reason] = shots + 1, accepted + outcome.accepted
        return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))

    @property
    def by_rule(self) -> dict[str, tuple[int, int]]:
        """What rejected a shot -> (shots, of these to keep)."""
        found: dict[str, tuple[int, int]] = {}
        for outcome in self.outcomes:
            if outcome.rule is not None:
                shots, kept = found.get(outcome.rule, (0, 0))
                found[outcome.rule] = shots + 1, kept + outcome.keep
        return dict(sorted(found.items(), key=lambda item: (-item[1][0], item[0])))

    @property
    def false_accepts(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.accepted and not o.keep]

    @property
    def false_rejects(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.keep and not o.accepted]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for JSON."""
        plain = dataclasses.asdict(self)
        a = self.agreement
        plain["agreement"] |= {
            "labels": a.labels,
            "share": a.share,
            "share_95": wilson(a.both_keep + a.both_reject, a.labels) if a.labels else None,
            "kappa": a.kappa,
            "precision": a.precision,
            "recall": a.recall,
        }
        plain["by_reason"] = {r: {"shots": n, "accepted": k} for r, (n, k) in self.by_reason.items()}
        plain["by_rule"] = {r: {"shots": n, "to_keep": k} for r, (n, k) in self.by_rule.items()}
        return plain
