"""Frames are written to mp4 files, and read from any video file."""

from __future__ import annotations

import io
import resource
import struct
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from generation import media
from generation.media import from_uint8, read_video, to_uint8, write_grid, write_mp4
from tests import render

SIZE = (112, 64)  # decord misreads some small widths, 96 and 144 among them


def _moving(frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.stack(list(render.pan(3, size, fps=8, seconds=frames / 8, speed=0.2, slope=1.4)))


def _numbers(frames: np.ndarray) -> list[int]:
    return [render.read_counter(f) for f in frames]


def _counted(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return list(render.counted(render.slide(render.texture(5, size[1], size[0]), count)))


def _decord(path: Path) -> Any:
    """Another reader. It brings nvblas: if decord is loaded before torch, matrix products crash."""
    import decord

    return decord.VideoReader(str(path))


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


# Values


def test_levels_round_to_the_nearest_and_come_back() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_uint8(from_uint8(levels)), levels)
    between = torch.tensor([-9.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.999, 1.0, 9.0])
    found = to_uint8(between.expand(3, 1, 1, 7))[0, 0, :, 0]
    assert found.tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_axes() -> None:
    video = torch.zeros(2, 3, 5, 4, 6)
    video[1, 2, 3, 0, 5] = 1
    frames = to_uint8(video)
    assert frames.shape == (2, 5, 4, 6, 3)
    assert np.argwhere(frames == 255).tolist() == [[1, 3, 0, 5, 2]]
    assert torch.equal(from_uint8(frames)[1, 2, 3, 0, 5], torch.tensor(1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(value: float) -> None:
    video = torch.zeros(1, 3, 5, 4, 6)
    video[0, 1, 3, 2, 2] = value
    with pytest.raises(ValueError, match="first in frame 3"):
        to_uint8(video)


# Writing


def test_written_frames_come_back(tmp_path: Path) -> None:
    frames = _moving(17)
    path = write_mp4(tmp_path / "a.mp4", [frames[:1], frames[1:9], frames[9:]], fps=8)
    video = read_video(path)
    assert video.fps == 8
    assert video.frames.shape == frames.shape
    assert _psnr(video.frames, frames) > 35
    # Another reader finds the same pixels and the same rate.
    reader = _decord(path)
    assert reader.get_avg_fps() == 8
    assert _psnr(reader.get_batch(list(range(17))).asnumpy(), frames) > 35
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_colours_are_kept_and_tagged(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 50, 120]], np.uint8)
    image = colours.reshape(2, 2, 3).repeat(32, 0).repeat(32, 1)
    path = write_mp4(tmp_path / "a.mp4", [np.stack([image] * 3)], fps=24, crf=4)
    for found in (read_video(path).frames[1], _decord(path)[1].asnumpy()):
        assert np.abs(found[16::32, 16::32].astype(int) - image[16::32, 16::32]).max() <= 4
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)


@pytest.mark.parametrize("fps", [8, 12.5, 24000 / 1001, 29.97, 60])
def test_rates(tmp_path: Path, fps: float) -> None:
    video = read_video(write_mp4(tmp_path / "a.mp4", [_moving(6)], fps=fps))
    assert video.fps == pytest.approx(fps, rel=1e-5)
    assert len(video.frames) == 6


def test_one_frame(tmp_path: Path) -> None:
    assert read_video(write_mp4(tmp_path / "a.mp4", [_moving(1)], fps=8)).frames.shape == (1, 64, 112, 3)


def test_frames_go_into_the_encoder_as_they_come(tmp_path: Path) -> None:
    """Pieces that were encoded do not stay in memory while later pieces are made."""
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for k in range(12):
            alive.append(sum(r() is not None for r in made))
            piece = np.full((4, 64, 96, 3), k * 20, np.uint8)
            made.append(weakref.ref(piece))
            yield piece
            del piece

    write_mp4(tmp_path / "a.mp4", pieces(), fps=8)
    assert max(alive) <= 1


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"

    def broken() -> Iterator[np.ndarray]:
        for _ in range(12):  # the encoder looks ahead at fewer frames, so a part is on disk
            yield _moving(8)
        assert (tmp_path / "_a.mp4").stat().st_size > 0
        raise RuntimeError("the decoder gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        write_mp4(path, broken(), fps=8)
    assert list(tmp_path.iterdir()) == []
    # An earlier file stays.
    path.write_bytes(b"earlier")
    with pytest.raises(RuntimeError, match="gave up"):
        write_mp4(path, broken(), fps=8)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"earlier"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=r"15x8 is odd.*take 16x8"):
        write_mp4(path, [np.zeros((2, 8, 15, 3), np.uint8)], fps=8)
    with pytest.raises(ValueError, match="changes from 16x8 to 32x8 at frame 2"):
        write_mp4(path, [np.zeros((2, 8, 16, 3), np.uint8), np.zeros((2, 8, 32, 3), np.uint8)], fps=8)
    for nothing in ([], [np.zeros((0, 8, 16, 3), np.uint8)]):
        with pytest.raises(ValueError, match="no frame to write"):
            write_mp4(path, nothing, fps=8)
    for fps in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="is not a frame rate"):
            write_mp4(path, [_moving(2)], fps=fps)
    assert list(tmp_path.iterdir()) == []


