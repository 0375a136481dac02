"""One page that shows what a dataset is made of and what its cut-offs do. Self-contained, without scripts."""

from __future__ import annotations

import base64
import heapq
import io
import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.audit.verify import Accounting, accounting
from curation.captions.checks import COLUMNS
from curation.captions.chosen import Captions
from curation.config.schema import validated
from curation.store import spent
from curation.store.dataset import CAPTION_COLUMNS, SCORE_COLUMNS, Dataset
from curation.verdicts.judge import applicable, ordered
from filters import SCORERS
from filters.base import Column
from filters.rules import Rule

THUMBNAILS_PER_SIDE = 12  # of each cut-off
ACCEPTED_SHOWN = 24
FAILURES_SHOWN = 200
SLOWEST_SHOWN = 15
BINS = 48
_THUMBNAIL_BYTES = 4_000_000  # of all thumbnails, as they stand in the page
_MOST_TEXT = 600  # characters of one message, name or caption

# The histogram's coordinates; the page scales them.
_WIDTH, _HEIGHT, _TOP, _LEFT, _BASE = 400, 150, 16, 4, 128

_ACCEPTED, _REJECTED, _FAILED, _UNJUDGED = range(4)
_STATUSES = ("accepted", "rejected", "failed", "not judged")
_COLUMNS: dict[str, Column] = {c.name: c for s in SCORERS.values() for c in s.columns} | COLUMNS
_ALL_COLUMNS = (*SCORE_COLUMNS, *CAPTION_COLUMNS)


def write_report(dataset: Dataset, *, out: str | None = None) -> str:
    """Write the report as report.html of the dataset, or to `out`. Returns the address of the page.

    The page has at most about 4 MB of thumbnails, however large the dataset is. Of the clips, the score
    columns are in memory, and thumbnails of the clips that are shown.
    """
    page = render(dataset).encode()
    folder, name = (dataset, "report.html")
    if out is not None:
        parent, name = posixpath.split(out)
        folder = Dataset(parent or ".")  # its way to write: whole files, local or remote
    folder.write(name, page)
    return folder.address(name)


def render(dataset: Dataset) -> str:
    """The page's text."""
    manifest = dataset.manifest()
    counts = accounting(dataset)
    rules = ordered({c: Rule(**b) for c, b in manifest["config"]["rules"].items() if c in _ALL_COLUMNS})
    captions = Captions.read(dataset, validated(manifest["config"]))
    clips = _read_clips(dataset, captions)
    rules = {c: r for c, r in rules.items() if c in SCORE_COLUMNS or np.isfinite(clips.scores[c]).any()}
    sections = [_section(clips, column, rule) for column, rule in rules.items()]
    others = [
        chart(clips.scores[column], clips.status, None, column)
        for column in _ALL_COLUMNS
        if column not in rules and np.isfinite(clips.scores[column]).any()
    ]
    accepted = [Tile(int(i)) for i in _spread(np.flatnonzero(clips.status == _ACCEPTED), ACCEPTED_SHOWN)]
    failed = [Tile(int(i)) for i in np.flatnonzero(clips.status == _FAILED)[:FAILURES_SHOWN]]
    strips = [accepted, *(strip.tiles for section in sections for strip in section.strips)]
    _fill(dataset, clips, [*strips, failed])
    _embed(strips)
    about_captions = [s for section in sections if section.column in CAPTION_COLUMNS for s in section.strips]
    for tile in (*accepted, *(tile for strip in about_captions for tile in strip.tiles)):
        text = captions.text(clips.ids[tile.clip].as_py())
        tile.caption = _short(text) if text else None
    sources = _read_sources(dataset)
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
        seconds=float(clips.seconds.sum()),
        funnel=_funnel(clips, rules, counts),
        sections=sections,
        others=[(_describe(c.column), c) for c in others],
        accepted=accepted,
        failed=failed,
        failed_sources=sources.failed,
        failed_by=sources.failed_by.most_common(),
        slowest=sources.slowest,
        spent=spent.read(dataset),
    )


# ---------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clips:
    """The committed clips as columns, in the order of the parts."""

    parts: list[tuple[str, int]]  # name, number of its first clip
    ids: pa.ChunkedArray
    scores: dict[str, np.ndarray]  # NaN where not scored
    start_s: np.ndarray
    seconds: np.ndarray
    is_image: np.ndarray
    status: np.ndarray
    reason: np.ndarray  # number of the reason in `reasons`, -1 for none
    reasons: list[str]
    message: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.start_s)


