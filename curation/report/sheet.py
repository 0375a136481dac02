"""advice.html: a contact sheet of clips on both sides of cut-offs. Self-contained, and without scripts."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curation.config.schema import Config
from curation.report.charts import Chart, chart
from curation.report.columns import describe, known_columns, rendered
from curation.report.read import Clips
from curation.report.tiles import Strip, both_sides, embed, fill
from curation.store.dataset import Dataset

PAGE = "advice.html"


@dataclass(frozen=True)
class Cut:
    """A cut-off of one column, and why it is shown."""

    value: float
    is_min: bool
    why: str


@dataclass(frozen=True)
class Shown:
    """One cut-off with the clips on both sides."""

    title: str
    strips: list[Strip]


@dataclass(frozen=True)
class Sheet:
    """All cut-offs of one column."""

    column: str
    meaning: str
    chart: Chart
    cuts: list[Shown]


def write_sheet(
    dataset: Dataset,
    config: Config,
    clips: Clips,
    cuts: Mapping[str, Sequence[Cut]],
    said: Sequence[str],
) -> str:
    """Write the page of these cut-offs, with the lines `said` above. Returns its address."""
    about = known_columns(config)
    sheets = [
        Sheet(
            column,
            describe(column, about),
            chart(clips.scores[column], clips.status, config.rules.get(column), column),
            [_shown(clips.scores[column], cut) for cut in of_column],
        )
        for column, of_column in cuts.items()
        if of_column
    ]
    strips = [strip.tiles for sheet in sheets for shown in sheet.cuts for strip in shown.strips]
    fill(dataset, clips, strips)
    embed(strips)
    name = posixpath.basename(dataset.location) or dataset.location
    page = rendered(PAGE, name=name, location=dataset.location, said="\n".join(said), sheets=sheets)
    dataset.write(PAGE, page.encode())
    return dataset.address(PAGE)


def _shown(values: np.ndarray, cut: Cut) -> Shown:
    scored = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        out = scored & ((values < cut.value) if cut.is_min else (values > cut.value))
    strips = both_sides(values, scored & ~out, cut.value, out, is_min=cut.is_min)
    return Shown(f"{'at least' if cut.is_min else 'at most'} {cut.value:g}, {cut.why}", strips)
