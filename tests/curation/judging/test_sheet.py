"""`reelmill advise`: its lines, its contact sheet, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner, Result

from curation.report import sheet
from curation.store.dataset import Dataset
from curation.store.lease import Lease
from jobs.cli import app
from tests.curation import dataset_fixture as fixture
from tests.curation.report.test_page import Page


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_tells_and_writes_its_page_alone(tmp_path: Path) -> None:
    fixture.build(str(tmp_path / "d"))
    before = content(tmp_path / "d")
    told = reelmill("advise", tmp_path / "d", "--keep", "70%")
    assert told.exit_code == 0, (told.output, told.exception)
    lines = told.stdout.split("\n")
    assert "clips 13 (57.0 s), 7 pass all rules (53.8 %; 30.0 s)" in lines
    assert "  motion.speed           0.02 to 0.8  alone 2 of 12 (10.0 s), last 2 (10.0 s)" in lines, (
        told.stdout
    )
    assert any(line.startswith("to keep 70.0 % of the clips (now 53.8 %): bounds loosened") for line in lines)
    assert "  not moved: duration.seconds" in lines
    assert lines[-2] == f"page  {tmp_path / 'd' / 'advice.html'}"
    after = content(tmp_path / "d")
    assert after.keys() - before.keys() == {"advice.html"}
    assert {name: data for name, data in after.items() if name != "advice.html"} == before


def test_the_page_shows_both_sides_of_each_cut_off(tmp_path: Path) -> None:
    fixture.build(str(tmp_path / "d"))
    assert reelmill("advise", tmp_path / "d", "--keep", "70%").exit_code == 0
    text = (tmp_path / "d" / "advice.html").read_text("utf-8")
    page = Page(text)
    shown = [a["data-shown"] for a in page.all("h2", "data-shown")]
    assert [s for s in shown if s.endswith(", now")] == [
        "at least 3, now",
        "at least 0.02, now",
        "at most 0.8, now",
        "at least 4.5, now",
    ]
    assert [s for s in shown if s.endswith(", for the wanted share")]
    assert "Just below 4.5 is rejected" in page.text
    assert "Just at or above 4.5 passes" in page.text
    assert len(page.all("img")) == len(page.all("figure")) > 30  # all clips of the fixture have a thumbnail
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert not page.all("script") + page.all("link")
    assert "what each rule rejects alone" in page.text


def test_the_nearest_clips_stand_on_their_side() -> None:
    values = np.array([0.1, 0.5, np.nan, 0.3, 0.9])
    for is_min, below in ((True, [0.3, 0.1]), (False, [0.9])):
        rejected, passing = sheet._shown(values, sheet.Cut(0.5, is_min, "now")).strips
        assert [t.value for t in rejected.tiles] == below
        assert [t.value for t in passing.tiles] == ([0.5, 0.9] if is_min else [0.5, 0.3, 0.1])
        assert (rejected.passes, passing.passes) == (False, True)


def test_another_command_at_work_does_not_hinder_it(tmp_path: Path) -> None:
    dataset = fixture.build(str(tmp_path / "d"))
    left = tmp_path / "d" / "_tmp-01234567-advice.html"
    left.write_text("half")
    with Lease(Dataset(dataset.location), "build"):
        assert reelmill("advise", tmp_path / "d").exit_code == 0
        assert left.exists()
    assert reelmill("advise", tmp_path / "d").exit_code == 0
    assert not left.exists()
    assert not list((tmp_path / "d").glob("_*"))


def test_wrong_words_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    fixture.build(str(tmp_path / "d"))
    before = content(tmp_path)
    for options, says in (
        (["--keep", "30"], "30% or 0.3"),
        (["--by", "hours", "--keep", "30%"], "seconds"),
        (["--labels", tmp_path / "none.csv"], "none.csv"),
    ):
        refused = reelmill("advise", tmp_path / "d", *options)
        assert refused.exit_code == 2, refused.output
        assert says in refused.stderr
    assert reelmill("advise", tmp_path / "none").exit_code == 2
    assert content(tmp_path) == before
