"""Timestamps that start again, that stand in the order of decoding, or that are wrong here and there.

The truth is the number that is burnt into every rendered frame, and arithmetic: frame k is at k / fps.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode import segments
from curation.decode.container.clock import Clock
from curation.decode.video import Video
from tests import render
from tests.conftest import CHEAP
from tests.curation.helpers import cut, decode, measure, rescore

FPS = 25
SIZE = (160, 96)
CODEC = {".mpg": "mpeg2video", ".webm": "libvpx-vp9"}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CHEAP, ["spans.min_seconds=0.5", "spans.trim_seconds=0.1", "shots.detector=none"])


def shot(seed: int, n: int, start: int = 0, size: tuple[int, int] = SIZE) -> list[render.Frame]:
    """`n` frames of a pan, numbered from `start`."""
    image = render.texture(seed, size[1], size[0])
    return [render.draw_counter(render.shifted(image, k), start + k) for k in range(n)]


def joined(path: Path, lengths: Sequence[int], fps: int = FPS, **options: Any) -> Path:
    """Recordings of `lengths` frames that all begin at the same time, byte after byte. Numbers go on."""
    data, start = b"", 0
    for k, n in enumerate(lengths):
        part = path.with_name(f"part{k}{path.suffix}")
        codec = CODEC.get(path.suffix, "libx264")
        render.write_video(part, shot(k, n, start), fps=fps, codec=codec, gop=fps, **options)
        data, start = data + part.read_bytes(), start + n
        part.unlink()
    path.write_bytes(data)
    return path


def restamped(source: Path, path: Path, change: Callable[[int, av.Packet], None]) -> Path:
    """The same packets with other timestamps. `change` gets each packet and its number."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for k, packet in enumerate(p for p in given.demux(video=0) if p.size):
            packet.stream = stream
            change(k, packet)
            out.mux(packet)
    return path


def in_order_of_decoding(source: Path, path: Path) -> Path:
    """pts = dts, although B-frames are decoded after frames that are shown later."""
    first: list[int] = []

    def change(_: int, packet: av.Packet) -> None:
        first.append(packet.dts)
        packet.pts = packet.dts = packet.dts - first[0]

    return restamped(source, path, change)


def numbers_and_times(path: Path) -> tuple[list[int], list[float]]:
    with Video(str(path)) as video:
        frames = list(video.frames())
        return [render.read_counter(f.av.to_ndarray(format="rgb24")) for f in frames], [
            f.time_s for f in frames
        ]


def check_clips(path: Path, clips: list[dict[str, Any]], config: Config, fps: int = FPS) -> list[set[int]]:
    """Cuts the clips. Every clip holds the frames of its time. Returns the numbers of each clip."""
    with Video(str(path)) as video:
        start_s = video.info.start_s
    found = []
    for clip, (written, mp4) in zip(clips, cut(path, clips, config), strict=True):
        assert written["kind"] == "clip", written
        first = round((clip["start_s"] - start_s) * fps)
        numbers = [render.read_counter(p) for p in decode(mp4)]
        assert numbers == list(range(first, first + clip["frames"]))
        found.append(set(numbers))
    return found


@pytest.mark.sampled("joined", keep=3)
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("a.ts", [60, 60]),
        ("shorter.ts", [60, 30]),
        ("longer.ts", [20, 70]),
        ("three.ts", [30, 50, 40]),
        ("short.ts", [40, 5, 6, 40]),
        ("a.mpg", [60, 50]),
        ("a.mkv", [60, 60]),
        ("a.webm", [60, 40]),
    ],
)
def test_recordings_that_were_joined_byte_by_byte(
    name: str, lengths: list[int], tmp_path: Path, config: Config
) -> None:
    path = joined(tmp_path / name, lengths)
    total = sum(lengths)
    numbers, times = numbers_and_times(path)
    assert numbers == list(range(total))
    assert times == pytest.approx([times[0] + k / FPS for k in range(total)], abs=2e-3)

    clips, source = measure(path, config)
    assert source["frames"] == total
    assert source["duration_s"] == pytest.approx(total / FPS, abs=0.01)
    times_again = {1: "once"}.get(len(lengths) - 1, f"{len(lengths) - 1} times")
    assert f"the timestamps start again {times_again}" in source["message"]
    bounds = [sum(lengths[:k]) for k in range(len(lengths) + 1)]
    seen: set[int] = set()
    for of_clip in check_clips(path, clips, config):  # no detector: the joints alone end scenes
        assert any(a <= min(of_clip) and max(of_clip) < b for a, b in itertools.pairwise(bounds))
        seen |= of_clip
    assert len(seen) >= total - 6 * len(lengths)  # but for the trim
    again = rescore(path, clips, config)
    assert again == {c["clip_id"]: c["scores"] for c in clips}


