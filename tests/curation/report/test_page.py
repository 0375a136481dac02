"""The report tells the truth about a dataset, in one file that loads nothing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.captions.chosen import Captions
from curation.config.load import load_config
from curation.report import charts, read, tiles
from curation.report import page as report
from curation.report.charts import axis_range, chart, ticks
from curation.report.page import write_report
from curation.report.words import clock, duration, number
from curation.store.dataset import Dataset
from filters.rules import Rule
from tests.curation import dataset_fixture as fixture


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def all(self, tag: str, attribute: str | None = None) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and (attribute is None or attribute in a)]

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return fixture.build(str(tmp_path_factory.mktemp("sound") / "dataset"))


@pytest.fixture(scope="module")
def page(dataset: Dataset) -> Page:
    address = write_report(dataset)
    assert address == dataset.address("report.html")
    return Page(Path(address).read_text("utf-8"))


def test_the_accounting_is_in_the_head(page: Page) -> None:
    assert "sources 5 = measured 4 + failed 1 (of the measured, 1 duplicate)" in page.text
    assert "clips 13 = accepted 6 + rejected 6 + failed 1" in page.text
    assert "the sums hold" in page.text
    assert "25.0 s of 57.0 s of clips" in page.text


def test_the_funnel_counts_each_clip_once(page: Page) -> None:
    steps = [a["data-step"] for a in page.all("tr", "data-step")]
    out = [int(a["data-out"]) for a in page.all("td", "data-out")]
    left = [int(a["data-left"]) for a in page.all("td", "data-left")]
    assert steps == ["duration.seconds", "motion.speed", "aesthetics.mean", "cut"]
    assert out == [1, 2, 3, 1]
    assert left == [12, 10, 7, 6]
    assert "motion.speed 0.02 to 0.8 −2 10 76.9 % 45.0 s" in page.text


def test_the_cut_offs_are_drawn_in(page: Page) -> None:
    assert [float(a["data-cut"]) for a in page.all("line", "data-cut")] == [3.0, 0.02, 0.8, 4.5]


def test_both_sides_of_a_cut_off_are_counted(page: Page) -> None:
    assert "1 below 0.02 10 0.02 to 0.8 1 above 0.8 0 not scored 1 to which it does not apply" in page.text
    assert "2 below 4.5 10 at least 4.5 1 not scored" in page.text


def test_clips_near_a_cut_off_come_by_distance(dataset: Dataset) -> None:
    clips = read.read_clips(dataset, Captions.read(dataset, load_config("")))
    section = report._section(clips, "aesthetics.mean", Rule(min=4.5), {})
    below, above = section.strips
    assert [t.value for t in below.tiles] == [4.4, 4.0]
    assert [t.value for t in above.tiles] == [4.6, 4.9, 5.0, 5.0, 5.0, 5.2, 5.5, 5.8, 6.0, 6.0]
    assert (below.passes, above.passes) == (False, True)


def test_many_equally_near_clips_are_shown_from_everywhere() -> None:
    values = np.full(1000, 5.0)
    values[700] = 4.6
    found = tiles.nearest(values, np.ones(1000, dtype=bool), 4.5)
    assert [found[0].clip, found[1].clip, found[-1].clip] == [700, 0, 999]
    assert len({t.clip for t in found}) == tiles.THUMBNAILS_PER_SIDE


def test_thumbnails_are_inside_the_page(page: Page) -> None:
    images = page.all("img")
    assert len(images) == (1 + 11) + (1 + 10 + 10 + 1) + (2 + 10) + 6  # sides of cut-offs, and the accepted
    head, data = images[0]["src"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 90)


def test_failures_and_slow_files(page: Page) -> None:
    assert "videos/broken.mp4 open InvalidDataError no moov atom" in page.text
    assert "videos/city.mp4 0:20.5 5.0 s cut MissingFrames: the file has changed" in page.text
    slowest = page.text.index("Slowest files source")
    assert "videos/city.mp4 9.0 s 30.0 s 0.30 h264 64×48 videos/pan.mp4 4.0 s" in page.text[slowest:]


def test_accepted_clips_have_their_captions(page: Page) -> None:
    assert "a gradient drifts (4)" in page.text


def test_the_page_loads_nothing_and_runs_nothing(page: Page, dataset: Dataset) -> None:
    text = dataset.read("report.html").decode()
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    assert all(a["src"].startswith("data:image/") for _, a in page.tags if "src" in a)
    assert all(a["href"].startswith("#") for _, a in page.tags if "href" in a)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for _, a in page.tags if "href" in a} <= anchors
    assert not re.search(r"https?://|url\(|@import|<[^>]*\son\w+=", text)
    assert "default-src 'none'" in text


def test_names_and_captions_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    dataset = fixture.build(str(tmp_path / "dataset"), folder=f'"><img src=x onerror=a>{evil}/', caption=evil)
    text = Path(write_report(dataset)).read_text("utf-8")
    page = Page(text)
    assert not page.all("script")
    assert not [a for _, a in page.tags if "onerror" in a]
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (0)" in text  # the caption
    assert any(a.get("title", "").startswith('"><img src=x') for a in page.all("span"))


def test_a_large_dataset_gives_a_page_of_bounded_size(tmp_path: Path) -> None:
    dataset = fixture.build_large(str(tmp_path / "dataset"), 3000)
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(dataset, out=str(out)) == str(out)
    assert not dataset.exists("report.html")
    assert out.stat().st_size < 5_000_000
    page = Page(out.read_text("utf-8"))
    assert len(page.all("figure")) <= 5 * 2 * 12 + 24
    assert "clips 3,000 = accepted" in page.text


def test_thumbnails_stop_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest clip of every side has a picture before any side has a second one."""
    jpeg = fixture.jpeg(0)
    url_bytes = len("data:image/jpeg;base64,") + 4 * -(-len(jpeg) // 3)
    strips = [[tiles.Tile(k, thumbnail=jpeg) for k in range(n)] for n in (12, 3, 0, 1)]
    monkeypatch.setattr(tiles, "_THUMBNAIL_BYTES", 4 * url_bytes + 10)
    tiles.embed(strips)
    assert [[t.image is not None for t in strip].count(True) for strip in strips] == [2, 1, 0, 1]
    assert strips[0][0].image is not None


def test_what_is_no_picture_is_not_embedded() -> None:
    tile = tiles.Tile(0, thumbnail=b"<svg onload=alert(1)>")
    tiles.embed([[tile]])
    assert tile.image is None


def test_sums_that_do_not_hold_are_shown(tmp_path: Path) -> None:
    dataset = fixture.build(str(tmp_path / "dataset"))
    dataset.remove("verdicts.parquet")
    page = Page(Path(write_report(dataset)).read_text("utf-8"))
    assert "clips 13 ≠ accepted 0 + rejected 0 + failed 0" in page.text
    assert "clips 13 is not accepted 0 + rejected 0 + failed 0" in page.text


def test_an_empty_dataset_has_a_report(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "dataset"))
    fixture.write_manifest(dataset)
    assert "clips 0 = accepted 0" in Page(Path(write_report(dataset)).read_text("utf-8")).text
    failed = {"status": "failed", "stage": "open", "error": "E", "message": None, "seconds": None}
    dataset.commit_part("a", [fixture.source_row("x.mp4", **failed)], [])
    assert "sources 1 = measured 0 + failed 1" in Page(Path(write_report(dataset)).read_text("utf-8")).text