def _read_clips(dataset: Dataset, captions: Captions) -> _Clips:
    parts: list[tuple[str, int]] = []
    tables = []
    rows = 0
    for part, table in dataset.tables("clips", ["clip_id", "start_s", "end_s", "fps", *SCORE_COLUMNS]):
        parts.append((part, rows))
        tables.append(table)
        rows += table.num_rows
    if not tables:
        schema = [("clip_id", pa.string())]
        schema += [(n, pa.float64()) for n in ("start_s", "end_s", "fps", *SCORE_COLUMNS)]
        tables = [pa.schema(schema).empty_table()]
    all_clips = pa.concat_tables(tables)
    verdicts = pa.table({k: pa.array([], pa.string()) for k in ("clip_id", "status", "reason", "message")})
    if dataset.exists("verdicts.parquet"):
        data = io.BytesIO(dataset.read("verdicts.parquet"))
        verdicts = pq.read_table(data, columns=["clip_id", "status", "reason", "message"])
    place = pc.index_in(all_clips["clip_id"], value_set=verdicts["clip_id"].combine_chunks())
    judged = verdicts.take(place)
    status = pc.index_in(judged["status"], value_set=pa.array(_STATUSES))
    reasons = [r for r in pc.unique(judged["reason"]).to_pylist() if r is not None]
    reason = pc.index_in(judged["reason"], value_set=pa.array(reasons, pa.string()), skip_nulls=True)
    start_s = _floats(all_clips["start_s"])
    scores = {c: _floats(all_clips[c]) for c in SCORE_COLUMNS}
    scores |= {c: np.full(len(start_s), np.nan) for c in CAPTION_COLUMNS}
    for i, clip_id in enumerate(all_clips["clip_id"].to_pylist()):
        for column, value in captions.checks(clip_id).items():
            scores[column][i] = value
    return _Clips(
        parts,
        all_clips["clip_id"],
        scores,
        start_s,
        _floats(all_clips["end_s"]) - start_s,
        np.isnan(_floats(all_clips["fps"])),
        pc.fill_null(status, _UNJUDGED).to_numpy(),
        pc.fill_null(reason, -1).to_numpy(),
        reasons,
        judged["message"],
    )


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)


@dataclass
class _Sources:
    failed: list[dict[str, Any]] = field(default_factory=list)  # the first of them
    failed_by: Counter[tuple[str, str]] = field(default_factory=Counter)  # stage, error
    slowest: list[dict[str, Any]] = field(default_factory=list)


def _read_sources(dataset: Dataset) -> _Sources:
    found = _Sources()
    columns = [
        "uri",
        "status",
        "stage",
        "error",
        "message",
        "seconds",
        "duration_s",
        "width",
        "height",
        "codec",
    ]
    for _, table in dataset.tables("sources", columns):
        rows = table.to_pylist()
        for row in rows:
            if row["status"] == "failed":
                found.failed_by[row["stage"] or "", row["error"] or ""] += 1
                if len(found.failed) < FAILURES_SHOWN:
                    found.failed.append({k: _short(v) if isinstance(v, str) else v for k, v in row.items()})
        timed = [r for r in rows if r["seconds"] is not None]
        found.slowest = heapq.nlargest(SLOWEST_SHOWN, [*found.slowest, *timed], key=lambda r: r["seconds"])
    return found


# ---------------------------------------------------------------------------------------------------
# The funnel
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One rule, or one stage that can fail, of the way from all clips to the accepted ones."""

    name: str
    bounds: str
    kind: str  # rejected, failed
    out: int
    remain: int
    remain_seconds: float
    remain_share: float


def _funnel(clips: _Clips, rules: Mapping[str, Rule], counts: Accounting) -> list[Step]:
    """Rules in the order of the cascade, then whatever else is a reason of a verdict."""
    names = [*rules, *(r for r in counts.by_reason if r not in rules)]
    remains = np.ones(len(clips), dtype=bool)
    steps = []
    for name in names:
        out = np.zeros(len(clips), dtype=bool)
        if name in clips.reasons:
            out = clips.reason == clips.reasons.index(name)
        remains &= ~out
        failed = bool((clips.status[out] == _FAILED).any())
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
# Histograms
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One bin. Heights from the bottom up: accepted, inside the bounds but not accepted, outside."""

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
    """A histogram over all scored clips, in the coordinates of its picture."""

    column: str
    bars: list[Bar]
    ticks: list[Mark]
    cuts: list[Mark]
    most: int  # clips in the fullest bin
    scored: int
    missing: int
    left_out: int  # clips left of the axis, counted in the first bin
    right_out: int
    width: int = _WIDTH
    height: int = _HEIGHT
    base: int = _BASE
    top: int = _TOP


