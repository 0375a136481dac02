"""Invariant I5: an accepted clip holds frames of its own scene only, and its times are presentation times.

Every rendered frame carries its number, so what was cut can be compared with what was asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.config.load import load_config
from curation.config.schema import Config
from curation.sources.listing import list_sources
from tests import render
from tests.conftest import CHEAP
from tests.curation.helpers import cut, decode, measure

LENGTHS = [60, 75, 50]  # frames of three shots
FPS = 25
SIZE = (320, 192)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(
        CHEAP, ["spans.min_seconds=1", "spans.max_seconds=1.5", "spans.trim_seconds=0.1", "cut.crf=12"]
    )


def _variable_times(n: int) -> list[float]:
    """Frame gaps of 20 to 80 ms, as a telephone makes them."""
    rng = np.random.default_rng(7)
    return [float(t) for t in np.cumsum(np.concatenate([[0.0], rng.choice([0.02, 0.04, 0.08], n - 1)]))]


VARIANTS = {
    "plain.mp4": {},
    "plain.mkv": {},
    "delayed.mp4": {"pts": [1.075 + k / FPS for k in range(sum(LENGTHS))]},
    "stream.ts": {"pts": [1.4 + k / FPS for k in range(sum(LENGTHS))]},
    "vfr.mp4": {"pts": _variable_times(sum(LENGTHS))},
    "vfr.mkv": {"pts": [round(t, 3) for t in _variable_times(sum(LENGTHS))]},
    "rotated90.mp4": {"rotation": 90},
    "rotated180.mp4": {"rotation": 180},
    "rotated270.mp4": {"rotation": 270},
    "anamorphic.mp4": {"sar": (4, 3)},
    "narrow.mp4": {"sar": (3, 4)},
    "mpeg4.avi": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hevc.mp4": {"codec": "libx265", "options": {"preset": "ultrafast"}},
    "longgop.mp4": {"gop": 250},
}


@pytest.mark.sampled("times", keep=6)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_clip_holds_exactly_its_own_frames(name: str, tmp_path: Path, config: Config) -> None:
    options = dict(VARIANTS[name])
    path = tmp_path / name
    rotation = options.get("rotation", 0)
    size = SIZE[::-1] if rotation % 180 else SIZE  # as displayed; the writer stores it turned
    frames = render.counted(render.scenes(LENGTHS, size, fps=FPS))
    render.write_video(path, frames, fps=FPS, **options)
    stored = [t for t, _ in render.read_frames(path)]
    times = options.get("pts") or stored
    clips, source = measure(path, config)

    assert source["frames"] == sum(LENGTHS)
    assert source["is_vfr"] == name.startswith("vfr")
    width, height = size
    if name == "anamorphic.mp4":
        width = round(width * 4 / 3)
    elif name == "narrow.mp4":
        height = round(height * 4 / 3)
    assert (source["width"], source["height"]) == (width, height)

    bounds = np.cumsum([0, *LENGTHS])
    seen_scenes = set()
    for clip, (written, mp4) in zip(clips, cut(path, clips, config), strict=True):
        assert written["kind"] == "clip", written
        pictures = decode(mp4)
        numbers = [render.read_counter(p) for p in pictures]
        assert len(pictures) == written["frames"]
        assert pictures[0].shape[:2] == (written["height"], written["width"])
        assert (written["width"], written["height"]) == (width // 2 * 2, height // 2 * 2)
        first, last = numbers[0], numbers[-1]
        # Its own scene, both ends trimmed.
        scene = int(np.searchsorted(bounds, first, side="right")) - 1
        seen_scenes.add(scene)
        assert bounds[scene] <= first <= last < bounds[scene + 1]
        if "vfr" in name:  # at a constant rate, a frame shown for less than half a step may drop out
            begin = int(np.argmin(np.abs(np.array(times) - clip["start_s"])))
            assert begin <= first <= begin + 1
            first, last = begin, begin + clip["frames"] - 1
            assert bounds[scene] <= first <= last < bounds[scene + 1]
        assert clip["start_s"] == pytest.approx(times[first], abs=2e-3)
        ends = times[last + 1] if last + 1 < len(times) else times[last] + 1 / FPS
        assert clip["end_s"] == pytest.approx(ends, abs=2e-3)
        assert clip["end_s"] - clip["start_s"] <= config.spans.max_seconds + 1e-6
        scene_start = times[bounds[scene]]
        assert clip["start_s"] >= scene_start + config.spans.trim_seconds - 1e-3
        # Every frame at its own moment: output frame k stands for (k + 1/2) / fps.
        shown = [
            int(np.searchsorted(times, clip["start_s"] + (k + 0.5) / written["fps"], side="right")) - 1
            for k in range(len(numbers))
        ]
        if not name.startswith("vfr"):
            assert numbers == list(range(first, last + 1))
            assert clip["frames"] == len(numbers)
        assert max(abs(a - b) for a, b in zip(numbers, shown, strict=True)) <= (1 if "vfr" in name else 0)
        # The middle of the picture is where it should be: neither turned nor stretched.
        expected = np.rot90(render.read_frames(path)[numbers[0]][1], rotation // 90)
        assert _similar(pictures[0], expected)
    assert seen_scenes == {0, 1, 2}


def _similar(a: np.ndarray, b: np.ndarray) -> bool:
    import cv2

    small = [cv2.resize(x, (32, 32), interpolation=cv2.INTER_AREA).astype(float) for x in (a, b)]
    return float(np.abs(small[0] - small[1]).mean()) < 4


def test_shared_decoder_traps(footage: Path, cheap_config: Config) -> None:
    """The first of two streams; true counts where headers lie; nothing that other decoders choke on."""
    expected = {
        "nasa_13013.mp4": (325, 320, 180, 25.0),
        "tree.avi": (68, 320, 240, None),
        "mse-test.mp4": (193, 400, 300, 29.97),
        "av1_video.mkv": (125, 640, 360, 25.0),
        "h264_10bits.mp4": (30, 200, 200, 30.0),
    }
    for name, (frames, width, height, fps) in expected.items():
        _, source = measure(footage / name, cheap_config)
        assert (source["frames"], source["width"], source["height"]) == (frames, width, height), name
        if fps is not None:
            assert source["fps"] == pytest.approx(fps, rel=1e-3), name


def test_the_cut_of_real_footage_is_frame_accurate(footage: Path, config: Config) -> None:
    """Cut frames against the source's own frames at the same index, on a file whose PTS start late."""
    for name in ("mse-test.mp4", "bikes.mp4"):
        clips, _ = measure(footage / name, config)
        source = render.read_frames(footage / name)
        times = np.array([t for t, _ in source])
        for clip, (written, mp4) in zip(clips, cut(footage / name, clips, config), strict=True):
            first = int(np.argmin(np.abs(times - clip["start_s"])))
            pictures = decode(mp4)
            assert len(pictures) == clip["frames"] == written["frames"]
            for k in (0, len(pictures) // 2, len(pictures) - 1):
                difference = [
                    float(np.abs(pictures[k].astype(int) - source[i][1].astype(int)).mean())
                    for i in range(max(0, first + k - 1), min(len(source), first + k + 2))
                ]
                centre = min(1, first + k)
                assert difference[centre] == min(difference)


def test_a_still_image_is_a_clip_of_one_frame(tmp_path: Path, config: Config) -> None:
    from PIL import Image

    picture = render.draw_counter(render.texture(3, 201, 301), 77)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: to be shown turned 90 degrees clockwise
    Image.fromarray(np.rot90(picture)).save(tmp_path / "a.png", exif=exif)
    (source,) = list_sources([str(tmp_path)])
    clips, row = measure(source.uri, config)
    (clip,) = clips
    assert (clip["frames"], clip["fps"], clip["start_s"], clip["end_s"]) == (1, None, 0.0, 0.0)
    assert (row["width"], row["height"], row["frames"]) == (301, 201, 1)
    assert "motion.speed" not in clip["scores"]
    assert clip["scores"]["quality.contrast"] > 0
    ((written, mp4),) = cut(source.uri, clips, config)
    assert written["kind"] == "clip", written
    (shown,) = decode(mp4)
    assert shown.shape[:2] == (written["height"], written["width"]) == (200, 300)
    assert render.read_counter(shown) == 77
    assert _similar(shown, picture)


@pytest.mark.parametrize(
    "name", ["plain.mp4", "plain.mkv", "stream.ts", "vfr.mp4", "mpeg4.avi", "vp9.webm", "longgop.mp4"]
)
def test_a_late_span_is_reached_by_seeking(name: str, tmp_path: Path, config: Config) -> None:
    """Spans far from each other: the decoder jumps to a key frame before each, whatever the container."""
    lengths = [150, 40, 150, 50]
    path = tmp_path / name
    options = dict(VARIANTS[name])
    options.pop("pts", None)
    if name == "stream.ts":
        options["pts"] = [1.4 + k / FPS for k in range(sum(lengths))]
    elif name == "vfr.mp4":
        options["pts"] = _variable_times(sum(lengths))
    frames = render.counted(render.scenes(lengths, (192, 112), fps=FPS))
    render.write_video(path, frames, fps=FPS, **{"gop": 50, **options})
    times = [t for t, _ in render.read_frames(path)]
    clips, _ = measure(path, config)
    late = [c for c in clips if c["start_s"] >= times[340] - 1e-3 or c["start_s"] < times[25]]
    late += [c for c in clips if times[150] <= c["start_s"] < times[190]]
    assert len(late) >= 3
    for clip, (written, mp4) in zip(
        sorted(late, key=lambda c: c["start_s"]), cut(path, late, config), strict=True
    ):
        assert written["kind"] == "clip", written
        numbers = [render.read_counter(p) for p in decode(mp4)]
        first = int(np.argmin(np.abs(np.array(times) - clip["start_s"])))
        if name == "vfr.mp4":
            assert first <= numbers[0] <= first + 1
            assert numbers[-1] <= first + clip["frames"] - 1
        else:
            assert numbers == list(range(first, first + clip["frames"]))
