"""Histograms with their cut-offs, in the form that the page draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.report.read import ACCEPTED
from filters.rules import Rule

BINS = 48

# Coordinates of the histogram. The page scales them.
_WIDTH, _HEIGHT, _TOP, _LEFT, _BASE = 400, 150, 16, 4, 128


# ---------------------------------------------------------------------------------------------------
# Histograms
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bin. Its boxes from the bottom up: accepted, inside the bounds but not accepted, outside."""

    x: float
    width: float
    title: str
    boxes: list[tuple[str, float, float]]  # class, y, height


@dataclass(frozen=True)
class Mark:
    x: float
    label: str
    value: float
    anchor: str = "middle"


@dataclass(frozen=True)
class Chart:
    """A histogram of all scored clips, in the coordinates of the picture."""

    column: str
    bars: list[Bar]
    ticks: list[Mark]
    cuts: list[Mark]
    most: int  # clips in the fullest bin
    scored: int
    missing: int
    left_out: int  # clips left of the axis, counted in the first bin
    right_out: int  # clips right of the axis, counted in the last bin
    width: int = _WIDTH
    height: int = _HEIGHT
    base: int = _BASE
    top: int = _TOP


def axis_range(values: np.ndarray, cuts: Sequence[float]) -> tuple[float, float]:
    """The range of the axis: from the 1st to the 99th percentile, and wide enough for every cut-off."""
    points = list(cuts)
    if len(values):  # these are the least and the greatest value if there are few values
        points += [np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")]
    points = points or [0.0, 1.0]
    lo, hi = float(min(points)), float(max(points))
    if hi - lo <= 1e-9 * max(abs(lo), abs(hi)):
        room = 0.5 * max(abs(lo), 1e-6)
    else:
        room = 0.04 * (hi - lo)
    # The axis starts at 0 or above if all values and cut-offs do.
    least = float(values.min()) if len(values) else lo
    return (max(lo - room, 0.0) if least >= 0 and lo >= 0 else lo - room), hi + room


def chart(values: np.ndarray, status: np.ndarray, rule: Rule | None, column: str = "") -> Chart:
    """The histogram of one column. Values outside the axis are counted in the bins at its ends."""
    scored = np.isfinite(values)
    found, status = values[scored], status[scored]
    cuts = [c for c in (rule.min, rule.max) if c is not None and math.isfinite(c)] if rule else []
    lo, hi = axis_range(found, cuts)
    edges = np.linspace(lo, hi, BINS + 1)
    inside = np.ones(len(found), dtype=bool)
    if rule is not None:
        inside &= found >= (-math.inf if rule.min is None else rule.min)
        inside &= found <= (math.inf if rule.max is None else rule.max)
    shown = np.clip(found, lo, hi)
    accepted = status == ACCEPTED
    layers = [
        ("accepted", "accepted", accepted),
        ("inside", "not accepted", inside & ~accepted),
        ("outside", "outside the cut-offs", ~inside & ~accepted),
    ]
    counted = [(c, t, np.histogram(shown[m], edges)[0]) for c, t, m in layers]
    most = int(sum(n for _, _, n in counted).max()) if len(found) else 0  # type: ignore[union-attr]
    scale_x = (_WIDTH - 2 * _LEFT) / (hi - lo)
    scale_y = (_BASE - _TOP) / max(most, 1)

    def x_of(value: float) -> float:
        return round(_LEFT + (value - lo) * scale_x, 2)

    bars = []
    for k in range(BINS):
        y, boxes, parts = float(_BASE), [], []
        for css, text, n in counted:
            if n[k]:
                tall = float(n[k]) * scale_y
                y -= tall
                boxes.append((css, round(y, 2), round(tall, 2)))
                parts.append(f"{n[k]} {text}")
        if boxes:
            title = f"{edges[k]:.4g} to {edges[k + 1]:.4g}: {', '.join(parts)}"
            bars.append(
                Bar(
                    x_of(edges[k]),
                    round(max(scale_x * (edges[k + 1] - edges[k]) - 0.8, 0.5), 2),
                    title,
                    boxes,
                )
            )
    return Chart(
        column,
        bars,
        [Mark(x_of(t), f"{t:g}", t, _anchor(x_of(t))) for t in ticks(lo, hi)],
        [Mark(x_of(c), f"{c:g}", c, _anchor(x_of(c))) for c in cuts],
        most,
        len(found),
        len(values) - len(found),
        int((found < lo).sum()),
        int((found > hi).sum()),
    )


def _anchor(x: float) -> str:
    """Which part of a label stands at `x`: its start, middle or end. The label stays inside the picture."""
    return "start" if x < 12 else "end" if x > _WIDTH - 12 else "middle"


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers between `lo` and `hi`."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def bounds(rule: Rule) -> str:
    if rule.min is None:
        return f"at most {rule.max:g}"
    if rule.max is None:
        return f"at least {rule.min:g}"
    return f"{rule.min:g} to {rule.max:g}"