def test_a_place_before_a_joint_is_not_taken_for_one_behind_it(tmp_path: Path, config: Config) -> None:
    """Each time of the second recording is also one of the first: a seek could lead to either."""
    path = joined(tmp_path / "a.ts", [100, 80, 60], fps=5)
    options = ["spans.min_seconds=1", "spans.max_seconds=1.5", "shots.detector=none"]
    clips, _ = measure(path, load_config(CHEAP, options))
    for k in range(3):
        check_clips(path, clips[8 + k :: 7], config, fps=5)


def test_a_joined_recording_is_not_measured_in_pieces(tmp_path: Path, config: Config) -> None:
    path = joined(tmp_path / "a.ts", [100, 100], fps=5)
    plain = config.model_dump(mode="json")
    for from_s, until_s in ((None, 30.0), (15.0, 30.0), (25.0, None)):
        request = {"uri": str(path), "config": plain, "from_s": from_s, "until_s": until_s}
        with pytest.raises(segments.NotInPieces):
            list(segments.look(request))


@pytest.mark.sampled("order of decoding", keep=3)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
@pytest.mark.parametrize("options", [{"bf": "1"}, {"bf": "3"}, {"bf": "7", "b-pyramid": "none"}])
def test_timestamps_in_the_order_of_decoding(
    suffix: str, options: dict[str, str], tmp_path: Path, config: Config
) -> None:
    plain = render.write_video(tmp_path / "a.mp4", shot(1, 150), fps=FPS, gop=50, options=options)
    path = in_order_of_decoding(plain, tmp_path / f"b{suffix}")
    with av.open(str(path)) as container:  # the frames' own timestamps do jump back
        own = [frame.pts for frame in container.decode(video=0)]
    assert own != sorted(own)
    numbers, times = numbers_and_times(path)
    assert numbers == list(range(150))
    assert times == pytest.approx([times[0] + k / FPS for k in range(150)], abs=2e-3)
    clips, source = measure(path, config)
    assert (source["frames"], source["is_vfr"]) == (150, False)
    assert "frames were timed by their order" in source["message"]
    check_clips(path, clips, config)
    late = [{**clips[-1], "start_s": times[140], "end_s": times[149], "frames": 9}]
    assert check_clips(path, late, config) == [set(range(140, 149))]


