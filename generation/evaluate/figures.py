"""The result of a part of an evaluation: plain numbers by name, and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Figures = dict[str, Any]  # numbers, None, or figures again
Say = Callable[[str], None]


@dataclass
class Found:
    """Figures, and notes about them. A figure without meaning is None."""

    figures: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mean(values: Tensor) -> float | None:
    """The mean of (N,), in float64. None if N is 0."""
    return float(values.double().mean()) if len(values) else None


def ratio(a: float, b: float) -> float | None:
    """a / b. None if b is not above 0."""
    return a / b if b > 0 else None
