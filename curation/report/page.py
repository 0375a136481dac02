"""One page that shows the contents of a dataset and the effect of its cut-offs. It has no scripts."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curation.audit.accounting import Accounting, accounting
from curation.audit.captioned import captioned_line
from curation.captions.chosen import Captions
from curation.config.load import stored_config
from curation.report.cameras import cameras
from curation.report.charts import Chart, bounds, chart
from curation.report.columns import describe, known_columns, rendered
from curation.report.read import (
    ACCEPTED,
    FAILED,
    FAILURES_SHOWN,
    Clips,
    read_clips,
    read_sources,
)
from curation.report.tiles import Strip, Tile, both_sides, embed, fill, spread
from curation.report.words import short
from curation.store import spent
from curation.store.dataset import Dataset
from curation.store.schema import CAPTION_COLUMNS
from curation.verdicts.judge import applicable
from filters.base import Column
from filters.rules import Rule

ACCEPTED_SHOWN = 24


def write_report(dataset: Dataset, *, out: str | None = None) -> str:
    """Write the report as report.html of the dataset, or to `out`. Returns the address of the page.

    The page has at most about 4 MB of thumbnails, even for a large dataset. Memory holds the score columns of
    all clips, and the thumbnails of the shown clips.
    """
    page = render(dataset).encode()
    folder, name = (dataset, "report.html")
    if out is not None:
        parent, name = posixpath.split(out)
        folder = Dataset(parent or ".")  # Dataset writes whole files, local or remote
    folder.write(name, page)
    return folder.address(name)


def render(dataset: Dataset) -> str:
    """The HTML text of the page."""
    manifest = dict.fromkeys(("created", "reelmill_version", "config_hash"), "not known") | dataset.manifest()
    config = stored_config(manifest, dataset.location)
    counts = accounting(dataset)
    captions = Captions.read(dataset, config)
    clips = read_clips(dataset, captions)
    about = known_columns(config)
    rules = {
        column: rule
        for column, rule in config.ordered_rules.items()
        if column in clips.scores
        and (column not in CAPTION_COLUMNS or np.isfinite(clips.scores[column]).any())
    }
    sections = [_section(clips, column, rule, about) for column, rule in rules.items()]
    others = [
        chart(clips.scores[column], clips.status, None, column)
        for column in clips.scores
        if column not in rules and np.isfinite(clips.scores[column]).any()
    ]
    accepted = [Tile(int(i)) for i in spread(np.flatnonzero(clips.status == ACCEPTED), ACCEPTED_SHOWN)]
    failed = [Tile(int(i)) for i in np.flatnonzero(clips.status == FAILED)[:FAILURES_SHOWN]]
    strips = [accepted, *(strip.tiles for section in sections for strip in section.strips)]
    fill(dataset, clips, [*strips, failed])
    embed(strips)
    about_captions = [s for section in sections if section.column in CAPTION_COLUMNS for s in section.strips]
    for tile in (*accepted, *(tile for strip in about_captions for tile in strip.tiles)):
        text = captions.text(clips.ids[tile.clip].as_py())
        tile.caption = short(text) if text else None
    sources = read_sources(dataset)
    return rendered(
        "report.html",
        location=dataset.location,
        name=posixpath.basename(dataset.location) or dataset.location,
        manifest=manifest,
        config=json.dumps(manifest["config"], indent=2, ensure_ascii=False),
        models=json.dumps(manifest.get("models") or {}, indent=2, ensure_ascii=False, default=str),
        counts=counts,
        wrong=counts.check(),
        captioned=captioned_line(dataset),
        seconds=float(clips.seconds.sum()),
        funnel=_funnel(clips, rules, counts),
        sections=sections,
        others=[(describe(c.column, about), c) for c in others],
        cameras=cameras(clips.scores, clips.status),
        accepted=accepted,
        failed=failed,
        failed_sources=sources.failed,
        failed_by=sources.failed_by.most_common(),
        slowest=sources.slowest,
        spent=spent.read(dataset),
    )


# ---------------------------------------------------------------------------------------------------
# The funnel
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step from all clips to the accepted clips: a rule, or a stage that can fail."""

    name: str
    bounds: str
    kind: str  # rejected, failed
    out: int
    remain: int
    remain_seconds: float
    remain_share: float


def _funnel(clips: Clips, rules: Mapping[str, Rule], counts: Accounting) -> list[Step]:
    """The rules in the order of the cascade, and then all other reasons of verdicts."""
    names = [*rules, *(r for r in counts.by_reason if r not in rules)]
    remains = np.ones(len(clips), dtype=bool)
    steps = []
    for name in names:
        out = np.zeros(len(clips), dtype=bool)
        if name in clips.reasons:
            out = clips.reason == clips.reasons.index(name)
        remains &= ~out
        failed = bool((clips.status[out] == FAILED).any())
        steps.append(
            Step(
                name,
                bounds(rules[name]) if name in rules else "",
                "failed" if failed else "rejected",
                int(out.sum()),
                int(remains.sum()),
                float(clips.seconds[remains].sum()),
                float(remains.mean()) if len(clips) else 0.0,
            )
        )
    return steps


# ---------------------------------------------------------------------------------------------------
# Rules, and the clips near their cut-offs
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """The section of one rule."""

    column: str
    meaning: str
    bounds: str
    chart: Chart
    sides: list[tuple[str, int]]  # text, clips
    strips: list[Strip]


def _section(clips: Clips, column: str, rule: Rule, about: Mapping[str, Column]) -> Section:
    values = clips.scores[column]
    judged = chart(values, clips.status, rule, column)
    scored = np.isfinite(values)
    low = scored & (values < rule.min) if rule.min is not None else np.zeros_like(scored)
    high = scored & (values > rule.max) if rule.max is not None else np.zeros_like(scored)
    inside = scored & ~low & ~high
    exempt = np.zeros_like(scored)
    if column in CAPTION_COLUMNS:  # people wrote the caption, or there is no caption
        exempt = ~scored
    for is_image in (True, False):
        if not applicable({column: rule}, is_image=is_image):
            exempt |= ~scored & (clips.is_image == is_image)
    sides = [(f"below {rule.min:g}", int(low.sum()))] if rule.min is not None else []
    sides += [(bounds(rule), int(inside.sum()))]
    sides += [(f"above {rule.max:g}", int(high.sum()))] if rule.max is not None else []
    sides += [("not scored", int((~scored & ~exempt).sum()))]
    if exempt.any():
        sides += [("to which it does not apply", int(exempt.sum()))]
    strips = both_sides(values, inside, rule.min, low, is_min=True)
    strips += both_sides(values, inside, rule.max, high, is_min=False)
    return Section(column, describe(column, about), bounds(rule), judged, sides, strips)
