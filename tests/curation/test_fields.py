"""A build of telecined and interlaced sources, and a later build that scores them again.

The truth: the numbers that are burnt into the pictures of the film (`decode.test_fields`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from curation import pipeline
from curation.audit.verify import verify
from curation.config.load import load_config
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from tests import render
from tests.curation.decode.test_fields import interlaced, number, scene, telecined, write
from tests.curation.helpers import decode
from tests.curation.inline import Inline

CONFIG = """
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
shots: {detector: none}
filters: {duration: {}, quality: {}}
rules: {duration.seconds: {min: 0.5}}
cut: {crf: 12}
"""


def test_clips_hold_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    write(folder / "film.mp4", telecined(scene(24), 100))
    write(folder / "fields.mp4", interlaced(scene(60), 60))
    write(folder / "plain.mp4", (scene(30)(k) for k in range(60)))
    dataset = Dataset(str(tmp_path / "d"))

    def build(*overrides: str) -> Inline:
        with Inline() as did:
            pipeline.build(dataset, list_sources([str(folder)]), load_config(CONFIG, overrides), Progress())
        assert verify(dataset) == []
        return did

    build()
    fields = {Path(s["uri"]).stem: s["fields"] for s in dataset.rows("sources")}
    assert fields == {"film": "telecined", "fields": "interlaced", "plain": "progressive"}
    clips = list(dataset.rows("shards"))
    assert {Path(c["uri"]).stem for c in clips} == set(fields)
    for clip in clips:
        numbers = [render.read_counter(image) for image in decode(clip["video"]["bytes"])]
        name = Path(clip["uri"]).stem
        first = round(clip["start_s"] * {"film": 24, "fields": 30, "plain": 30}[name] / 1.001)
        moments = [(first + k) * (2 if name == "fields" else 1) for k in range(len(numbers))]
        assert numbers == [number(moment) for moment in moments], name
        if name == "film":
            assert clip["fps"] == pytest.approx(24000 / 1001, abs=0.01)

    did = build("filters.quality.frames=6")
    assert set(did.rescored) == {"film.mp4", "fields.mp4", "plain.mp4"}
    assert all(clip["quality.sharpness"] is not None for clip in dataset.rows("clips"))