def test_joined_recordings_with_timestamps_in_the_order_of_decoding(tmp_path: Path) -> None:
    data = b""
    for k in range(2):
        plain = render.write_video(tmp_path / "a.mp4", shot(k, 60, 60 * k), fps=FPS, options={"bf": "3"})
        data += in_order_of_decoding(plain, tmp_path / "b.ts").read_bytes()
    path = tmp_path / "c.ts"
    path.write_bytes(data)
    numbers, times = numbers_and_times(path)
    assert numbers == list(range(120))
    assert times == pytest.approx([times[0] + k / FPS for k in range(120)], abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_correct_timestamps_stay_as_they_are(suffix: str, tmp_path: Path) -> None:
    """Of a stream with B-frames, open GOPs and a varying rate: PyAV's own times."""
    times = [round(1.4 + k * 0.04 + (k % 3) * 0.01, 3) for k in range(120)]
    options = {"bf": "3", "x264-params": "open-gop=1"}
    path = tmp_path / f"a{suffix}"
    render.write_video(path, shot(1, 120), pts=times, gop=20, options=options)
    numbers, found = numbers_and_times(path)
    assert numbers == list(range(120))
    assert found == [t for t, _ in render.read_frames(path)]


def test_one_wrong_timestamp_costs_its_own_frame(tmp_path: Path) -> None:
    plain = render.write_video(tmp_path / "a.mp4", shot(1, 60), fps=FPS, options={"bf": "0"}, gop=10)

    def late(k: int, packet: av.Packet) -> None:
        if k == 30:
            packet.pts += round(1000 / packet.time_base)

    path = restamped(plain, tmp_path / "late.ts", late)
    numbers, times = numbers_and_times(path)
    assert numbers == [k for k in range(60) if k != 30]
    assert times == pytest.approx([times[0] + k / FPS for k in numbers], abs=2e-3)


def moments(stamps: Sequence[int]) -> tuple[list[tuple[int, float, bool, int]], Clock]:
    """(index, time, starts again, doubtful) of each moment, for frames with these timestamps in 1/25 s."""
    frames = []
    for k, pts in enumerate(stamps):
        frame = av.VideoFrame(16, 16, "gray")
        frame.pts, frame.time_base, frame.opaque = pts, Fraction(1, FPS), k
        frames.append(frame)
    clock = Clock()
    found = list(clock.moments(iter(frames), lambda: False))
    return [(m.frame.opaque, m.time_s, m.starts_again, m.doubtful) for m in found], clock


def test_repeated_timestamps_are_left_out() -> None:
    found, clock = moments([0, 1, 2, 2, 1, 3, 4, 4, 5])
    assert [k for k, *_ in found] == [0, 1, 2, 5, 6, 8]
    assert [t for _, t, *_ in found] == [k / FPS for k in range(6)]
    assert [(k, doubtful) for k, _, _, doubtful in found if doubtful] == [(5, 2), (8, 1)]
    assert not any(again for _, _, again, _ in found)
    assert clock.notes() == ["3 frames were left out: their timestamps repeat or go back"]


def test_a_clip_says_how_many_of_its_frames_were_left_out(tmp_path: Path) -> None:
    """Of the later half, every third frame has the timestamp of the frame before."""
    plain = render.write_video(tmp_path / "a.ts", shot(1, 90), fps=FPS, options={"bf": "0"})
    data = bytearray(plain.read_bytes())
    heads = [m.start() for m in re.finditer(rb"\x00\x00\x01\xe0..[\x80-\x8f]\x80\x05", data, re.DOTALL)]
    assert len(heads) == 90
    for k in range(50, 90, 3):  # the five bytes of the timestamp are behind those nine
        data[heads[k] + 9 : heads[k] + 14] = data[heads[k - 1] + 9 : heads[k - 1] + 14]
    plain.write_bytes(data)
    options = [
        "spans.min_seconds=0.5",
        "spans.max_seconds=1.5",
        "spans.trim_seconds=0",
        "shots.detector=none",
    ]
    config = load_config("base: none\nfilters: {timing: {}}", options)
    clips, source = measure(plain, config)
    assert source["frames"] == 90 - 14
    found = [c["scores"]["timing.doubtful"] for c in clips]
    with Video(str(plain)) as video:
        shown = [(f.time_s, render.read_counter(f.av.to_ndarray(format="rgb24"))) for f in video.frames()]
    for clip, share in zip(clips, found, strict=True):
        numbers = [n for t, n in shown if clip["start_s"] <= t < clip["end_s"]]
        following = min((n for _, n in shown if n > numbers[-1]), default=89)  # 89 is the last one left out
        assert share == pytest.approx(1 - len(numbers) / (following - numbers[0]))
    assert found[0] == 0
    assert found[-1] > 0.2
    assert {c["clip_id"]: c["scores"] for c in clips} == rescore(plain, clips, config)


def test_one_early_timestamp_is_no_new_start() -> None:
    found, clock = moments([100, 101, 0, 102, 103])
    assert [(k, t) for k, t, *_ in found] == [(0, 4.0), (1, 4.04), (3, 4.08), (4, 4.12)]
    assert (clock.left_out, clock.restarts) == (1, 0)


def test_a_jump_back_without_a_key_frame_is_a_new_start_if_the_next_frame_goes_on() -> None:
    found, clock = moments([100, 101, 102, 50, 51, 52])
    assert [t for _, t, *_ in found] == pytest.approx([4.0 + k / FPS for k in range(6)])
    assert [k for k, _, again, _ in found if again] == [3]
    assert (clock.left_out, clock.restarts) == (0, 1)


def test_a_jump_ahead_stays() -> None:
    found, clock = moments([0, 1, 1000, 1001])
    assert [t for _, t, *_ in found] == [0.0, 0.04, 40.0, 40.04]
    assert clock.notes() == []
