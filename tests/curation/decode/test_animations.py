"""Animated pictures are videos with the times of their file, single pictures are stills: whatever the suffix.

The truth: the colours and durations that each test writes, and pictures that it composes with numpy.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from curation.config.load import load_config
from curation.decode.video import Frame, NoVideo, Video
from tests.curation.helpers import cut, decode, measure, rescore

W, H = 96, 64
DURATIONS_MS = [100, 250, 40, 300, 110, 700]
STARTS_S = [0.0, 0.1, 0.35, 0.39, 0.69, 0.8]
COLOURS = [(40 * k, 220 - 40 * k, 100) for k in range(6)]
MOVING = [("a.webp", "WEBP"), ("a.apng", "PNG"), ("a.png", "PNG"), ("a.avif", "AVIF")]
OPTIONS = {"WEBP": {"lossless": True}, "PNG": {}, "AVIF": {"quality": 95}, "GIF": {}}


def write(path: Path, kind: str, pictures: list[Image.Image], duration: object, **options: object) -> Path:
    options = {**OPTIONS[kind], **options}
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=duration, **options)  # type: ignore[arg-type]
    return path


def plain() -> list[Image.Image]:
    return [Image.new("RGB", (W, H), colour) for colour in COLOURS]


def frames_of(path: Path) -> list[Frame]:
    with Video(str(path)) as video:
        assert not video.info.is_image
        return list(video.frames())


def rgb(frame: Frame) -> np.ndarray:
    return frame.av.to_ndarray(format="rgb24").astype(int)


@pytest.mark.parametrize(("name", "kind"), [*MOVING, ("a.jpg", "PNG"), ("a.mp4", "WEBP"), ("a.mov", "AVIF")])
def test_an_animation_has_all_its_frames_and_times(name: str, kind: str, tmp_path: Path) -> None:
    found = frames_of(write(tmp_path / name, kind, plain(), DURATIONS_MS, loop=0))
    assert [f.time_s for f in found] == pytest.approx(STARTS_S, abs=1e-6)
    assert [f.duration_s for f in found] == pytest.approx([ms / 1000 for ms in DURATIONS_MS], abs=1e-6)
    for frame, colour in zip(found, COLOURS, strict=True):
        assert np.abs(rgb(frame) - colour).max() <= 4
        assert frame.av.pts is not None
        assert frame.av.time_base is not None
        assert float(frame.av.pts * Fraction(frame.av.time_base)) == pytest.approx(frame.time_s, abs=1e-6)


def test_loops_are_not_repeated(tmp_path: Path) -> None:
    for name, kind in [*MOVING[:2], ("a.gif", "GIF")]:
        assert len(frames_of(write(tmp_path / name, kind, plain(), 100, loop=3))) == 6


def test_a_picture_that_lasts_no_time_lasts_a_tenth(tmp_path: Path) -> None:
    """As in browsers."""
    found = frames_of(write(tmp_path / "a.png", "PNG", plain(), 0))
    assert [f.time_s for f in found] == pytest.approx([k / 10 for k in range(6)])


@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_frames_are_composed(name: str, tmp_path: Path) -> None:
    """A half transparent green bar moves over nothing: the ground is white, and the bar leaves no trace."""
    drawn, wanted = [], []
    for k in range(4):
        rgba = np.zeros((H, W, 4), np.uint8)
        rgba[:, 16 * k : 16 * k + 16] = (0, 200, 0, 128)
        rgba[8 * k : 8 * k + 8, 80:] = (200, 0, 0, 255)
        drawn.append(Image.fromarray(rgba))
        alpha = rgba[..., 3:] / 255
        wanted.append(rgba[..., :3] * alpha + 255 * (1 - alpha))
    kind = "WEBP" if name.endswith("webp") else "PNG"
    found = frames_of(write(tmp_path / name, kind, drawn, 100, **({"disposal": 1} if kind == "PNG" else {})))
    for frame, picture in zip(found, wanted, strict=True):
        assert np.abs(rgb(frame) - picture).max() <= 2


def test_a_webp_whose_header_forgets_its_alpha(tmp_path: Path) -> None:
    """Its frames are opaque and cover a part of the canvas, which is transparent elsewhere."""
    first, second = Image.new("RGBA", (W, H)), Image.new("RGBA", (W, H))
    first.paste((200, 0, 0, 255), (0, 0, 30, H))
    second.paste((0, 0, 200, 255), (40, 0, 70, H))
    path = write(tmp_path / "a.webp", "WEBP", [first, second], 100)
    assert not path.read_bytes()[20] & 0x10  # as Pillow and libwebp write it
    one, two = (rgb(f) for f in frames_of(path))
    assert [tuple(one[9, x]) for x in (10, 35, 90)] == [(200, 0, 0), (255, 255, 255), (255, 255, 255)]
    assert [tuple(two[9, x]) for x in (10, 50, 90)] == [(255, 255, 255), (0, 0, 200), (255, 255, 255)]


def test_the_default_picture_of_an_animated_png_is_no_frame(tmp_path: Path) -> None:
    found = frames_of(write(tmp_path / "a.png", "PNG", plain(), 100, default_image=True))
    assert [tuple(rgb(f)[0, 0]) for f in found] == COLOURS[1:]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("a.gif", "GIF"), ("a.jpg", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a.avif", "AVIF")],
        *[("b.mp4", "AVIF"), ("b.mp4", "GIF"), ("b.gif", "PNG"), ("b", "WEBP"), ("c.webm", "WEBP")],
    ],
)
def test_one_picture_is_a_still(name: str, kind: str, tmp_path: Path) -> None:
    write(tmp_path / name, kind, plain()[:1], 500)
    with Video(str(tmp_path / name)) as video:
        assert video.info.is_image
        assert video.info.fps is None
        (frame,) = video.frames()
    assert np.abs(rgb(frame) - COLOURS[0]).max() <= 4


def test_a_jpeg_without_a_suffix_and_pages_of_a_tiff_are_stills(tmp_path: Path) -> None:
    plain()[1].save(tmp_path / "a", "JPEG", quality=95)
    plain()[1].save(tmp_path / "b.tif", save_all=True, append_images=plain()[2:])
    for name in ("a", "b.tif"):
        with Video(str(tmp_path / name)) as video:
            assert video.info.is_image
            (frame,) = video.frames()
        assert np.abs(rgb(frame) - COLOURS[1]).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "JPEG"])
def test_a_truncated_still_fails(kind: str, tmp_path: Path) -> None:
    """Half of a picture is none, as it is for JPEG."""
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 255, (H, W, 3), np.uint8))
    noise.save(tmp_path / f"a.{kind.lower()}", kind)
    whole = (tmp_path / f"a.{kind.lower()}").read_bytes()
    (tmp_path / f"a.{kind.lower()}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(OSError, match=r"truncated|decoder object"):
        Video(str(tmp_path / f"a.{kind.lower()}"))


@pytest.mark.parametrize("format_", ["mp4", "matroska"])
def test_a_video_under_the_suffix_of_a_picture_is_a_video(format_: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.jpg"), "w", format_) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for image in plain():
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    assert [f.time_s for f in frames_of(tmp_path / "a.jpg")] == pytest.approx([k / 10 for k in range(6)])


def test_what_is_no_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(4) + b"mif1heic" + bytes(99))
    with pytest.raises(NoVideo, match="pip install pillow-heif"):
        Video(str(tmp_path / "a.jpg"))
    plain()[0].save(tmp_path / "a.tga")
    with pytest.raises(NoVideo, match="not a video or a picture of a kind that is read"):
        Video(str(tmp_path / "a.tga"))


def test_a_damaged_animation_keeps_the_frames_before(tmp_path: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (6, H, W, 3), np.uint8)
    path = write(tmp_path / "a.png", "PNG", [Image.fromarray(n) for n in noise], 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with Video(str(path)) as video:
        found = list(video.frames())
        assert 3 <= len(found) <= 4
        assert (rgb(found[2]) == noise[2]).all()
        assert video.notes() == "1 broken packets were stepped over"


CONFIG = load_config(
    "filters: {motion: {}, quality: {}}\nshots: {detector: none}\n"
    "spans: {trim_seconds: 0, min_seconds: 0.5}\n"
)


def test_an_animation_is_measured_and_cut_like_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.webp", "WEBP", plain(), DURATIONS_MS)
    (clip,), source = measure(path, CONFIG)
    assert (clip["start_s"], clip["frames"], source["frames"]) == (0.0, 6, 6)
    assert source["is_vfr"]
    assert source["fps"] == pytest.approx(5 / 0.8)
    assert 1.1 <= clip["end_s"] <= 1.5  # the last frame is shown for 0.7 s
    assert rescore(path, [clip], CONFIG)[clip["clip_id"]] == clip["scores"]
    ((head, mp4),) = cut(path, [clip], CONFIG)
    for k, picture in enumerate(decode(mp4)):
        at = (k + 0.5) / head["fps"]
        shown = max(i for i, start in enumerate(STARTS_S) if start <= at + 1e-6)
        assert np.abs(picture[H // 2, W // 2].astype(int) - COLOURS[shown]).max() <= 6, k


def test_clips_that_were_measured_otherwise_before_can_be_scored_and_cut(tmp_path: Path) -> None:
    """Versions before took an animation for a still image, and a GIF of one picture for a video."""
    moving = write(tmp_path / "a.webp", "WEBP", plain(), 100)
    single = write(tmp_path / "b.gif", "GIF", plain()[:1], 100)
    size = {"width": W, "height": H, "clip_id": "c", "start_s": 0.0, "frames": 1}
    still = {**size, "end_s": 0.0, "fps": None}
    video = {**size, "end_s": 0.1, "fps": 10.0}
    for path, clip, count in ((moving, still, 1), (single, video, 1)):
        ((head, mp4),) = cut(path, [clip], CONFIG)
        assert head["kind"] == "clip", head
        pictures = decode(mp4)
        assert len(pictures) == count
        assert np.abs(pictures[0][9, 9].astype(int) - COLOURS[0]).max() <= 6
        assert rescore(path, [clip], CONFIG)["c"]["quality.brightness"] is not None