def test_a_remote_dataset_has_a_report(tmp_path: Path) -> None:
    dataset = fixture.build("memory://report/dataset")
    assert write_report(dataset) == "memory:///report/dataset/report.html"
    assert b"clips <b>13</b>" in dataset.read("report.html")


# ---------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------


def test_a_chart_counts_every_clip_once() -> None:
    values = np.concatenate([np.linspace(0, 1, 980), [-50.0] * 8, [90.0] * 9, [np.nan] * 3])
    status = np.zeros(1000, dtype=int)
    found = chart(values, status, Rule(0.25, 0.75))
    assert (found.scored, found.missing, found.left_out, found.right_out) == (997, 3, 8, 9)
    counted = [int(n) for bar in found.bars for n in re.findall(r"(\d+) accepted", bar.title)]
    assert sum(counted) == 997
    assert max(counted) == found.most
    assert all(0 <= bar.x <= found.width for bar in found.bars)


def test_a_chart_places_cut_offs_on_its_axis() -> None:
    found = chart(np.array([1.0, 2.0, 3.0]), np.zeros(3, dtype=int), Rule(1.5, 10.0))
    lo, hi = axis_range(np.array([1.0, 2.0, 3.0]), [1.5, 10.0])
    for mark, cut in zip(found.cuts, (1.5, 10.0), strict=True):
        expected = charts._LEFT + (cut - lo) / (hi - lo) * (found.width - 2 * charts._LEFT)
        assert mark.x == pytest.approx(expected, abs=0.01)


