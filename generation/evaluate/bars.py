"""Bars: limits that a figure must reach and its controls must miss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Bar(BaseModel):
    """Limits of a figure, which is named by its path in the figures, such as stage1.seen.colour."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    figure: str
    min: float | None = None
    max: float | None = None
    fails: tuple[str, ...] = ()  # paths of controls, and all of them must miss this bar

    @model_validator(mode="after")
    def _bounded(self) -> Bar:
        if self.min is None and self.max is None:
            raise ValueError(f"{self.figure} has no min and no max; write one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self.figure}: no number is {self.told}; write a min below the max")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value is within the limits."""
        above = self.min is None or value >= self.min
        return above and (self.max is None or value <= self.max)

    @property
    def told(self) -> str:
        """The limits in words."""
        parts = [f"at least {self.min:g}"] if self.min is not None else []
        return " and ".join([*parts, *([f"at most {self.max:g}"] if self.max is not None else [])])

    def shown(self, value: float) -> str:
        """The value with three decimals, or with all decimals if rounding would change the verdict."""
        text = f"{value:.3f}"
        return text if self.holds(float(text)) == self.holds(value) else str(value)


@dataclass(frozen=True)
class Verdict:
    """A bar and the measured value. value: None means no such figure. void: why it does not count."""

    bar: Bar
    value: float | None
    controls: dict[str, float | None]
    void: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure exists, counts and meets the bar, and all controls exist and miss the bar."""
        if self.value is None or self.void or not self.bar.holds(self.value):
            return False
        return all(value is not None and not self.bar.holds(value) for value in self.controls.values())

    @property
    def told(self) -> str:
        """The verdict in words. It begins with "passed: " or "missed: "."""
        if self.value is None:
            return f"missed: {self.bar.figure} was not measured"
        line = f"{self.bar.figure} {self.bar.shown(self.value)}, {self.bar.told}"
        if not self.bar.holds(self.value):
            return f"missed: {line}"
        if self.void:
            return f"missed: {line}, but this figure does not count: {self.void}"
        missing = [path for path, value in self.controls.items() if value is None]
        if missing:
            return f"missed: {line}, but its controls were not measured: {', '.join(missing)}"
        there = {path: value for path, value in self.controls.items() if value is not None}
        told = {path: f"{path} {self.bar.shown(value)}" for path, value in there.items()}
        alike = [told[path] for path, value in there.items() if self.bar.holds(value)]
        if alike:
            return f"missed: {line}, but controls that must miss the bar meet it: {', '.join(alike)}"
        unlike = f"; the controls miss the bar, as they must: {', '.join(told.values())}" if told else ""
        return f"passed: {line}{unlike}"


def figure(figures: dict[str, Any], path: str) -> float | None:
    """The number at a path of keys, such as stage1.seen.colour. None if it is missing or NaN."""
    found: Any = figures
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    number = float(found) if isinstance(found, int | float) else math.nan
    return None if math.isnan(number) else number


def judge_bars(
    figures: dict[str, Any], bars: Sequence[Bar], void: Callable[[str], str] = lambda path: ""
) -> list[Verdict]:
    """The verdicts on bars. void: returns why the figure at a path does not count; empty if it counts."""
    return [
        Verdict(
            bar,
            figure(figures, bar.figure),
            {path: figure(figures, path) for path in bar.fails},
            void(bar.figure),
        )
        for bar in bars
    ]
