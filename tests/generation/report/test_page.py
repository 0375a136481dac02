"""The pages of an evaluation and of a recipe: they are complete, and every address leads to a file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
import torch

from generation.media import write_mp4
from generation.report.page import displayed, hours, number, part_of, write_page, write_recipe_page
from generation.sample.preview_folder import Preview, save_preview
from tests.generation.report.test_curves import write_log

PREVIEW = Preview(
    prompt="a red square",
    negative_prompt="",
    seed=0,
    frames=5,
    height=16,
    width=32,
    fps=8.0,
    sampling={},
    precision="fp32",
    weights_hash="w",
    codec={},
    codec_hash="c",
    text_hash="t",
)
GROUPS = ["colour", "direction"]
READ = {"colour": 0.97, "direction": 0.9, "jointly": 0.875, "jointly_over_chance": 10.5}
ROW = {
    "psnr_db": 27.5,
    "gain_db": -1.25,
    "ssim": 0.91,
    "detail": 0.43,
    "latent_error": 0.6,
    "flicker_db": 31.0,
}
FIGURES: dict[str, Any] = {
    "judge": {"accuracy": {"colour": 1.0, "direction": 0.995}, "direction_by_flow": 0.96},
    "vae": {"psnr_db": 29.5, "ssim": 0.93, "clips": 1234, "fit": True, "detail": 0.0012},
    "stage1": {
        "videos": 64,
        "spread": None,
        **READ,
        "seen": {**READ, "videos": 48},
        "shuffled_prompts": {**READ, "colour": 0.25},
        "untrained": {**READ, "colour": None},
    },
    "stage2": {
        "bicubic": ROW,
        "low_quality": ROW,
        "evaluations_1": {**ROW, "shown": READ},
        "evaluations_4": {**ROW, "shown": READ},
        "shuffled_prompts": {**ROW, "shown": READ},
        "untrained": ROW,
        "usual": {**ROW, "shown": READ},
        "vae_fit": False,
        "wrong_prompts_cost_db": 1.75,
    },
    "chain": {
        **READ,
        "shuffled_prompts": READ,
        "frechet": {"real": 0.01, "two_stage": 0.2, "static": 1.5},
        "kernel_distance": {"real": -0.0005, "two_stage": 0.02, "static": float("nan")},
    },
}
CONTENT: dict[str, Any] = {
    "run": "/somewhere/run",
    "data": "/somewhere/dataset",
    "held_out": None,
    "settings": {"clips": 96, "attributes": {name: ["a", "b"] for name in GROUPS}},
    "figures": FIGURES,
    "notes": ["stage2: VAE unfit: 1.0 dB < 2 dB"],
    "bars": [
        {"passed": True, "told": "passed: vae.psnr_db 29.500, at least 26"},
        {"passed": False, "told": "missed: stage1.colour 0.970, at least 0.99"},
        {"passed": False, "told": "missed: stage1.unseen.colour was not measured"},
    ],
}


class Element:
    """One element of a page."""

    def __init__(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.inside: list[Element | str] = []

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements inside, in order, with this tag and these attributes."""
        wanted = {name.removesuffix("_").replace("_", "-"): value for name, value in attributes.items()}
        found: list[Element] = []
        for part in self.inside:
            if isinstance(part, Element):
                if part.tag == tag and wanted.items() <= part.attributes.items():
                    found.append(part)
                found += part.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        parts = (part if isinstance(part, str) else part.text for part in self.inside)
        return " ".join(" ".join(parts).split())


