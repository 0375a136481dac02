"""The detector `similarity`: rendered films whose changes are known, and real films that people labelled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.likeness.score import Score, overlap, score
from benchmarks.likeness.shots import Labels, labels
from curation.config.load import load_config
from curation.decode.shots.base import Cut
from curation.decode.shots.choice import make_detector
from curation.decode.shots.scenes import Scenes
from curation.decode.video import Video
from tests import render
from tests.conftest import CHEAP, SHARED

SIZE = (320, 180)
MIN_SCENE_SECONDS = 0.6


def found(path: Path) -> list[Cut]:
    with Video(str(path), skip_loop_filter=True) as video:
        detector = make_detector("similarity", None, 0, exact=False, fps=video.info.fps or 25.0)
        cuts = [c for frame in video.frames() for c in detector.push(frame)]
        return cuts + detector.finish()


def of_frames(folder: Path, frames: Iterable[np.ndarray], fps: int = 25) -> list[Cut]:
    return found(render.write_video(folder / "a.mp4", frames, fps=fps))


def hard(cuts: list[Cut]) -> list[int]:
    return [c.index for c in cuts if not c.frames]


def ranges(cuts: list[Cut]) -> list[tuple[int, int]]:
    return [(c.index, c.index + c.frames - 1) for c in cuts if c.frames]


@pytest.mark.parametrize("fps", [10, 25, 60])
def test_hard_cuts_are_found_to_the_frame(tmp_path: Path, fps: int) -> None:
    lengths = [70, 33, 90, 41, 60]
    cuts = of_frames(tmp_path, render.scenes(lengths, SIZE, fps=fps, speed=0.03), fps)
    assert hard(cuts) == render.cut_frames(lengths)
    assert ranges(cuts) == []


def test_times_of_cuts_are_presentation_times(tmp_path: Path) -> None:
    pts = [4.5 + k / 25 for k in range(100)]
    path = render.write_video(tmp_path / "a.mp4", render.scenes([40, 60], SIZE, fps=25), fps=25, pts=pts)
    (cut,) = found(path)
    assert (cut.index, cut.frames, cut.resumes_s) == (40, 0, None)
    assert cut.time_s == pytest.approx(4.5 + 40 / 25)


@pytest.mark.parametrize("length", [8, 16, 30])
def test_a_dissolve_is_a_range_of_frames(tmp_path: Path, length: int) -> None:
    one, two = (render.scene(seed, SIZE, frames=80, fps=25) for seed in (3, 4))
    cuts = of_frames(tmp_path, render.dissolve(one, two, length))
    assert hard(cuts) == []
    ((first, last),) = ranges(cuts)
    assert overlap((first, last), (80 - length, 79)) >= 0.7
    (cut,) = cuts
    assert cut.time_s == pytest.approx(first / 25)
    assert cut.resumes_s == pytest.approx((last + 1) / 25)


@pytest.mark.parametrize("ground", [0, 255])
def test_a_fade_out_and_a_fade_in_are_ranges(tmp_path: Path, ground: int) -> None:
    flat = np.full((SIZE[1], SIZE[0], 3), ground, np.uint8)
    one, two = (list(render.scene(seed, SIZE, frames=90, fps=25)) for seed in (3, 4))
    out = render.dissolve(one, render.slide(flat, 40), 20)
    into = render.dissolve(render.slide(flat, 30), two, 20)
    cuts = of_frames(tmp_path, itertools.chain(out, into))
    assert hard(cuts) == []
    # 90 + 40 - 20 frames come before the second part, whose first 10 frames are flat.
    wanted = [(70, 89), (120, 139)]
    assert [max(overlap(w, r) for r in ranges(cuts)) >= 0.6 for w in wanted] == [True, True]
    assert len(ranges(cuts)) == 2


def flashed(frames: Iterable[np.ndarray], at: dict[int, int]) -> Iterable[np.ndarray]:
    """at: number of the frame -> grey level of the whole frame."""
    return (np.full_like(f, at[k]) if k in at else f for k, f in enumerate(frames))


def threes(seed: int, speed: float, angle: float) -> Iterable[np.ndarray]:
    """8 pictures a second, each shown three times."""
    pictures = render.pan(seed, SIZE, fps=8, seconds=5, speed=speed, angle=angle)
    return itertools.chain.from_iterable([f] * 3 for f in pictures)


def shot(seed: int) -> Iterable[np.ndarray]:
    return render.scene(seed, SIZE, frames=100, fps=24)


TRAPS: dict[str, Callable[[], Iterable[np.ndarray]]] = {
    "a pan, each picture three times": lambda: threes(7, 0.15, 0),
    "a faster pan, each picture three times": lambda: threes(5, 0.4, 20),
    "a fast pan": lambda: render.pan(6, SIZE, fps=24, seconds=4, speed=1.5),
    "one white frame": lambda: flashed(shot(1), {50: 255}),
    "a flash of three frames": lambda: flashed(shot(2), {50: 180, 51: 255, 52: 160}),
    "two black frames": lambda: flashed(shot(3), {50: 0, 51: 0}),
    "a still picture": lambda: render.slide(next(iter(shot(8))), 100),
}


@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_change_of_shot(tmp_path: Path, name: str) -> None:
    assert of_frames(tmp_path, TRAPS[name](), 24) == []


def test_a_cut_between_grey_pictures_is_found(tmp_path: Path) -> None:
    """Where hue and saturation say nothing."""
    frames = [
        np.repeat(f.mean(2, keepdims=True).astype(np.uint8), 3, 2)
        for f in render.scenes([60, 60], SIZE, fps=25)
    ]
    assert hard(of_frames(tmp_path, frames)) == [60]


def test_frames_of_a_transition_belong_to_no_clip() -> None:
    """Frames 40 to 59 at 10 frames per second are a dissolve; nothing is trimmed."""
    config = load_config(CHEAP, ["spans.min_seconds=1", "spans.max_seconds=3", "spans.trim_seconds=0"])
    scenes = Scenes(config, 0.0, 100)
    spans = []
    for k in range(100):
        cuts = [Cut(40, 4.0, 20, 6.0)] if k == 80 else []
        spans += scenes.push(k / 10, cuts)
    spans += scenes.finish(10.0, [Cut(95, 9.5, 5, float("inf"))])
    assert [(s.start_s, s.end_s, s.frames) for s in spans] == [
        (0.0, 2.0, 20),
        (2.0, 4.0, 20),
        (6.0, pytest.approx(7.75, abs=0.06), pytest.approx(17.5, abs=0.6)),
        (pytest.approx(7.75, abs=0.06), 9.5, pytest.approx(17.5, abs=0.6)),
    ]


@pytest.fixture(scope="module")
def on_labelled_films() -> dict[str, tuple[Score, Labels]]:
    if not (SHARED / "data" / "film" / "truth.json").is_file():
        pytest.skip("the labelled films are not here")
    results = {}
    for path, of in labels(SHARED / "data").items():
        with Video(str(path)) as video:
            fps = video.info.fps or 25.0
        results[path.name] = score(found(path), of, MIN_SCENE_SECONDS * fps - 1e-6), of
    return results


def test_labelled_hard_cuts_are_found(on_labelled_films: dict[str, tuple[Score, Labels]]) -> None:
    total = Score()
    for one, _ in on_labelled_films.values():
        total += one
    assert len(total.hits) + len(total.missed) >= 70
    assert len(total.hits) / (len(total.hits) + len(total.missed)) >= 0.96
    assert len(total.hits) / (len(total.hits) + len(total.false)) >= 0.97


def test_labelled_gradual_transitions_are_found(on_labelled_films: dict[str, tuple[Score, Labels]]) -> None:
    total = Score()
    for one, _ in on_labelled_films.values():
        total += one
    assert len(total.found) + len(total.unfound) == 29
    assert len(total.found) / 29 >= 0.75
    assert len(total.found) / (len(total.found) + len(total.false_ranges)) >= 0.85