def test_grid(tmp_path: Path) -> None:
    clips = [np.full((n, 32, 48, 3), level, np.uint8) for n, level in ((3, 50), (5, 120), (1, 200))]
    video = read_video(write_grid(tmp_path / "grid.mp4", clips, fps=8))
    assert video.frames.shape == (5, 64, 96, 3)
    centres = video.frames[-1, 16::32, 24::48, 0].astype(int)
    assert np.abs(centres - [[50, 120], [200, 0]]).max() <= 3
    row = read_video(write_grid(tmp_path / "row.mp4", clips, fps=8, columns=3))
    assert row.frames.shape == (5, 32, 144, 3)
    with pytest.raises(ValueError, match="one size, not 16x32, 48x32"):
        write_grid(tmp_path / "no.mp4", [clips[0], clips[0][:, :, :16]], fps=8)
    with pytest.raises(ValueError, match="not none"):
        write_grid(tmp_path / "no.mp4", [], fps=8)


# Reading


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, list(range(48))),
        (8, list(range(0, 48, 3))),
        (12, list(range(0, 48, 2))),
        (48, [k // 2 for k in range(96)]),
    ],
)
def test_sampled_by_time(tmp_path: Path, fps: float | None, expected: list[int]) -> None:
    path = render.write_video(tmp_path / "a.mp4", _counted(48), fps=24)
    video = read_video(path, fps=fps)
    assert _numbers(video.frames) == expected
    assert video.fps == (fps or 24)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rounded_times_hide_no_frame(tmp_path: Path, suffix: str) -> None:
    """Matroska stores whole milliseconds, and the times of 23.976 frames per second are not whole."""
    path = render.write_video(tmp_path / f"a{suffix}", _counted(60), fps=Fraction(24000, 1001))
    assert _numbers(read_video(path).frames) == list(range(60))


def test_variable_rate_and_late_start(tmp_path: Path) -> None:
    times = [2.0, 2.1, 2.2, 3.0, 3.05, 4.0]
    path = render.write_video(tmp_path / "a.mkv", _counted(6), pts=times)
    found = _numbers(read_video(path, fps=10, frames=20).frames)
    #     2.0 2.1 2.2 .. 2.9      3.0 3.1 .. 3.9
    assert found == [0, 1, *[2] * 8, 3, *[4] * 9]
    assert _numbers(read_video(path, fps=10, start_s=0.95, frames=3).frames) == [2, 4, 4]


def test_start_and_number(tmp_path: Path) -> None:
    path = render.write_video(tmp_path / "a.mp4", _counted(240), fps=24, gop=48)
    assert _numbers(read_video(path, start_s=1, frames=5).frames) == [24, 25, 26, 27, 28]
    # These are far enough to seek: on a key frame, before one and after one.
    for first in (144, 150, 191, 192, 193, 239):
        assert _numbers(read_video(path, start_s=first / 24, frames=1).frames) == [first]
    assert _numbers(read_video(path, fps=8, start_s=9).frames) == list(range(216, 240, 3))
    with pytest.raises(
        ValueError, match=r"a\.mp4: the video ends after 10\.000 s, so it has no frame at 10\.5 s"
    ):
        read_video(path, start_s=10.5)


def test_seek_agrees_with_decoding_from_the_start(tmp_path: Path) -> None:
    frames = _counted(180)
    # The last file has no index and no times.
    for name, codec in (("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.mkv", "libx264"), ("a.h264", "libx264")):
        path = render.write_video(tmp_path / name, frames, fps=24, codec=codec, gop=60)
        whole = read_video(path, fps=24)
        assert _numbers(whole.frames) == list(range(180)), name
        for first in (130, 170):
            part = read_video(path, fps=24, start_s=first / 24, frames=6)
            assert _numbers(part.frames) == list(range(first, first + 6)), name


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(tmp_path: Path, rotation: int) -> None:
    frames = list(_moving(3))
    path = render.write_video(tmp_path / "a.mp4", frames, fps=8, rotation=rotation, crf=10)
    found = read_video(path).frames
    assert found.shape == (3, 64, 112, 3)
    assert _psnr(found, np.stack(frames)) > 30


