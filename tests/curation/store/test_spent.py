"""Seconds of work by stage: what is added up, and what is said of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from curation import pipeline
from curation.config.load import load_config
from curation.progress import Progress
from curation.report.page import write_report
from curation.sources.listing import list_sources
from curation.store import spent
from curation.store.dataset import Dataset
from curation.store.spent import Phase, Stage, Timed, told
from tests import render
from tests.conftest import CHEAP
from tests.curation.inline import Inline


def test_what_the_taker_does_does_not_count() -> None:
    def slow_items() -> object:
        for k in range(3):
            time.sleep(0.02)
            yield k

    timed: Timed[int] = Timed(iter(slow_items()))  # type: ignore[call-overload]
    for _ in timed:
        time.sleep(0.1)
    assert 0.06 <= timed.seconds < 0.2


def test_phases_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(str(tmp_path))
    now = 100.0
    monkeypatch.setattr(spent.time, "monotonic", lambda: now)
    phase = Phase()
    for row in (told("measure", "a", 6.0), told("text", "t", 9.0), told("measure", "b", 2.0)):
        phase.add(row)
    now = 110.0
    assert phase.commit(dataset) == "10 s, at work in them: measure 40% of 2 workers, text 90% of 1 worker"
    phase = Phase()
    phase.add(told("measure", "c", 5.0))
    now = 115.0
    phase.commit(dataset)
    assert spent.read(dataset) == {"measure": Stage(13.0, 25.0, 15.0), "text": Stage(9.0, 10.0, 10.0)}
    assert spent.read(dataset)["measure"].busy == pytest.approx(13 / 25)


def test_a_phase_without_work_says_and_writes_nothing(tmp_path: Path) -> None:
    assert Phase().commit(Dataset(str(tmp_path))) == ""
    assert spent.read(Dataset(str(tmp_path))) == {}
    assert Stage().busy == 0.0


def test_a_build_tells_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Work is no more than the time in which one process did it all, and not much less."""
    (tmp_path / "videos").mkdir()
    for k in range(2):
        render.write_video(
            tmp_path / f"videos/{k}.mp4", render.scenes([50 + k, 60, 40], (160, 96), fps=25), fps=25
        )
    text = CHEAP.replace("motion: {}", "motion: {}, text: {}")
    config = load_config(text, ["spans.min_seconds=1", "spans.max_seconds=2", "captions.captioner=none"])
    dataset = Dataset(str(tmp_path / "d"))
    began = time.monotonic()
    with Inline():
        pipeline.build(dataset, list_sources([str(tmp_path / "videos")]), config, Progress())
    took_s = time.monotonic() - began
    found = spent.read(dataset)
    assert found.keys() == {"measure", "text", "cut"}
    assert all(stage.busy_s > 0 for stage in found.values())
    assert 0.3 * took_s < sum(stage.busy_s for stage in found.values()) < took_s
    said = capsys.readouterr().err
    assert "measure: " in said
    assert "of 1 worker" in said
    page = Path(write_report(dataset)).read_text("utf-8")
    assert "Where the time went" in page
    with Inline():  # nothing was done: nothing is added
        pipeline.build(dataset, list_sources([str(tmp_path / "videos")]), config, Progress())
    assert spent.read(dataset) == found
