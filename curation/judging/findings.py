"""What `reelmill advise` found, as counts and cut-offs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from curation.judging.costs import Cost
from curation.judging.fitted import Fitted
from curation.judging.share import Share
from filters.rules import Rule

By = Literal["clips", "seconds"]


def setting(column: str, bound: str, value: float) -> str:
    """A cut-off as `set` and `--set` take it."""
    return f"rules.{column}.{bound}={value!r}"


@dataclass(frozen=True)
class Labels:
    """The judgements of clips, by the number of the clip."""

    keep: dict[int, bool]
    conflicts: int = 0  # clips to which shots with both judgements belong; they are left out
    unknown: tuple[str, ...] = ()  # labelled names that the dataset does not have


@dataclass
class Findings:
    """What the rules cost, and other cut-offs."""

    clips: int
    seconds: float
    passing: int  # clips that all rules accept now
    passing_s: float
    rules: dict[str, Rule]
    costs: list[Cost]
    by: By = "clips"  # what the wanted share is of
    share: Share | None = None  # of keep
    labels: Labels | None = None
    fitted: list[Fitted] = field(default_factory=list)  # of labels
    page: str = ""  # the address of the contact sheet

    @property
    def settings(self) -> list[str]:
        """The cut-offs for the wanted share, as `set` and `--set` take them."""
        changed = self.share.rules if self.share else {}
        return [
            setting(column, bound, getattr(rule, bound))
            for column, rule in changed.items()
            for bound in ("min", "max")
            if getattr(rule, bound) != getattr(self.rules[column], bound)
        ]

    @property
    def clear(self) -> list[Fitted]:
        """The fitted bounds whose help is no chance, the best first."""
        return sorted((f for f in self.fitted if f.is_clear), key=lambda f: -f.held_out)