class Page(HTMLParser):
    """A page as a tree. Parsing checks that every element is closed in the right place."""

    VOID = ("meta", "br")

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(file.read_text("utf-8"))
        assert self._open == [self.root], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].inside.append(found)
        if tag not in self.VOID:
            self._open.append(found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self._open[-1].inside.append(data)


def page_of(file: Path) -> Element:
    return Page(file).root


def leads_to(address: str, base: Path) -> Path:
    """The file that a browser finds at this address, from a page in `base`."""
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("", "", "", ""), address
    return Path(os.fsdecode(os.path.join(os.fsencode(base), unquote_to_bytes(parts.path))))


def movie(height: int, width: int, level: int) -> list[np.ndarray]:
    return [np.full((5, height, width, 3), level, np.uint8)]


def save_videos(folder: Path, prompts: list[str], without_final: tuple[int, ...] = ()) -> list[Path]:
    found = []
    for k, prompt in enumerate(prompts):
        preview = dataclasses.replace(PREVIEW, prompt=prompt)
        found.append(save_preview(folder, k, preview, torch.zeros(1, 2, 2, 2, 2), movie(16, 32, 90)))
        if k not in without_final:
            write_mp4(found[-1] / "final.mp4", movie(32, 64, 160), 8)
    return found


def save_evaluation(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({**CONTENT, **changes}))
    return folder


def paths(figures: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in figures.items():
        found |= paths(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_evaluation(tmp_path_factory.mktemp("page") / "evaluation")
    save_videos(folder / "videos", ["a red square", "a <script>alert(1)</script> & more", "three"], (1,))
    return folder


@pytest.fixture(scope="module")
def page(evaluation: Path) -> Element:
    file = write_page(evaluation, title="Of <this> run")
    assert file == evaluation / "evaluation.html"
    assert not (evaluation / "_evaluation.html").exists()
    return page_of(file)


# ---------------------------------------------------------------------------------------------------
# The page of an evaluation
# ---------------------------------------------------------------------------------------------------


def test_title_and_what_it_is_of(page: Element) -> None:
    assert page.one("h1").text == "Of <this> run"
    assert page.one("title").text == "Of <this> run – reelmill"
    facts = page.one("header").one("dl").text
    assert facts == (
        "run /somewhere/run trained on /somewhere/dataset evaluated on clips that training held out"
    )
    assert '"clips": 96' in page.one("section", id="settings").one("pre").text


def test_bars_come_first_and_missed_ones_are_told_in_words(page: Element) -> None:
    assert page.all("section")[0]["id"] == "bars"
    assert "✗ 2 of 3 bars missed" in page.one("header").text
    bars = [(li["class"], li.text) for li in page.one("section", id="bars").all("li")]
    assert bars == [
        ("missed", "✗ MISSED stage1.colour 0.970, at least 0.99"),
        ("missed", "✗ MISSED stage1.unseen.colour was not measured"),
        ("passed", "✓ passed vae.psnr_db 29.500, at least 26"),
    ]


@pytest.mark.parametrize(
    ("passed", "told"),
    [
        ([True, True], "✓ all 2 bars passed"),
        ([True], "✓ the bar passed"),
        ([], "no bar is set"),
        ([False], "✗ 1 of 1 bar missed"),
    ],
)
def test_the_sum_of_bars(tmp_path: Path, passed: list[bool], told: str) -> None:
    bars = [{"passed": p, "told": "vae.psnr_db 29, at least 26"} for p in passed]
    found = page_of(write_page(save_evaluation(tmp_path, bars=bars)))
    assert found.one("header").one("div", class_="sums").text == told
    assert len(found.one("section", id="bars").all("li")) == len(passed)


def test_notes_are_escaped(page: Element) -> None:
    assert page.one("section", id="notes").one("p").text == "stage2: VAE unfit: 1.0 dB < 2 dB"


def test_every_figure_is_there_once(page: Element) -> None:
    cells = [td for td in page.all("td") if "data-figure" in td.attributes]
    expected = paths(FIGURES)
    assert sorted(td["data-figure"] for td in cells) == sorted(expected)
    for td in cells:
        value = expected[td["data-figure"]]
        assert td.text == number(value)
        assert td["title"] == str(value)


def test_rows_and_columns_of_stage2(page: Element) -> None:
    table, shown = (t for t in page.all("table", class_="figures") if "1 evaluation" in t.text)
    heads = [(th["title"], th.text) for th in table.one("thead").all("th")[1:]]
    assert heads[0] == ("psnr_db", "PSNR ↑ dB")
    assert heads[1] == ("gain_db", "gain over bicubic, of the clips in focus ↑ dB")
    assert [key for key, _ in heads] == list(ROW)
    rows = {tr.one("th").text: [td["data-figure"] for td in tr.all("td")] for tr in table.all("tr")[1:]}
    assert list(rows) == [
        "bicubic control",
        "low-quality copies",
        "1 evaluation",
        "4 evaluations",
        "shuffled prompts control",
        "untrained weights control",
        "as many evaluations as usual",
    ]
    assert rows["untrained weights control"] == [f"stage2.untrained.{key}" for key in ROW]
    assert [th.text for th in shown.one("thead").all("th")] == [
        "shown",
        "colour ↑ share right",
        "direction ↑ share right",
        "all at once ↑ share right",
        "all at once ↑ times chance",
    ]
    assert shown.all("tr")[1].all("td")[0]["data-figure"] == "stage2.evaluations_1.shown.colour"


def test_controls_of_stage1_stand_below_its_own_row(page: Element) -> None:
    (table,) = (t for t in page.all("table", class_="figures") if "words seen together" in t.text)
    rows = {tr.one("th").text: [td.text for td in tr.all("td")] for tr in table.all("tr")[1:]}
    # The order of headings: videos, colour, direction, all at once, all at once over chance.
    assert rows == {
        "all videos": ["64", "0.970", "0.900", "0.875", "10.50"],
        "words seen together": ["48", "0.970", "0.900", "0.875", "10.50"],
        "shuffled prompts control": ["", "0.250", "0.900", "0.875", "10.50"],
        "untrained weights control": ["", "–", "0.900", "0.875", "10.50"],
    }


def test_sets_are_the_rows_of_their_distances(page: Element) -> None:
    (table,) = (t for t in page.all("table", class_="figures") if "Fréchet" in t.text)
    assert [th["title"] for th in table.one("thead").all("th")[1:]] == ["frechet", "kernel_distance"]
    rows = {tr.one("th").text: [td.text for td in tr.all("td")] for tr in table.all("tr")[1:]}
    assert rows["two stages"] == ["0.200", "0.020"]
    assert rows["the final videos, standing still control"] == ["1.500", "–"]
    assert rows["real clips, trained on"] == ["0.010", "−0.0005"]


def test_single_figures(page: Element) -> None:
    rows = [tr.text for t in page.all("table", class_="others") for tr in t.all("tr")]
    assert "PSNR ↑ 29.50 dB" in rows
    assert "clips 1,234" in rows
    assert "fit for Stage II yes" in rows
    assert "autoencoder fit for Stage II no" in rows
    assert "spread of videos of one prompt – levels of 255" in rows
    assert "detail 0.0012 of the true clip's" in rows


def test_figures_that_nobody_has_heard_of() -> None:
    part = part_of(
        "other_part", {"a": {"x": {"deep": {"er": 1}}, "width_db": 2}, "b": {}, "c": [1], "d": "e"}
    )
    assert part.title == "other part"
    assert [(h.words, c.text) for h, c in part.others] == [("c", "[1]"), ("d", "e")]
    assert [t.title for t in part.tables] == ["", "x deep"]
    assert [(h.words, h.unit) for h in part.tables[0].headings] == [("width", "dB")]
    assert [c.path for t in part.tables for r in t.rows for c in r.cells if c] == [
        "other_part.a.width_db",
        "other_part.a.x.deep.er",
    ]


def test_videos_stand_side_by_side(evaluation: Path, page: Element) -> None:
    section = page.one("section", id="videos")
    assert section.one("h2").text == "Videos 3 of 3"
    samples = section.all("figure")
    assert [f.one("figcaption").text for f in samples] == [
        "a red square",
        "a <script>alert(1)</script> & more",
        "three",
    ]
    for k, found in enumerate(samples):
        videos = found.all("video")
        files = [leads_to(v["src"], evaluation) for v in videos]
        assert [f.name for f in files] == ["preview.mp4", "final.mp4"][: 1 if k == 1 else 2]
        assert all(f.is_file() and f.parent.name == found["data-sample"] for f in files)
        assert {(v["width"], v["height"]) for v in videos} == {("256", "128")}
        for video in videos:
            assert {"autoplay", "loop", "muted", "playsinline"} <= video.attributes.keys()
            assert video["class"] == "enlarged"
    assert "preview 32×16 final 64×32" in samples[0].text
    assert "no final video" in samples[1].text
    assert "no final video" not in samples[0].text
    assert re.search(r"video\.enlarged \{[^}]*image-rendering: pixelated", page.one("style").text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 16), (256, 256)),
        ((9, 16), (144, 256)),
        ((100, 200), (200, 400)),
        ((48, 64), (192, 256)),
        ((200, 200), (200, 200)),
        ((10, 300), (10, 300)),
        ((270, 480), (270, 480)),
        ((1080, 1920), (270, 480)),
        ((1920, 1080), (480, 270)),
        ((2, 4000), (1, 480)),
    ],
)
def test_displayed_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert displayed(*size) == expected


