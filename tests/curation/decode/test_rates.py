"""The rate of clips of sources whose rate varies. The truth: numbers that are burnt into the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.config.load import load_config
from curation.decode.container.rates import clip_rate
from tests import render
from tests.curation.helpers import cut, decode, measure

CONFIG = "filters: {duration: {}}\nrules: {}\ncut: {preset: ultrafast, crf: 20}"
WHOLE = ["shots.detector=none", "spans.min_seconds=1", "spans.max_seconds=10", "spans.trim_seconds=0"]


def _clip(path: Path, times: list[float], fps: float = 30) -> tuple[float, list[int], float]:
    """(rate, the numbers in the frames, seconds) of the one clip of a source with such times."""
    frames = render.counted(render.pan(3, (96, 72), fps=10, seconds=len(times) / 10, speed=0.02))
    render.write_video(path, frames, fps=fps, pts=times)
    clips, source = measure(path, load_config(CONFIG, WHOLE))
    assert source["frames"] == len(times)
    ((written, mp4),) = cut(path, clips, load_config(CONFIG, WHOLE))
    return written["fps"], [render.read_counter(frame) for frame in decode(mp4)], clips[0]["end_s"]


def _bursts(rate: float, burst_s: float, still_s: float, times: int) -> list[float]:
    """A still, then a burst, again and again; the last frame closes the last burst."""
    found, now = [], 0.0
    for _ in range(times):
        found.append(now)
        now += still_s
        found += [now + k / rate for k in range(round(burst_s * rate))]
        now += burst_s
    return [*found, now]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(
    ("rate", "burst_s", "still_s", "times"),
    [(60, 0.5, 2.5, 3), (60, 1, 7.5, 1), (60, 1.5, 0.25, 4), (30, 0.5, 2, 3), (50, 0.4, 1.2, 5)],
)
def test_a_burst_keeps_its_frames(
    rate: float, burst_s: float, still_s: float, times: int, name: str, tmp_path: Path
) -> None:
    moments = _bursts(rate, burst_s, still_s, times)
    if name.endswith("mkv"):
        moments = [round(t, 3) for t in moments]  # as Matroska stores them
    fps, numbers, _ = _clip(tmp_path / name, moments)
    assert fps == pytest.approx(rate)
    assert set(numbers) >= set(range(len(moments) - 1))
    assert numbers == sorted(numbers)
    for k in range(len(moments) - 1):  # each is shown for as long as in the source, to a frame
        assert numbers.count(k) == pytest.approx((moments[k + 1] - moments[k]) * rate, abs=1.01)


def test_a_telephone_between_30_and_24_loses_no_more_than_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for share in (0.25, 0.5, 0.75):
        gaps = [1 / 30] * round(240 * share) + [1 / 24] * round(240 * (1 - share))
        times = np.cumsum([0.0, *(g + rng.uniform(-0.004, 0.004) for g in gaps)]).tolist()
        fps, numbers, seconds = _clip(tmp_path / f"{share}.mp4", times)
        middles = (np.arange(len(times)) + 0.5) * seconds / len(times)  # at the mean rate
        kept_at_the_mean = len(set(np.searchsorted(times, middles, side="right")))
        assert len(set(numbers)) >= kept_at_the_mean
        assert 23.9 < fps < 30.1


@pytest.mark.parametrize("jitter", [0.0, 0.003, 0.008])
def test_an_unsteady_rate_is_its_mean(jitter: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    times = [k / 30 + rng.uniform(0, jitter) for k in range(150)]
    fps, numbers, _ = _clip(tmp_path / "a.mp4", times)
    assert fps == pytest.approx(30, rel=0.01)
    assert len(set(numbers)) >= 148


def test_a_source_that_drops_frames_keeps_the_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    kept = sorted(rng.choice(300, 240, replace=False).tolist())
    fps, numbers, _ = _clip(tmp_path / "a.mp4", [k / 30 for k in kept])
    assert fps == pytest.approx(30)
    assert set(numbers) == set(range(240))


def test_repeats_have_a_bound(tmp_path: Path) -> None:
    """At most 60 frames per second, and 20 for each frame of the source."""
    fps, numbers, seconds = _clip(tmp_path / "a.mp4", _bursts(120, 1, 3.5, 2))
    assert fps == 60
    assert len(numbers) == round(60 * seconds)
    slow = [0.0, 0.001, 0.002, 0.003, 9.0]
    fps, numbers, _ = _clip(tmp_path / "b.mp4", slow)
    assert len(numbers) <= 20 * len(slow)


def test_the_arithmetic_of_one_clip() -> None:
    stills = [0.0, 2.5, 5.0]
    burst = [t + 0.0 + k / 60 for t in (1.0, 3.5) for k in range(30)]
    assert clip_rate(sorted([*stills, *burst]), 6.0, 10.0) == 60
    assert clip_rate([k / 25 for k in range(100)], 4.0, 25.0) == 25.0
    assert clip_rate([0.0], 2.0, None) == 0.5
