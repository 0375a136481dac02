"""The keeper of frames: scorers get what they asked for, whatever the source's rate, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from curation.config.schema import Config
from curation.decode.pixels.frame import VideoInfo
from curation.decode.sampling import Keeper, nearest
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from filters.base import pairs, uniform
from tests import render
from tests.curation.helpers import measure
from tests.filters.test_motion import speed


def test_nearest_takes_the_middles_of_equal_parts() -> None:
    times = [k * 0.5 for k in range(20)]
    assert nearest(times, Span(0.0, 8.0, 1), 4) == [2, 6, 10, 14]
    assert nearest(times, Span(2.1, 2.4, 1), 4) == []  # nothing was kept inside
    assert nearest(times, Span(2.0, 2.6, 1), 4) == [4, 5]  # no doubles
    assert nearest([0.0], Span(0.0, 0.0, 1), 4) == [0]  # a still image


@pytest.mark.parametrize("fps", [8, 25, 60])
def test_pairs_are_of_the_frames_nearest_to_the_grid(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "a.mp4"
    render.write_video(path, render.counted(render.scene(1, (320, 192), frames=3 * fps)), fps=fps)
    with Video(str(path)) as video:
        keeper = Keeper(video.info, {"m": pairs(10, 0.1, 256)}, {}, 1.0)
        for frame in video.frames():
            keeper.offer(frame)
    span = Span(0.5, 2.5, 0)
    found = keeper.pairs("m", span)
    half = 0.5 / fps + 1e-6  # nearest: within half a frame; where two are equally near, either will do
    grid = []
    for pair in found:
        first, second = render.read_counter(pair.first) / fps, render.read_counter(pair.second) / fps
        assert pair.dt_s == pytest.approx(second - first)
        assert 0.5 <= first < second < 2.5
        assert pair.first.shape == (154, 256)
        (k,) = (k for k in range(30) if abs(first - k / 10) <= half and abs(second - (k + 1) / 10) <= half)
        grid.append(k)
    assert grid == sorted(set(grid))
    # Below ten frames a second some neighbouring points of the grid are the same frame, and give no pair.
    assert len(grid) >= (14 if fps == 8 else 18)


@dataclass
class Shown:
    """A frame of one grey value."""

    time_s: float
    doubtful: int = 0

    def gray(self, width: int, height: int, *, area: bool = True) -> np.ndarray:
        return np.full((height, width), int(self.time_s * 10), np.uint8)


def test_no_pair_bridges_a_gap_and_the_grid_resumes_behind_it() -> None:
    """Ten frames a second, shown from 0 to 1 s and from 6 to 7 s."""
    info = VideoInfo("mp4", "h264", 64, 48, 64, 48, 0, 1.0, 10.0, 22, 7.1, 0.0)
    keeper = Keeper(info, {"m": pairs(10, 0.1, 64)}, {}, 1.0, thumbnails=False)
    for time_s in [k / 10 for k in range(11)] + [6 + k / 10 for k in range(11)]:
        keeper.offer(Shown(time_s))  # type: ignore[arg-type]
    found = keeper.pairs("m", Span(0.0, 8.0, 22))
    assert [round(pair.dt_s, 6) for pair in found] == [0.1] * 20
    assert sorted({int(pair.first[0, 0]) for pair in found}) == [*range(10), *range(60, 70)]


def test_forgetting_keeps_memory_bounded_and_the_open_scene_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    render.write_video(path, render.counted(render.scene(1, (160, 96), frames=250)), fps=25)
    local = {"m": pairs(10, 0.1, 64), "q": uniform(4, long_side=96, color="gray")}
    with Video(str(path)) as video:
        keeper = Keeper(video.info, local, {"r": uniform(2, long_side=128)}, 2.0)
        for frame in video.frames():
            keeper.offer(frame)
            keeper.forget(frame.time_s - 2.0)
    span = Span(8.0, 10.0, 50)
    assert 3 <= len(keeper.images("q", span, 4)) <= 4
    assert [render.read_counter(i) for i in keeper.images("q", span, 4)] == sorted(
        {render.read_counter(i) for i in keeper.images("q", span, 4)}
    )
    assert len(keeper.pairs("m", Span(0, 10, 250))) <= 21
    assert keeper.images("q", Span(0.0, 5.0, 125), 4) == []
    assert len(keeper.jpegs("r", span, 2)) == 2
    assert keeper.thumbnail(span) is not None


def test_gray_and_rgb_agree_with_an_independent_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    render.write_video(path, render.scene(2, (320, 192), frames=2), fps=25, crf=5)
    with Video(str(path)) as video:
        frame = next(iter(video.frames()))
        full = frame.av.to_ndarray(format="rgb24").astype(float)
        gray = frame.gray(320, 192).astype(float)
        for size in ((320, 192), (160, 96), (64, 38)):
            mean = frame.rgb(*size).reshape(-1, 3).mean(0)
            assert mean == pytest.approx(full.reshape(-1, 3).mean(0), abs=2.0)
    luma = full @ [0.299, 0.587, 0.114]
    assert np.abs(gray - luma).mean() < 1.5
    assert gray.max() > 235 or luma.max() < 235  # full range


def test_the_sampler_feeds_motion_as_its_definition_says(
    footage: Path, cheap_config: Config, tmp_path: Path
) -> None:
    """The one-pass sampler against the reference one of the motion tests, which sees the whole file."""
    path = tmp_path / "pan.mp4"
    render.write_video(path, render.pan(3, (640, 360), fps=24, seconds=4, speed=0.2), fps=24)
    for file in (path, footage / "kitten.mp4", footage / "bigbuckbunny.mp4"):
        clips, _ = measure(file, cheap_config)
        (clip,) = clips
        # The clip is trimmed at both ends, the reference takes everything.
        assert clip["scores"]["motion.speed"] == pytest.approx(speed(file), rel=0.05), file.name