def test_nothing_from_elsewhere_and_no_scripts(page: Element) -> None:
    for tag in ("script", "link", "img", "iframe", "object"):
        assert page.all(tag) == []
    policy = page.one("meta", http_equiv="Content-Security-Policy")["content"]
    assert policy == "default-src 'none'; media-src 'self' file:; style-src 'unsafe-inline'"
    assert "url(" not in page.one("style").text


def test_of_many_videos_some_are_shown(tmp_path: Path) -> None:
    save_evaluation(tmp_path)
    first = save_videos(tmp_path / "videos", ["same"])[0]
    for k in range(1, 100):
        os.symlink(first, tmp_path / "videos" / f"{k:04d}-same")
    section = page_of(write_page(tmp_path)).one("section", id="videos")
    assert section.one("h2").text == "Videos 48 of 100, evenly chosen"
    names = [figure["data-sample"] for figure in section.all("figure")]
    assert len(names) == 48
    assert names[0] == "0000-same"
    assert names[-1] == "0099-same"
    gaps = {int(b[:4]) - int(a[:4]) for a, b in pairwise(names)}
    assert gaps == {2, 3}


def test_without_videos(tmp_path: Path) -> None:
    section = page_of(write_page(save_evaluation(tmp_path))).one("section", id="videos")
    assert section.text == "Videos 0 of 0 there are no videos"