def axis_range(values: np.ndarray, cuts: Sequence[float]) -> tuple[float, float]:
    """From the 1st to the 99th percentile, and every cut-off inside with some room."""
    points = list(cuts)
    if len(values):  # of few values, the least and the greatest
        points += [np.percentile(values, 1, method="lower"), np.percentile(values, 99, method="higher")]
    points = points or [0.0, 1.0]
    lo, hi = float(min(points)), float(max(points))
    if hi - lo <= 1e-9 * max(abs(lo), abs(hi)):
        room = 0.5 * max(abs(lo), 1e-6)
    else:
        room = 0.04 * (hi - lo)
    # No room is needed beyond the last value, and none is shown below 0 when there is nothing.
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
    accepted = status == _ACCEPTED
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
    """Which end of a label stands at `x`, so that it stays inside the picture."""
    return "start" if x < 12 else "end" if x > _WIDTH - 12 else "middle"


def ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Round numbers between `lo` and `hi`."""
    rough = (hi - lo) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


# ---------------------------------------------------------------------------------------------------
# Rules, and the clips near their cut-offs
# ---------------------------------------------------------------------------------------------------


@dataclass
class Tile:
    """One clip that is shown; what is not known at first is filled in from its part."""

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
        return _short(self.uri.rstrip("/").rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Strip:
    """Clips on one side of a cut-off, the nearest first."""

    title: str
    passes: bool
    tiles: list[Tile]


@dataclass(frozen=True)
class Section:
    """One rule."""

    column: str
    meaning: str
    bounds: str
    chart: Chart
    sides: list[tuple[str, int]]  # text, clips
    strips: list[Strip]


def _section(clips: _Clips, column: str, rule: Rule) -> Section:
    values = clips.scores[column]
    judged = chart(values, clips.status, rule, column)
    scored = np.isfinite(values)
    low = scored & (values < rule.min) if rule.min is not None else np.zeros_like(scored)
    high = scored & (values > rule.max) if rule.max is not None else np.zeros_like(scored)
    inside = scored & ~low & ~high
    exempt = np.zeros_like(scored)
    if column in CAPTION_COLUMNS:  # of people, or none
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
    return Section(column, _describe(column), bounds(rule), judged, sides, strips)


def _describe(column: str) -> str:
    known = _COLUMNS[column]
    return f"{known.meaning} ({known.unit})"


def bounds(rule: Rule) -> str:
    if rule.min is None:
        return f"at most {rule.max:g}"
    if rule.max is None:
        return f"at least {rule.min:g}"
    return f"{rule.min:g} to {rule.max:g}"


def _nearest(values: np.ndarray, among: np.ndarray, cut: float) -> list[Tile]:
    """Where many are equally near, some from everywhere, not those of the first source."""
    where = np.flatnonzero(among)
    where = where[np.argsort(np.abs(values[where] - cut), kind="stable")]
    if len(where) > THUMBNAILS_PER_SIDE:
        distance = np.abs(values[where] - cut)
        limit = distance[THUMBNAILS_PER_SIDE - 1]
        nearer = where[distance < limit]
        where = np.concatenate([nearer, _spread(where[distance == limit], THUMBNAILS_PER_SIDE - len(nearer))])
    return [Tile(int(i), float(values[i])) for i in where]


def _spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `numbers`, evenly spaced, so that many sources are seen."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).round().astype(int)]


def _fill(dataset: Dataset, clips: _Clips, strips: Iterable[Sequence[Tile]]) -> None:
    """Complete the tiles; reads only the parts, and keeps only the thumbnails, of clips that are shown."""
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
        for number, row in zip(here.tolist(), rows, strict=True):
            reason = int(clips.reason[number])
            message = clips.message[number].as_py()
            for tile in wanted[number]:
                tile.uri = row["uri"] or ""
                tile.thumbnail = row["thumbnail"]
                tile.start_s = float(clips.start_s[number])
                tile.seconds = float(clips.seconds[number])
                tile.status = _STATUSES[clips.status[number]]
                tile.reason = clips.reasons[reason] if reason >= 0 else None
                tile.message = _short(message) if message else None


def _embed(strips: Sequence[Sequence[Tile]]) -> None:
    """Turn thumbnails into data URLs, the first of every strip before the second of any, up to the limit."""
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


# ---------------------------------------------------------------------------------------------------
# How things are written
# ---------------------------------------------------------------------------------------------------


def _short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " …"


def number(value: float | None) -> str:
    """12,345 or 0.0213."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def clock(seconds: float) -> str:
    """A moment of a video: 1:02:03.4."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
    return f"{hours}:{text}" if hours else text


def duration(seconds: float | None) -> str:
    """How long something takes: 12.3 s, 4.5 min, 6.7 h."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"