def test_layers_say_what_became_of_clips() -> None:
    status = np.array([0, 1, 1, 2])  # accepted, rejected, rejected, failed
    found = chart(np.array([5.0, 5.0, 1.0, 5.0]), status, Rule(min=2.0))
    titles = [bar.title.split(": ")[1] for bar in found.bars]
    assert titles == ["1 outside the cut-offs", "1 accepted, 2 not accepted"]


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [0.0], [-1.0, -1.0], [1e-12, 2e-12]])
def test_a_range_is_never_empty(values: list[float]) -> None:
    lo, hi = axis_range(np.array(values), [])
    assert lo < hi
    assert all(lo <= v <= hi for v in values)
    assert chart(np.array(values), np.zeros(len(values), dtype=int), None).scored == len(values)


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-0.3, 12.0) == [0.0, 5.0, 10.0]
    assert ticks(2160.0, 2160.4)[0] == 2160.0


def test_how_things_are_written() -> None:
    assert [clock(0), clock(75.25), clock(59.96), clock(3725.5)] == [
        "0:00.0",
        "1:15.2",
        "1:00.0",
        "1:02:05.5",
    ]
    assert [duration(5), duration(600), duration(36000), duration(None)] == [
        "5.0 s",
        "10.0 min",
        "10.0 h",
        "–",
    ]
    assert [number(12345), number(0.021349), number(None)] == ["12,345", "0.02135", "–"]


def test_cameras_are_counted_by_class(tmp_path: Path) -> None:
    """Three clips: one stands, one pans, one was not scored."""
    made = fixture.build(str(tmp_path / "d"))
    rates = [{"speed": 0.001}, {"speed": 0.1, "pan": 0.1}]
    values = {
        f"camera.{name}": [rate.get(name, 0.0) for rate in rates]
        for name in ("speed", "pan", "tilt", "zoom", "roll", "shake")
    }
    set_rates = 0
    for path in sorted((tmp_path / "d" / "clips").glob("*.parquet")):
        table = pq.read_table(path)
        for name, of in values.items():
            column = [of[set_rates + i] if set_rates + i < len(of) else None for i in range(len(table))]
            table = table.set_column(table.column_names.index(name), name, pa.array(column, pa.float64()))
        set_rates += len(table)
        pq.write_table(table, path)
    text = Page(Path(write_report(made)).read_text("utf-8")).text
    assert re.search(r"Cameras camera clips accepted (static 1 \d pan 1 \d|pan 1 \d static 1 \d) ", text)
    assert (
        "Cameras" not in Page(Path(write_report(fixture.build(str(tmp_path / "e")))).read_text("utf-8")).text
    )