@pytest.mark.parametrize("name", ["a b", "50%2F#1?x", "a:b", "q\"<i>&'", "été狐", "\udcff\udc80"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    folder = save_evaluation(tmp_path / name)
    (found,) = save_videos(folder / "videos", ["x"])
    found.rename(folder / "videos" / f"0000-{name}")
    write_page(folder)
    file = write_recipe_page(tmp_path, "t", [(name, folder)], [], [])
    for base, page in ((folder, folder / "evaluation.html"), (tmp_path, file)):
        root = page_of(page)
        assert [leads_to(v["src"], base).is_file() for v in root.all("video")] == [True, True]
    assert [leads_to(a["href"], tmp_path) for a in page_of(file).one("section", id="figures").all("a")] == [
        folder / "evaluation.html"
    ]


@pytest.mark.parametrize("prompt", ["half \udcff surrogate", "line\nbreak", "", "<video>" * 500, "狐が走る"])
def test_any_prompt(tmp_path: Path, prompt: str) -> None:
    save_videos(save_evaluation(tmp_path) / "videos", [prompt])
    section = page_of(write_page(tmp_path)).one("section", id="videos")
    assert len(section.all("video")) == 2
    shown = section.one("figcaption").text
    if len(prompt) > 600:
        assert shown == prompt[:600] + " …"
    else:
        assert shown == " ".join(prompt.replace("\udcff", "?").split())


# ---------------------------------------------------------------------------------------------------
# Missing and broken files
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"evaluation\.json: there is no such file"),
        ('{"figures": ', r"evaluation\.json is not JSON"),
        ("\xff", r"evaluation\.json is not JSON"),
        ("[]", r"evaluation\.json: figures is None"),
        ('{"figures": {}, "notes": [], "bars": 3}', r"evaluation\.json: bars is 3, not a list"),
        ('{"figures": {}, "notes": [], "bars": [{"passed": true}]}', r"\{'passed': True\} is not a bar"),
        ('{"figures": {}, "notes": [], "bars": ["passed"]}', r"'passed' is not a bar"),
    ],
)
def test_broken_evaluations(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "evaluation.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        write_page(tmp_path)
    assert not (tmp_path / "evaluation.html").exists()


def test_broken_videos_are_named_and_the_old_page_stays(tmp_path: Path) -> None:
    (video,) = save_videos(save_evaluation(tmp_path) / "videos", ["x"])
    before = write_page(tmp_path).read_text()
    (video / "final.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"final\.mp4 cannot be read as a video"):
        write_page(tmp_path)
    (video / "preview.json").write_text("{")
    with pytest.raises(ValueError, match=r"preview\.json is not JSON"):
        write_page(tmp_path)
    assert (tmp_path / "evaluation.html").read_text() == before


def test_almost_nothing(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text('{"figures": {"vae": null}, "notes": [], "bars": []}')
    found = page_of(write_page(tmp_path))
    assert found.one("section", id="notes").text == "Notes there are no notes"
    assert found.all("td") == []


# ---------------------------------------------------------------------------------------------------
# The page of a recipe
# ---------------------------------------------------------------------------------------------------

COSTS = [("corpus", "reelmill corpus --out '/a <b>'", 61.6), ("train vae", "reelmill train vae", 3600.4)]


@pytest.fixture(scope="module")
def recipe(evaluation: Path, page: Element) -> Element:
    out = evaluation.parent
    lossless = [{"passed": True, "told": "passed: stage2.usual.gain_db 2.1, at least 2"}]
    save_evaluation(
        out / "evaluation-lossless", bars=lossless, figures={"stage2": FIGURES["stage2"]}, notes=[]
    )
    run = out / "run"
    training = [{"step": s, "loss": 1 / s, "psnr": 20 + s / 100} for s in range(1, 601)]
    write_log(run / "vae" / "log.jsonl", training)
    write_log(run / "vae" / "validation.jsonl", [training[299], training[599]])
    write_log(run / "stage1" / "log.jsonl", [{"step": 1, "loss": 0.5}])
    file = write_recipe_page(
        out,
        "The recipe",
        [("lossless", out / "evaluation-lossless"), ("run", evaluation), ("gone", out / "gone")],
        [(name, run / name) for name in ("vae", "stage1", "stage2")],
        COSTS,
    )
    assert file == out / "recipe.html"
    return page_of(file)


def test_sections_in_their_order(recipe: Element) -> None:
    assert [s["id"] for s in recipe.all("section")] == ["bars", "videos", "curves", "figures", "costs"]
    ids = {s["id"] for s in recipe.all("section")}
    assert {a["href"].removeprefix("#") for a in recipe.one("nav").all("a")} == ids


def test_bars_of_all_evaluations(recipe: Element) -> None:
    section = recipe.one("section", id="bars")
    assert [h.text for h in section.all("h3")] == ["lossless", "run"]
    assert [[li["class"] for li in ul.all("li")] for ul in section.all("ul")] == [
        ["passed"],
        ["missed", "missed", "passed"],
    ]
    assert "✗ 2 of 4 bars missed" in recipe.one("header").text
    assert "✗ gone: evaluation.json is missing" in recipe.one("header").text


def test_samples_of_the_first_evaluation_that_has_some(evaluation: Path, recipe: Element) -> None:
    section = recipe.one("section", id="videos")
    assert section.one("h2").text == "Samples by prompt 3 of 3"
    files = [leads_to(v["src"], evaluation.parent) for v in section.all("video")]
    assert len(files) == 5
    assert all(f.is_file() and (evaluation / "videos") in f.parents for f in files)
    assert not any(v["src"].startswith("/") for v in section.all("video"))


def test_curves(recipe: Element) -> None:
    section = recipe.one("section", id="curves")
    assert [h.text for h in section.all("h3")] == ["vae", "stage1", "stage2"]
    loss, psnr, one = section.all("svg")
    for chart in (loss, psnr):
        assert len(chart.one("polyline", class_="training")["points"].split()) == 300
        assert len(chart.one("polyline", class_="validation")["points"].split()) == 2
        titles = [c.one("title").text for c in chart.all("circle", class_="validation")]
        assert titles[0].startswith("validation, step 300: ")
    assert len(one.all("circle", class_="training")) == 1
    figures = section.all("figure")
    assert "A point is the mean of 2 steps. The axis is logarithmic." in figures[0].text
    assert "training, 26.00 at step 600" in figures[1].text
    missing = [p.text for p in section.all("p") if p.text.endswith("is missing")]
    assert missing == ["validation.jsonl is missing", "log.jsonl is missing", "validation.jsonl is missing"]


def test_figures_of_all_evaluations(evaluation: Path, recipe: Element) -> None:
    section = recipe.one("section", id="figures")
    cells = [td["data-figure"] for td in section.all("td") if "data-figure" in td.attributes]
    assert sorted(cells) == sorted([*paths(FIGURES), *paths({"stage2": FIGURES["stage2"]})])
    assert [a["href"] for a in section.all("a")] == ["evaluation/evaluation.html"]
    assert "stage2: VAE unfit: 1.0 dB < 2 dB" in section.text


def test_costs_and_their_sum(recipe: Element) -> None:
    rows = [[td.text for td in tr.all("td")] for tr in recipe.one("section", id="costs").all("tr")[1:]]
    assert rows == [
        ["corpus", "reelmill corpus --out '/a <b>'", "0:01:02"],
        ["train vae", "reelmill train vae", "1:00:00"],
        ["sum", "", "1:01:02"],
    ]


def test_a_recipe_of_nothing(tmp_path: Path) -> None:
    found = page_of(write_recipe_page(tmp_path, "empty", [], [], []))
    assert [s.text for s in found.all("section")] == [
        "Bars nothing was evaluated",
        "Samples by prompt 0 of 0 there are no videos",
        "Training nothing was trained",
        "Figures nothing was evaluated",
        "What it cost nothing was run",
    ]


# ---------------------------------------------------------------------------------------------------
# Numbers, addresses and sizes
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "inf"),
        (True, "yes"),
        (False, "no"),
        (12345, "12,345"),
        (-3, "−3"),
        (0.0, "0.000"),
        (0.98765, "0.988"),
        (-1.25, "−1.250"),
        (29.678, "29.68"),
        (12345.678, "12,345.68"),
        (0.00012345, "0.000123"),
        (1e-9, "1e−09"),
        ("told-so", "told-so"),
    ],
)
def test_numbers(value: object, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3599.9, "1:00:00"), (360_001, "100:00:01")],
)
def test_hours(seconds: float, expected: str) -> None:
    assert hours(seconds) == expected


def test_bars_without_a_verdict_in_their_words(tmp_path: Path) -> None:
    bars = [{"passed": False, "told": "passed: by the words alone"}]
    found = page_of(write_page(save_evaluation(tmp_path, bars=bars)))
    assert found.one("section", id="bars").one("li").text == "✗ MISSED passed: by the words alone"