@pytest.mark.parametrize(
    ("sar", "rotation", "size"), [((4, 3), 0, (149, 64)), ((3, 4), 0, (112, 85)), ((4, 3), 90, (112, 85))]
)
def test_pixels_become_square(
    tmp_path: Path, sar: tuple[int, int], rotation: int, size: tuple[int, int]
) -> None:
    path = render.write_video(tmp_path / "a.mp4", _moving(2), fps=8, sar=sar, rotation=rotation)
    assert read_video(path).frames.shape == (2, size[1], size[0], 3)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.mp4: there is no such file"):
        read_video(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="a folder, not a video"):
        read_video(tmp_path)
    for name, content in (("text.mp4", b"not a video"), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a video"):
            read_video(tmp_path / name)
    whole = render.write_video(tmp_path / "whole.mp4", _moving(16), fps=8).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.mp4"):
        read_video(tmp_path / "half.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound\.mp4: the file has no video stream"):
        read_video(path)


def test_playlists_open_nothing_else(tmp_path: Path) -> None:
    render.write_video(tmp_path / "a.ts", _moving(8), fps=8)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"list\.mp4"):
        read_video(tmp_path / "list.mp4")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nfile:{}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile a.mp4\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile a.mp4\n"),
    ],
)
def test_a_file_that_names_others_opens_none(tmp_path: Path, name: str, text: str) -> None:
    other = write_mp4(tmp_path / "a.mp4", [_moving(8)], fps=8)
    (tmp_path / name).write_text(text.format(other))
    with pytest.raises(ValueError, match=rf"{name} cannot be read as a video"):
        read_video(tmp_path / name)


def _gif(width: int, height: int, frames: int) -> bytes:
    """A few bytes for each frame, which changes one pixel."""
    one = b"!\xf9\4\0\1\0\0\0," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\2\2D\1\0"
    return (
        b"GIF89a"
        + struct.pack("<HH", width, height)
        + b"\x80\0\0"
        + b"\0\0\0\xff\xff\xff"
        + one * frames
        + b";"
    )


def _saved(kind: str) -> bytes:
    held = io.BytesIO()
    Image.new("L", (9000, 9000)).save(held, kind)
    return held.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "JPEG"])
def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(_saved(kind))
    with pytest.raises(ValueError, match="more than 67 million pixels in a picture"):
        read_video(path)


def test_frames_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(_gif(4000, 4000, 258))
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"frames of 4000x4000 .* million pixels together"):
        read_video(path, frames=258)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 1 << 20  # in kB
    path.write_bytes(_gif(65535, 65535, 1))
    with pytest.raises(ValueError, match="more than 67 million pixels in a picture"):
        read_video(path)
    path.write_bytes(_gif(400, 400, 5))
    assert read_video(path, frames=5).frames.shape == (5, 400, 400, 3)


def test_frames_of_a_file_that_says_nothing_of_its_length_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = render.write_video(tmp_path / "a.h264", _counted(20), fps=24)
    assert len(read_video(path, fps=24).frames) == 20
    monkeypatch.setattr(media, "_MOST_PIXELS", 10 * SIZE[0] * SIZE[1])
    with pytest.raises(ValueError, match="pixels together"):
        read_video(path, fps=24)
    assert len(read_video(path, fps=24, frames=10).frames) == 10


def test_names_with_a_colon(tmp_path: Path) -> None:
    assert len(read_video(write_mp4(tmp_path / "a:b.mp4", [_moving(4)], fps=8)).frames) == 4


def test_wrong_arguments(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "a.mp4", [_moving(4)], fps=8)
    with pytest.raises(ValueError, match="0 is not a frame rate"):
        read_video(path, fps=0)
    with pytest.raises(ValueError, match="the start is -1 s"):
        read_video(path, start_s=-1)
    with pytest.raises(ValueError, match="0 frames were asked for"):
        read_video(path, frames=0)


def test_real_footage(footage: Path) -> None:
    video = read_video(footage / "flower.mp4", fps=8, frames=9)
    assert video.frames.shape == (9, 540, 960, 3)
    assert video.fps == 8
    # An independent reader gives the same frames at the same presentation times.
    reader = _decord(footage / "flower.mp4")
    same = reader.get_batch([int(k / 8 * 30000 / 1001 + 0.3) for k in range(9)]).asnumpy()
    assert _psnr(video.frames, same) > 38
    for name in ("tree.avi", "av1_video.mkv", "h265_video.mp4", "h264_10bits.mp4", "mse-test.mp4"):
        found = read_video(footage / name, fps=4, frames=3)
        assert len(found.frames) == 3, name
        assert found.frames.std() > 5, name


def test_equal_frames_give_equal_bytes(tmp_path: Path) -> None:
    """This holds for sides that are not multiples of 16, too. With macroblock trees x264 would fail here."""
    frames = np.random.default_rng(0).integers(0, 256, (9, 40, 88, 3), dtype=np.uint8)
    frames = np.repeat(np.repeat(frames[:, ::8, ::8], 8, 1), 8, 2)
    files = {write_mp4(tmp_path / f"{k}.mp4", [frames], 8).read_bytes() for k in range(12)}
    assert len(files) == 1
