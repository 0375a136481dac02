"""The count of captions, on the dataset whose captions the fixture wrote."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from curation.audit.captioned import captioned_line
from curation.report.page import render
from curation.store.dataset import Dataset
from jobs.cli import app
from tests.curation import dataset_fixture as fixture

# Of the six accepted clips the still alone has none.
LINE = "captions 5 of 6 accepted clips (sidecar 5), 1 have none"


def test_status_and_report_say_how_many_clips_have_a_caption(tmp_path: Path) -> None:
    dataset = fixture.build(str(tmp_path / "d"))
    assert captioned_line(dataset) == LINE
    assert LINE in CliRunner().invoke(app, ["status", str(tmp_path / "d")]).output
    assert LINE in render(dataset)


def test_by_captioner_and_without_any(tmp_path: Path) -> None:
    dataset = fixture.build(str(tmp_path / "d"))

    def by_model(rows: list[fixture.Row]) -> list[fixture.Row]:
        first = {**rows[0]["captions"][0], "text": "of a model", "captioner": "endpoint"}
        return [rows[0] | {"caption": "of a model", "captions": [first, *rows[0]["captions"]]}, *rows[1:]]

    def without(rows: list[fixture.Row]) -> list[fixture.Row]:
        return [row | {"caption": None, "captions": []} for row in rows]

    fixture.rewrite(dataset, "shards", "shard-00000", by_model)
    expected = "captions 5 of 6 accepted clips (sidecar 4, endpoint 1), 1 have none"
    assert captioned_line(dataset) == expected
    for part in dataset.parts("shards"):
        fixture.rewrite(dataset, "shards", part, without)
    assert captioned_line(dataset) == "captions 0 of 6 accepted clips, 6 have none"
    assert captioned_line(Dataset(str(tmp_path / "empty"))) is None
