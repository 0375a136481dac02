"""Still pictures of 16 bits, of floating-point numbers, and with transparent parts. The truth: arithmetic."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from curation.config.schema import Cut, Run
from curation.decode import cut
from curation.decode.video import NoVideo, Video
from tests.curation.helpers import decode

W, H = 160, 48


def _rgb(path: Path) -> np.ndarray:
    with Video(str(path)) as video:
        return next(video.frames()).rgb(W, H).astype(int)


def _ramp() -> np.ndarray:
    """Columns from black to white, in 16 bits."""
    return np.tile(np.linspace(0, 65535, W).round().astype(np.uint16), (H, 1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_levels(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_ramp()).save(path)
    wanted = np.linspace(0, 255, W)[None, :, None]
    assert np.abs(_rgb(path) - wanted).max() <= 1


def test_32_bit_integers(tmp_path: Path) -> None:
    Image.fromarray(_ramp().astype(np.int32)).save(tmp_path / "a.tif")
    assert np.abs(_rgb(tmp_path / "a.tif") - np.linspace(0, 255, W)[None, :, None]).max() <= 1
    Image.fromarray(_ramp().astype(np.int32) * 1000).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="32-bit numbers from 0 to 65535000; save it with 8 or 16 bits"):
        _rgb(tmp_path / "b.tif")


def test_floating_point_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_ramp().astype(np.float32) / 65535).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="does not say which is white; save it with 8 or 16 bits"):
        _rgb(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "webp"), ("RGBA", "tif")]
)
def test_what_is_transparent_shows_white(mode: str, suffix: str, tmp_path: Path) -> None:
    """Left: opaque. Middle: half transparent. Right: transparent, over a colour that nobody is to see."""
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[:, :40], rgba[:, 40:80], rgba[:, 80:] = (40, 40, 40, 255), (40, 40, 40, 128), (0, 255, 0, 0)
    path = tmp_path / f"a.{suffix}"
    if mode == "P":
        Image.fromarray(rgba).quantize(8).save(path)
    else:
        Image.fromarray(rgba).convert(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    found = _rgb(path)
    half = round(255 + (40 - 255) * 128 / 255)
    for x, wanted in ((20, 40), (60, half), (120, 255)):
        assert np.abs(found[H // 2, x] - wanted).max() <= 2, x


def test_a_png_with_one_transparent_colour(tmp_path: Path) -> None:
    rgb = np.full((H, W, 3), (40, 40, 40), np.uint8)
    rgb[:, 80:] = (255, 0, 255)
    Image.fromarray(rgb).save(tmp_path / "a.png", transparency=(255, 0, 255))
    found = _rgb(tmp_path / "a.png")
    assert (found[:, :80] == 40).all()
    assert (found[:, 80:] == 255).all()


def test_a_raw_photograph_is_not_taken_for_its_preview(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"  # DNGVersion
    Image.new("RGB", (W, H)).save(tmp_path / "a.tif", tiffinfo=tags)
    with pytest.raises(NoVideo, match="a raw photograph"):
        Video(str(tmp_path / "a.tif"))


def test_the_clip_of_a_still_says_its_colours(tmp_path: Path) -> None:
    """The matrix of BT.601 and the rest of sRGB: untagged, players take BT.709's matrix for HD."""
    colours = [(200, 30, 30), (30, 180, 40), (40, 50, 200), (224, 172, 138)]
    image = np.repeat(np.array(colours, np.uint8), W // 4, axis=0)[None].repeat(H, axis=0)
    Image.fromarray(image).save(tmp_path / "a.png")
    span = {"clip_id": "c", "start_s": 0.0, "end_s": 0.0, "frames": 1, "fps": None}
    request = {
        "uri": str(tmp_path / "a.png"),
        "spans": [span],
        "cut": Cut(crf=1).model_dump(),
        "run": Run().model_dump(),
    }
    (message,) = (m for m in cut.run(request) if m.head["kind"] == "clip")
    assert np.abs(decode(message.parts[0])[0][H // 2, 20::40].astype(int) - colours).max() <= 4
    with av.open(io.BytesIO(message.parts[0])) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)) == (6, 1, 13)
        y, cb, cr = (np.frombuffer(p, np.uint8).reshape(p.height, -1)[p.height // 2] for p in frame.planes)
    red = np.array([200, 30, 30]) / 255
    luma = red @ (0.299, 0.587, 0.114)
    assert abs(y[20] - (16 + 219 * luma)) <= 2
    assert abs(cb[10] - (128 + 224 * (red[2] - luma) / 1.772)) <= 2
    assert abs(cr[10] - (128 + 224 * (red[0] - luma) / 1.402)) <= 2


@pytest.mark.parametrize(
    ("name", "codec", "format_"),
    [("a.mov", "qtrle", "argb"), ("b.mov", "png", "rgba"), ("c.gif", "", ""), ("d.mkv", "ffv1", "bgra")],
)
def test_transparent_parts_of_videos_show_white(name: str, codec: str, format_: str, tmp_path: Path) -> None:
    """Left: opaque red that moves. Right: transparent, over a colour that nobody is to see."""
    path = tmp_path / name
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[:, :80], rgba[:, 80:] = (200, 0, 0, 255), (0, 255, 0, 0)
    if name.endswith("gif"):
        pictures = [Image.fromarray(np.roll(rgba, k, axis=1)) for k in (0, 4, 8)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    else:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = W, H, format_
            for k in range(3):
                frame = av.VideoFrame.from_ndarray(np.roll(rgba, 4 * k, axis=1), format="rgba")
                frame.pts = k
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with Video(str(path)) as video:
        frames = list(video.frames())
    assert len(frames) == 3
    for k, frame in enumerate(frames):
        assert frame.time_s == pytest.approx(k / 10)
        assert frame.av.pts is not None
        found = frame.rgb(W, H).astype(int)
        assert np.abs(found[:, 8 + 8 : 76] - (200, 0, 0)).max() <= 2
        assert (found[:, 92:] == 255).all()
        assert frame.gray(W, H)[:, 92:].min() >= 254


def test_a_png_of_16_bit_grey_with_one_transparent_level(tmp_path: Path) -> None:
    levels = _ramp().astype(">u2")
    levels[:, 100:] = 4660  # 0x1234
    _write_png(tmp_path / "a.png", levels, transparent=struct.pack(">H", 4660))
    found = _rgb(tmp_path / "a.png")
    assert (found[:, 101:] == 255).all()
    assert np.abs(found[:, 12:99] - np.linspace(0, 255, W)[None, 12:99, None]).max() <= 1


def _write_png(path: Path, rows: np.ndarray, transparent: bytes) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 0, 0, 0, 0)) + chunk(b"tRNS", transparent)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))
