"""The motions of the camera and of things are told apart and measured, on renderings that know both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from curation.decode import measure
from curation.decode.sampling import Keeper
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from filters import motion
from filters.base import ClipInfo, Frames, Pair
from filters.camera import Camera, camera_class
from filters.motion import Motion
from tests.filters.moves import RADIUS, SIZE, STEP_S, Disc, View, clip, frames_of, hand_held, steady
from tests.render import pan, texture, write_video

STEADY = [("pan", 0.02), ("pan", -0.1), ("pan", 0.3), ("tilt", 0.03), ("tilt", -0.2), ("zoom", 0.08)]
STEADY += [("zoom", -0.15), ("zoom", 0.4), ("roll", 5.0), ("roll", -20.0)]
TEXTURES = [(1, 1.1), (2, 1.1), (3, 1.6)]  # seed and slope


def measured(frames: list[np.ndarray]) -> dict[str, float]:
    values = Camera()([clip(frames)])[0].values
    assert all(value is not None and np.isfinite(value) for value in values.values()), values
    return {name.removeprefix("camera."): float(value or 0) for name, value in values.items()}


def named(values: dict[str, float]) -> str | None:
    return camera_class({f"camera.{name}": value for name, value in values.items()})


def speed_of(kind: str, rate: float) -> float:
    """The root mean square speed of the frame's points, by arithmetic."""
    units = {"pan": 1.0, "tilt": 1.0, "zoom": RADIUS, "roll": np.radians(1) * RADIUS}
    return abs(rate) * units[kind]


@pytest.mark.parametrize("disc", [None, Disc()], ids=["alone", "with a thing that moves"])
@pytest.mark.parametrize(("kind", "rate"), STEADY)
def test_rates_and_speed_are_those_of_the_rendering(kind: str, rate: float, disc: Disc | None) -> None:
    for seed, slope in TEXTURES:
        values = measured(frames_of(steady(kind, rate), seed, slope=slope, disc=disc))
        assert values[kind] == pytest.approx(rate, rel=0.1), (seed, values)
        assert values["speed"] == pytest.approx(speed_of(kind, rate), rel=0.1), (seed, values)
        assert named(values) == kind, (seed, values)


def test_the_classes_of_the_camera() -> None:
    """At least 95 of 100 of each class are called by their name, with and without things that move."""
    rng = np.random.default_rng(7)
    found: Counter[tuple[str, str | None]] = Counter()
    least = {"pan": 0.015, "tilt": 0.015, "zoom": 0.05, "roll": 2.5}
    for seed in range(10):
        for disc in (None, Disc(speed=rng.uniform(0.05, 0.25))):
            slope = rng.uniform(1.1, 1.6)
            paths = {k: steady(k, rng.choice([-1, 1]) * a * rng.uniform(1, 8)) for k, a in least.items()}
            paths |= {"static": steady("static", 0), "shake": hand_held(seed, rng.uniform(0.002, 0.01))}
            for kind, path in paths.items():
                values = measured(frames_of(path, seed, slope=slope, disc=disc))
                found[kind, named(values)] += 1
    for kind in (*least, "static", "shake"):
        assert found[kind, kind] >= 0.95 * 20, found


@pytest.mark.parametrize(("kind", "rate"), [("static", 0), *STEADY])
def test_a_move_over_a_still_picture_moves_no_thing(kind: str, rate: float) -> None:
    for seed, slope in TEXTURES:
        values = measured(frames_of(steady(kind, rate), seed, slope=slope))
        assert values["object"] < 0.002, (seed, values)
        assert values["still"] == pytest.approx(values["speed"], rel=0.25, abs=0.001)


def test_pan_and_zoom_at_once_over_a_still_picture_after_a_codec(tmp_path: Path) -> None:
    """A Ken Burns effect: 0.03 and 0.02 widths/s, and 5 % nearer each second."""

    def view(t: float) -> View:
        return View(0.03 * t, 0.02 * t, 1 + 0.05 * t)

    frames = [np.repeat(image[..., None], 3, 2) for image in frames_of(view, 4, seconds=3)]
    path = write_video(tmp_path / "k.mp4", frames, fps=10, crf=26)
    values = scored(path, Motion(), Camera())
    assert values["camera.object"] < 0.002
    assert values["camera.still"] > 0.02
    assert values["motion.speed"] > 0.02  # it passes for motion where only the flow is asked


