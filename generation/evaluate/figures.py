"""What every part of an evaluation returns: plain numbers by name, and notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Figures = dict[str, Any]  # numbers, None, or figures again
Say = Callable[[str], None]


@dataclass
class Found:
    """Figures, and what is to be known of them. One that says nothing is None."""

    figures: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 else None
