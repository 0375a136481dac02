"""A captioner and a shot detector of one's own, by import path, in a build on Ray; and where they are not
installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.config.load import load_config
from curation.config.schema import ConfigError
from curation.decode.shots.scenes import detector_of
from generation.data.shards import frames
from tests import render
from tests.curation.test_own_filters import TRAP, reelmill, run, shard_rows

MINE = """
from dataclasses import dataclass, field

import numpy as np

from captioning.base import CaptionRequest, OwnCaptioner
from curation.decode.shots import Cut, OwnDetector


@dataclass(frozen=True)
class Brightness(OwnCaptioner):
    dark: float = 60

    def caption(self, clip: CaptionRequest) -> str:
        mean = np.mean(clip.pictures)
        return f"{len(clip.pictures)} pictures of {mean:.1f} are {'dark' if mean < self.dark else 'bright'}."


@dataclass
class EveryFewFrames(OwnDetector):
    frames: int = 30
    seen: int = field(default=0, init=False)

    def push(self, frame):
        self.seen += 1
        is_cut = self.seen > 1 and (self.seen - 1) % self.frames == 0
        return [Cut(self.seen - 1, frame.time_s)] if is_cut else []
"""
CONFIG = """
base: none
spans: {min_seconds: 0.5, max_seconds: 2, trim_seconds: 0.1}
filters: {duration: {}}
shots: {detector: "mine:EveryFewFrames", own: {frames: 20}, min_scene_seconds: 0.2}
captions: {captioner: "mine:Brightness", own: {dark: 300}}
run: {object_store_mb: 128}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("mine")
    (place / "footage").mkdir()
    render.write_video(place / "footage" / "a.mp4", render.scenes([60], (128, 96), fps=20, seed=1), fps=20)
    (place / "mine.py").write_text(MINE)
    (place / "c.yaml").write_text(CONFIG)
    run("build", "footage", "--out", "d", "--config", "c.yaml", cwd=place)
    return place


def test_the_detector_decides_where_clips_end(place: Path) -> None:
    """A cut every 20 frames at 20 frames a second, and 0.1 s less at both ends."""
    spans = sorted((row["start_s"], row["end_s"]) for row in shard_rows(place / "d"))
    assert np.allclose(spans, [(0.1, 0.9), (1.1, 1.9), (2.1, 2.9)], atol=0.051)


def test_the_captioner_says_what_it_sees(place: Path) -> None:
    for row in shard_rows(place / "d"):
        said = re.fullmatch(r"4 pictures of ([\d.]+) are dark\.", str(row["caption"]))
        assert said is not None, row["caption"]
        assert float(said[1]) == pytest.approx(frames(row).mean(), abs=3)  # all frames of the clip
    captions = pq.read_table(place / "d" / "captions").to_pylist()
    assert {(c["captioner"], c["kind"]) for c in captions} == {("brightness", "long")}


def test_another_parameter_captions_again_and_measures_nothing(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "p")
    over = ["--set", "captions.own.dark=1"]
    said = run("build", "footage", "--out", "d", "--config", "c.yaml", *over, cwd=tmp_path / "p")
    assert "measured or scored again" not in said
    assert {str(row["caption"]).split()[-1] for row in shard_rows(tmp_path / "p" / "d")} == {"bright."}


def test_a_dataset_names_them_and_nothing_runs(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = shutil.copytree(place / "d", tmp_path / "d")
    (tmp_path / "mine.py").write_text(MINE + TRAP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in ("status", "verify", "report", "select"):
        assert reelmill(command, dataset).exit_code == 0, command
    for seconds in (9, 0):  # all clips go, and are cut again by workers
        done = reelmill("select", dataset, "--set", f"rules.duration.seconds.min={seconds}")
        assert done.exit_code == 0, done.output
        assert not (tmp_path / "imported").exists()
    build = ("build", place / "footage", "--out", dataset, "--config", dataset / "dataset.json")
    for arguments in (build, ("caption", dataset, "--set", "captions.own.dark=1")):
        refused = reelmill(*arguments)
        assert refused.exit_code == 2, refused.output
        assert "--set captions.captioner=mine:Brightness" in refused.output
    assert "--set shots.detector=mine:EveryFewFrames" in reelmill(*build).output
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("captions: {captioner: nobody}", "captions.captioner: unknown 'nobody': there are none, sidecar"),
        ("captions: {captioner: 'no_such:Thing'}", "captions.captioner: no_such:Thing: No module named"),
        ("captions: {captioner: 'json:JSONDecoder'}", "derives from captioning.base.OwnCaptioner"),
        ("captions: {own: {a: 1}}", "captions.own: these are parameters of a class of your own"),
        (
            "shots: {detector: nothing}",
            "shots.detector: unknown 'nothing': there are similarity, content, adaptive",
        ),
        ("shots: {own: {a: 1}}", "shots.own: these are parameters of a class of your own"),
    ],
)
def test_a_wrong_name_is_one_sentence(config: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    assert message in str(caught.value)


def test_a_detector_that_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"shots\.detector: json:JSONDecoder: .*OwnDetector"):
        detector_of(load_config("shots: {detector: 'json:JSONDecoder'}"), 25.0)


def test_a_configuration_without_them_has_the_hashes_of_before() -> None:
    config = load_config("shots: {detector: adaptive}")  # the default is another one since
    assert "own" not in config.model_dump()["shots"]
    assert "own" not in config.model_dump()["captions"]
    assert (config.spans_hash(), config.hash()) == (
        "11f42427179c68db",
        "aafc43d6a37c06c7",
    )  # of version 0.1.0
