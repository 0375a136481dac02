"""One page that shows the contents of a dataset and the effect of its cut-offs. It has no scripts."""

from __future__ import annotations

import base64
import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
import numpy as np

from curation.audit.accounting import Accounting, accounting
from curation.audit.captioned import captioned_line
from curation.captions.checks import COLUMNS
from curation.captions.chosen import Captions
from curation.config.load import stored_config
from curation.config.schema import Config
from curation.report.cameras import cameras
from curation.report.charts import Chart, bounds, chart
from curation.report.read import (
    ACCEPTED,
    FAILED,
    FAILURES_SHOWN,
    STATUSES,
    Clips,
    read_clips,
    read_sources,
)
from curation.report.words import clock, duration, number, share, short
from curation.store import spent
from curation.store.dataset import Dataset
from curation.store.schema import CAPTION_COLUMNS
from curation.verdicts.judge import applicable
from filters import SCORERS
from filters.base import Column
from filters.rules import Rule

THUMBNAILS_PER_SIDE = 12  # at most, on each side of a cut-off
ACCEPTED_SHOWN = 24
_THUMBNAIL_BYTES = 4_000_000  # of all thumbnails together, as data URLs


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
    about = _columns(config)
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
    accepted = [Tile(int(i)) for i in _spread(np.flatnonzero(clips.status == ACCEPTED), ACCEPTED_SHOWN)]
    failed = [Tile(int(i)) for i in np.flatnonzero(clips.status == FAILED)[:FAILURES_SHOWN]]
    strips = [accepted, *(strip.tiles for section in sections for strip in section.strips)]
    _fill(dataset, clips, [*strips, failed])
    _embed(strips)
    about_captions = [s for section in sections if section.column in CAPTION_COLUMNS for s in section.strips]
    for tile in (*accepted, *(tile for strip in about_captions for tile in strip.tiles)):
        text = captions.text(clips.ids[tile.clip].as_py())
        tile.caption = short(text) if text else None
    sources = read_sources(dataset)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(clock=clock, duration=duration, number=number, share=share)
    template = environment.from_string(files("curation.report").joinpath("report.html").read_text("utf-8"))
    return template.render(
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
        others=[(_describe(c.column, about), c) for c in others],
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


@dataclass
class Tile:
    """One clip that is shown. `_fill` reads the missing values from the part of the clip."""

    clip: int
    value: float | None = None
    uri: str = ""
    start_s: float = 0.0
    seconds: float = 0.0
    status: str = ""
    reason: str | None = None
    message: str | None = None
    caption: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)
    image: str | None = None  # data URL

    @property
    def name(self) -> str:
        return short(self.uri.rstrip("/").rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Strip:
    """Clips on one side of a cut-off. The nearest clip comes first."""

    title: str
    passes: bool
    tiles: list[Tile]


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
    strips = []
    for cut, out, text_in, text_out in (
        (rule.min, low, "at or above", "below"),
        (rule.max, high, "at or below", "above"),
    ):
        if cut is not None:
            strips.append(Strip(f"Just {text_out} {cut:g}", False, _nearest(values, out, cut)))
            strips.append(Strip(f"Just {text_in} {cut:g}", True, _nearest(values, inside, cut)))
    return Section(column, _describe(column, about), bounds(rule), judged, sides, strips)


def _columns(config: Config) -> dict[str, Column]:
    """What is known of the columns: from the filters here, and from what dataset.json records of others."""
    filters = [*SCORERS.values(), *config.filters.values()]
    return {column.name: column for filter_ in filters for column in filter_.columns} | COLUMNS


def _describe(column: str, about: Mapping[str, Column]) -> str:
    known = about.get(column, Column(column))
    meaning = known.meaning or column
    return f"{meaning} ({known.unit})" if known.unit else meaning


def _nearest(values: np.ndarray, among: np.ndarray, cut: float) -> list[Tile]:
    """The clips nearest to a cut-off. Equally near clips are chosen evenly, to show many sources."""
    where = np.flatnonzero(among)
    where = where[np.argsort(np.abs(values[where] - cut), kind="stable")]
    if len(where) > THUMBNAILS_PER_SIDE:
        distance = np.abs(values[where] - cut)
        limit = distance[THUMBNAILS_PER_SIDE - 1]
        nearer = where[distance < limit]
        where = np.concatenate([nearer, _spread(where[distance == limit], THUMBNAILS_PER_SIDE - len(nearer))])
    return [Tile(int(i), float(values[i])) for i in where]


def _spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `numbers`, evenly spaced, so that the page shows many sources."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).round().astype(int)]


def _fill(dataset: Dataset, clips: Clips, strips: Iterable[Sequence[Tile]]) -> None:
    """Complete the tiles. Only the parts of shown clips are read, and only shown thumbnails are kept."""
    wanted: dict[int, list[Tile]] = {}
    for strip in strips:
        for tile in strip:
            wanted.setdefault(tile.clip, []).append(tile)
    numbers = np.array(sorted(wanted), dtype=np.int64)
    firsts = [first for _, first in clips.parts] + [len(clips)]
    for (part, first), end in zip(clips.parts, firsts[1:], strict=True):
        here = numbers[(numbers >= first) & (numbers < end)]
        if not len(here):
            continue
        rows = dataset.read_part("clips", part, ["uri", "thumbnail"]).take(here - first).to_pylist()
        for place, row in zip(here.tolist(), rows, strict=True):
            reason = int(clips.reason[place])
            message = clips.message[place].as_py()
            for tile in wanted[place]:
                tile.uri = row["uri"] or ""
                tile.thumbnail = row["thumbnail"]
                tile.start_s = float(clips.start_s[place])
                tile.seconds = float(clips.seconds[place])
                tile.status = STATUSES[clips.status[place]]
                tile.reason = clips.reasons[reason] if reason >= 0 else None
                tile.message = short(message) if message else None


def _embed(strips: Sequence[Sequence[Tile]]) -> None:
    """Turn thumbnails into data URLs, up to the limit. All first tiles of strips come before second tiles."""
    left = _THUMBNAIL_BYTES
    for rank in range(max(map(len, strips), default=0)):
        for strip in strips:
            if rank < len(strip):
                tile = strip[rank]
                url = _data_url(tile.thumbnail)
                if url and len(url) <= left:
                    tile.image = url
                    left -= len(url)
                tile.thumbnail = None


def _data_url(image: bytes | None) -> str | None:
    if image is None:
        return None
    if image[:2] == b"\xff\xd8":
        kind = "jpeg"
    elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
