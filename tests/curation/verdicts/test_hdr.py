"""`cut.hdr`: clips of HDR sources are tone-mapped, rejected or kept. PyAV reads the sources, too."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path

import av
import numpy as np
import pytest

from curation import api, pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.commands import select
from curation.config.hdr import HDR_NAMES
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode.pixels.hdr import HDR
from curation.progress import Progress
from curation.report.page import render as report
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.verdicts.explain import explain
from curation.verdicts.todo import find_work
from tests import render
from tests.curation.decode.test_hdr import _write as write_hdr
from tests.curation.inline import Inline

TEXT = "filters: {duration: {}, quality: {}}\nrules: {duration.seconds: {min: 0.1}}\ncut: {crf: 4}"


def config(*overrides: str) -> Config:
    over = ["spans.min_seconds=0.1", "spans.max_seconds=2", "spans.trim_seconds=0", "shots.detector=none"]
    return load_config(TEXT, [*over, *overrides])


def _levels(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).reformat(format="yuv420p").to_ndarray()


def test_the_switch(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for transfer in ("pq", "hlg"):
        write_hdr(folder / f"{transfer}.mp4", transfer)
    sdr = render.pan(1, (96, 64), fps=25, seconds=0.4, speed=0.1)
    render.write_video(folder / "sdr.mp4", sdr, fps=25)
    dataset = Dataset(str(tmp_path / "d"))

    def built(settings: Config) -> Inline:
        with Inline() as did:
            pipeline.build(dataset, list_sources([str(folder)]), settings, Progress())
        assert verify(dataset) == []
        return did

    def shards() -> dict[str, bytes]:
        return {Path(row["uri"]).stem: row["video"]["bytes"] for row in dataset.rows("shards")}

    built(config())
    mapped = shards()
    assert set(mapped) == {"pq", "hlg", "sdr"}
    dark = {row["uri"]: row["quality.brightness"] for row in dataset.rows("clips")}

    reject = config("cut.hdr=reject")
    listed = list_sources([str(folder)])
    said = list(explain(dataset, listed, reject, find_work(dataset, listed, reject)))
    assert any("2 that were accepted would be rejected" in line for line in said)
    with Inline() as did:
        select.reselect(dataset, reject, Progress(), nullcontext)
    assert not did.decodes
    assert shards() == {"sdr": mapped["sdr"]}
    rejected = {v["message"] for v in dataset.verdicts() if v["status"] == "rejected"}
    assert rejected == {
        "the source is HDR (PQ), and cut.hdr is reject",
        "the source is HDR (HLG), and cut.hdr is reject",
    }
    assert "  rejected 2 by source.hdr" in accounting(dataset).lines()
    assert verify(dataset) == []
    assert "source.hdr" in report(dataset)
    assert not built(reject).decodes
    built(config())
    assert shards() == mapped

    did = built(config("cut.hdr=keep"))
    assert set(did.measured) == {"pq.mp4", "hlg.mp4"}
    kept = shards()
    for transfer, number in (("pq", 16), ("hlg", 18)):
        with av.open(io.BytesIO(kept[transfer])) as container:
            frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_primaries, frame.color_trc) == (9, 9, number)
        difference = frame.to_ndarray().astype(int) - _levels(folder / f"{transfer}.mp4")
        assert np.abs(difference).mean() < 1.5
    now = {row["uri"]: row["quality.brightness"] for row in dataset.rows("clips")}
    assert {Path(uri).stem for uri in now if now[uri] != dark[uri]} == {"pq", "hlg"}
    assert set(built(config()).measured) == {"pq.mp4", "hlg.mp4"}
    assert shards() == mapped


def test_select_takes_the_switch_as_a_rule(tmp_path: Path) -> None:
    write_hdr(tmp_path / "pq.mp4", "pq")
    dataset = Dataset(str(tmp_path / "d"))
    with Inline():
        pipeline.build(
            dataset, list_sources([str(tmp_path / "pq.mp4")]), config("cut.hdr=reject"), Progress()
        )
    with pytest.raises(ValueError, match="select changes rules only"):
        api.select(str(tmp_path / "d"), set="cut.hdr=keep")
    with pytest.raises(ValueError, match="select changes rules only"):
        api.select(str(tmp_path / "d"), set="cut.crf=20")
    summary = api.select(str(tmp_path / "d"), set="cut.hdr=reject")
    assert (summary.clips, summary.accepted) == (1, 0)


def test_the_default_has_the_hashes_of_before() -> None:
    plain, reject, keep = config(), config("cut.hdr=reject"), config("cut.hdr=keep")
    assert "hdr" not in plain.model_dump()["cut"]
    assert config("cut.hdr=tonemap").hash() == plain.hash()
    assert len({plain.hash(), reject.hash(), keep.hash()}) == 3
    assert reject.cut_hash() == plain.cut_hash() != keep.cut_hash()
    assert reject.spans_hash("smpte2084") == plain.spans_hash() == keep.spans_hash("bt709")
    assert keep.spans_hash("smpte2084") != plain.spans_hash()
    assert set(HDR_NAMES) == set(HDR)
