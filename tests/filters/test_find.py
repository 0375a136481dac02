"""A filter is found by name, by entry point or by import path. What could not work is refused at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from filters import SCORERS, find
from filters.base import ClipInfo, Frames, Pair, Scores, measure_key
from filters.find import NoSuchFilter, scorer_class

GUIDE = Path(__file__).parents[2] / "docs" / "filters.md"
(COLOUR,) = re.findall(r"```python\n(.*?class Colourfulness.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
VIDEO = ClipInfo(4.0, 100, 25.0, 64, 48)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder. Modules that are imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def wrote(folder: Path, name: str, body: str) -> None:
    head = "from dataclasses import dataclass\nfrom filters.base import *\n"
    (folder / f"{name}.py").write_text(head + body)


def test_a_filter_of_fifteen_lines_measures_what_its_formula_says(here: Path) -> None:
    assert len([line for line in COLOUR.splitlines() if line.strip()]) <= 15
    (here / "colour.py").write_text(COLOUR, encoding="utf-8")
    kind = scorer_class("colour:Colourfulness")
    assert (kind.name, [c.name for c in kind.columns]) == ("colourfulness", ["colourfulness.value"])
    scorer = kind()
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 100
    # All pixels: red - green = 100, yellow - blue = 50, without spread.
    assert scorer([Frames(VIDEO, [red])])[0].values["colourfulness.value"] == pytest.approx(0.3 * 12500**0.5)
    half = red.copy()
    half[0] = 0  # half of the pixels are black: mean and deviation are both half as large
    expected = 0.5 * 12500**0.5 + 0.3 * 0.5 * 12500**0.5
    assert scorer([Frames(VIDEO, [half])])[0].values["colourfulness.value"] == pytest.approx(expected)
    grey = np.full((2, 2, 3), 90, np.uint8)
    assert scorer([Frames(VIDEO, [grey]), Frames(VIDEO)]) == [
        Scores({"colourfulness.value": 0.0}),
        Scores({"colourfulness.value": None}),  # a clip without a frame
    ]
    assert scorer.sampling.n == 4
    assert measure_key(scorer) == measure_key(kind())


def test_several_columns_and_pairs(here: Path) -> None:
    wrote(
        here,
        "two",
        """
@dataclass(frozen=True)
class Two(Scorer):
    name = "pair"
    columns = (Column("pair.a"), Column("pair.b"))
    sampling = pairs(2, 0.1, 64)
    def measure(self, frames):
        return {"pair.b": len(frames.pairs)}
""",
    )
    scorer = scorer_class("two:Two")()
    grey = np.zeros((4, 4), np.uint8)
    with_pairs = Frames(VIDEO, (), [Pair(grey, grey, 0.1)])
    assert [s.values for s in scorer([with_pairs, Frames(VIDEO)])] == [
        {"pair.a": None, "pair.b": 1.0},
        {"pair.a": None, "pair.b": None},
    ]


def test_the_filters_of_this_package_keep_their_names() -> None:
    assert [scorer_class(name).name for name in SCORERS] == list(SCORERS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class F:\n    pass\n", "derives from filters.base.Scorer"),
        ("F = 3\n", "derives from filters.base.Scorer"),
        ("class F(Scorer):\n    frames: int = 4\n", "@dataclass"),
        ("@dataclass(frozen=True)\nclass F(Scorer):\n    name = 'caption'\n", "caption"),
        ("@dataclass(frozen=True)\nclass F(Scorer):\n    name = 'Ä b'\n", "small letters"),
        (
            "@dataclass(frozen=True)\nclass F(Scorer):\n    columns = (Column('motion.speed'),)\n",
            "motion.speed",
        ),
        ("@dataclass(frozen=True)\nclass F(Scorer):\n    columns = ()\n", "its columns"),
        ("import no_such_module\n", "no_such_module"),
        ("class G:\n    pass\n", "has no attribute 'F'"),
    ],
)
def test_what_could_not_work_is_refused(here: Path, body: str, message: str) -> None:
    wrote(here, "mine", body)
    with pytest.raises(NoSuchFilter, match=r"^mine:F: .*") as caught:
        scorer_class("mine:F")
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["colour", "a b:C", "os:", ":C", "a.:C", "../a:C", "a/b:C", ""])
def test_a_name_that_is_no_import_path_is_unknown(name: str) -> None:
    with pytest.raises(NoSuchFilter, match=r"unknown measure .* there are duration, .* mypackage\.colour:"):
        scorer_class(name)


def test_the_working_folder_hides_no_installed_module(here: Path) -> None:
    wrote(here, "json", "raise SystemExit('the wrong json')\n")
    with pytest.raises(NoSuchFilter, match="derives from"):
        scorer_class("json:JSONDecoder")


def test_an_entry_point_gives_a_filter_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "colour_of_a_package.py").write_text(COLOUR, encoding="utf-8")
    sys.path.append(str(here))
    points = {
        name: EntryPoint(name, f"colour_of_a_package:{found}", find.GROUP)
        for name, found in (("colourful", "Colourfulness"), ("broken", "Nothing"))
    }
    monkeypatch.setattr(find, "_installed", lambda: points)
    assert scorer_class("colourful").name == "colourfulness"
    with pytest.raises(NoSuchFilter, match="the entry point colour_of_a_package:Nothing fails"):
        scorer_class("broken")
    with pytest.raises(NoSuchFilter, match=r"there are duration, .*, broken, colourful; "):
        scorer_class("nothing")
