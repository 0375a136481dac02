"""Charts of the logs of a training, over its steps, in the coordinates of a picture.

RUN/STAGE/log.jsonl           one line for each step: step, loss, and for the autoencoder psnr
RUN/STAGE/validation.jsonl    the same values for held-out clips, for some steps
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_POINTS = 400  # of a line, as more points cannot be seen
_MOST_MARKS = 60  # a line with more points has no marks
_SHOWN = {"loss": "loss", "psnr": "PSNR, dB"}
_LOGARITHMIC = 10.0  # the axis is logarithmic from this ratio of largest to smallest value
_MOST_TICKS = 8

# A chart's coordinates; the page scales them.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BASE = 420, 190, 46, 410, 8, 164

Point = tuple[float, float]  # step, value


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # training or validation
    points: list[Point]  # x, y
    titles: list[str]  # of each point
    marked: bool  # whether each point has a mark
    last: Point  # step and value of the log, not thinned

    @property
    def path(self) -> str:
        """The points in the form of SVG's `points`."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


@dataclass(frozen=True)
class Tick:
    """A tick of an axis."""

    place: float  # x or y
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart with its lines and axes, in the coordinates of a picture."""

    what: str  # the name of the values
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    steps: int
    thinned: int  # a point of the training line is the mean of so many steps
    logarithmic: bool
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    base: int = _BASE


def charts(folder: Path) -> tuple[list[Chart], list[str]]:
    """The charts of a stage's folder, and lines about missing logs. PSNR has a chart if it was logged.

    Raises `ValueError` that names the file and the line when a log cannot be read.
    """
    logs, missing = {}, []
    for name, file in (("training", folder / "log.jsonl"), ("validation", folder / "validation.jsonl")):
        logs[name] = read_log(file) if file.is_file() else []
        if not logs[name]:
            missing.append(f"{file.name} {'has no steps' if file.is_file() else 'is missing'}")
    found = []
    for key, what in _SHOWN.items():
        series = {name: _series(lines, key) for name, lines in logs.items()}
        if any(series.values()):
            found.append(chart(what, series))
    return found, missing


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log. An incomplete last line is left out.

    Raises `ValueError` that names a broken line.
    """
    found = []
    for k, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):  # the line is being written, or its writer was killed
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {k} is not JSON ({error})") from error
        if not isinstance(values, dict) or not _is_number(values.get("step")):
            raise ValueError(f"{file}, line {k} has no step")
        found.append(values)
    return found


def _series(lines: Sequence[dict[str, Any]], key: str) -> list[Point]:
    return [(float(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: each is the mean of equally many neighbours, and the last may have fewer.

    Means are taken because the loss of a single step is noisy.
    """
    each = math.ceil(len(points) / most)
    if each <= 1:
        return list(points)
    groups = [points[k : k + each] for k in range(0, len(points), each)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def chart(what: str, series: dict[str, list[Point]]) -> Chart:
    """A chart of the values `what`. series: points by the line's name; at least one line has a point."""
    drawn = {name: thinned(points) for name, points in series.items() if points}
    values = [value for points in drawn.values() for _, value in points]
    steps = max(step for points in series.values() for step, _ in points)
    logarithmic = min(values) > 0 and max(values) / min(values) >= _LOGARITHMIC
    scale = math.log10 if logarithmic else float
    lo, hi = scale(min(values)), scale(max(values))
    room = 0.04 * (hi - lo) or 0.5 * abs(lo) or 1.0
    lo, hi = lo - room, hi + room

    def x_of(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / max(steps, 1), 2)

    def y_of(value: float) -> float:
        return round(_BASE - (_BASE - _TOP) * (scale(value) - lo) / (hi - lo), 2)

    lines = [
        Line(
            name,
            [(x_of(s), y_of(v)) for s, v in points],
            [f"{name}, step {s:g}: {v:.4g}" for s, v in points],
            len(points) == 1 or (name != "training" and len(points) <= _MOST_MARKS),
            series[name][-1],
        )
        for name, points in drawn.items()
    ]
    marks = powers(10**lo, 10**hi) if logarithmic else ticks(lo, hi)
    return Chart(
        what,
        lines,
        [Tick(x_of(s), f"{s:,.0f}") for s in ticks(0, max(steps, 1)) if s == int(s)],
        [Tick(y_of(v), f"{v:g}") for v in marks],
        int(steps),
        math.ceil(len(series.get("training", ())) / MOST_POINTS) or 1,
        logarithmic,
    )


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers between `lo` and `hi`, `about` so many."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def powers(lo: float, hi: float) -> list[float]:
    """At most 8 round numbers between `lo` and `hi`, both above 0, for a logarithmic axis."""
    tens = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [m * 10.0**k for k in tens for m in steps if lo <= m * 10.0**k <= hi]
        if len(found) <= _MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / _MOST_TICKS)]
