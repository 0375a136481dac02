"""What a training wrote down, as charts over its steps, in the coordinates of a picture.

RUN/STAGE/log.jsonl           a line a step: step, loss, and for the autoencoder psnr
RUN/STAGE/validation.jsonl    the same of held-out clips, now and then
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_POINTS = 400  # of a line; more are not told apart
_MOST_MARKS = 60
_SHOWN = {"loss": "loss", "psnr": "PSNR, dB"}
_LOGARITHMIC = 10.0  # greatest over least value, from which the axis is
_MOST_TICKS = 8

# A chart's coordinates; the page scales them.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BASE = 420, 190, 46, 410, 8, 164

Point = tuple[float, float]  # step, value


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str  # training, validation
    points: list[Point]  # x, y
    titles: list[str]
    marked: bool  # each point is seen
    last: Point  # step and value, as they are

    @property
    def path(self) -> str:
        """As SVG takes it."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)


@dataclass(frozen=True)
class Tick:
    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    what: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    steps: int
    thinned: int  # steps whose mean a point of the training line is; 1: none was thinned
    logarithmic: bool
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    base: int = _BASE


def charts(folder: Path) -> tuple[list[Chart], list[str]]:
    """Of a stage's folder: the loss, PSNR where it was logged; and lines that tell what is missing.

    Raises `ValueError` that names the file and its line, where one cannot be read.
    """
    logs, missing = {}, []
    for name, file in (("training", folder / "log.jsonl"), ("validation", folder / "validation.jsonl")):
        logs[name] = read_log(file) if file.is_file() else []
        if not logs[name]:
            missing.append(f"{file.name} {'tells of no step' if file.is_file() else 'is missing'}")
    found = []
    for key, what in _SHOWN.items():
        series = {name: _series(lines, key) for name, lines in logs.items()}
        if any(series.values()):
            found.append(chart(what, series))
    return found, missing


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, without the last one where it was cut off.

    Raises `ValueError` that names the line.
    """
    found = []
    for k, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):  # it is being written, or its writer was killed
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {k}: not JSON ({error})") from error
        if not isinstance(values, dict) or not _is_number(values.get("step")):
            raise ValueError(f"{file}, line {k}: it does not tell its step")
        found.append(values)
    return found


def _series(lines: Sequence[dict[str, Any]], key: str) -> list[Point]:
    return [(float(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """The means of neighbours, of equally many each (the last may have fewer), so that `most` are left.

    Means, since the loss of one step says little.
    """
    each = math.ceil(len(points) / most)
    if each <= 1:
        return list(points)
    groups = [points[k : k + each] for k in range(0, len(points), each)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def chart(what: str, series: dict[str, list[Point]]) -> Chart:
    """series: points by the line's name, of which one at least has a point."""
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
    """Round numbers between `lo` and `hi`."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def powers(lo: float, hi: float) -> list[float]:
    """Round numbers between `lo` and `hi`, both above 0, for a logarithmic axis; at most 8 of them."""
    tens = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [m * 10.0**k for k in tens for m in steps if lo <= m * 10.0**k <= hi]
        if len(found) <= _MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / _MOST_TICKS)]