@pytest.mark.parametrize(("kind", "rate"), [("static", 0), ("pan", -0.1), ("tilt", 0.05), ("zoom", 0.1)])
def test_a_thing_that_moves_is_measured_by_its_area_and_speed(kind: str, rate: float) -> None:
    """A pan to the left moves the picture to the right: the disc is that much slower than the ground."""
    disc = Disc(speed=0.25)
    beside = abs(disc.speed + rate) / disc.speed if kind == "pan" else 1
    values = measured(frames_of(steady(kind, rate), 2, disc=disc))
    assert 0.5 * beside * disc.moved < values["object"] < 1.3 * beside * disc.moved
    assert values["still"] == 0


def test_a_thing_before_a_faint_wall_does_not_move_the_camera() -> None:
    """The disc has nearly all of the texture."""
    frames = frames_of(steady("static", 0), 5, slope=1.6, disc=Disc(0.18, 0.2))
    bare = frames_of(steady("static", 0), 5, slope=1.6)
    wall = [
        np.where(a == b, 120 + (b.astype(float) - 120) * 0.12, a).astype(np.uint8)
        for a, b in zip(frames, bare, strict=True)
    ]
    values = measured(wall)
    assert named(values) == "static", values
    assert values["object"] > 0.5 * Disc(0.18, 0.2).moved


def test_a_caption_does_not_move_where_the_picture_does() -> None:
    frames = frames_of(steady("pan", 0.05), 3)
    for image in frames:
        image[118:126, 20:236] = texture(8, 8, 216)[..., 0]
    values = measured(frames)
    assert values["object"] < 0.002
    assert values["pan"] == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("reach", [0.002, 0.005, 0.01])
def test_shake_is_the_speed_of_the_hand(reach: float) -> None:
    path = hand_held(3, reach)
    views = [path(k * STEP_S) for k in range(31)]
    truth = np.mean([np.hypot(b.right - a.right, b.up - a.up) for a, b in pairwise(views)]) / STEP_S
    values = measured(frames_of(path, 2, seconds=3))
    assert values["speed"] == pytest.approx(truth, rel=0.1)
    assert values["shake"] > 0.5 * values["speed"]
    assert values["still"] == 0
    assert measured(frames_of(steady("pan", 0.1), 2))["shake"] < 0.005


def scored(path: Path, *scorers: Motion | Camera) -> dict[str, float]:
    """As measuring does it: one keeper for all scorers of a source."""
    named = {scorer.name: scorer for scorer in scorers}
    with Video(str(path)) as video:
        keeper = Keeper(video.info, {n: s.sampling for n, s in named.items()}, {}, 1, thumbnails=False)
        for frame in video.frames():
            keeper.offer(frame)
    span = Span(0, 100, 24)
    info = ClipInfo(duration_s=1, frames=24, fps=24, width=320, height=180)
    scores, _ = measure.scored(keeper, span, info, named, {})
    return {name: float(value or 0) for name, value in scores.items()}


def test_the_flow_of_a_pair_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    flow = motion.flow
    monkeypatch.setattr(motion, "flow", lambda *given: calls.append(1) or flow(*given))
    path = write_video(tmp_path / "p.mp4", pan(3, (320, 180), fps=24, seconds=2, speed=0.1))
    alone = scored(path, Motion())["motion.speed"]
    pairs = len(calls)
    assert pairs == 19  # of 0.1 s within 47 frames' time
    together = scored(path, Motion(), Camera())
    assert len(calls) == 2 * pairs
    assert together["motion.speed"] == alone
    other = scored(path, Motion(), Camera(analysis_width=64))
    assert len(calls) == 4 * pairs  # another width is another flow
    assert other["motion.speed"] == alone


def test_a_clip_without_pairs_has_no_numbers_and_no_class() -> None:
    values = Camera()([Frames(ClipInfo(1, 2, 24, 64, 64))])[0].values
    assert set(values.values()) == {None}
    assert camera_class(values) is None
    assert camera_class({}) is None


@pytest.mark.parametrize("shape", [(1, 256), (5, 256), (455, 256), (1024, 256), (144, 256)])
@pytest.mark.parametrize("change", [lambda a: np.roll(a, 3, 1), lambda a: 255 - a, np.zeros_like, np.array])
def test_any_shape_gives_finite_numbers(
    shape: tuple[int, int], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    first = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pairs = [Pair(first, change(first), 0.1)] * 3
    values = Camera()([Frames(ClipInfo(1, 2, 24, 64, 64), pairs=pairs)])[0].values
    assert np.isfinite([np.nan if v is None else v for v in values.values()]).all(), values


def test_sizes_of_the_renderings() -> None:
    assert frames_of(steady("static", 0))[0].shape == SIZE[::-1]
