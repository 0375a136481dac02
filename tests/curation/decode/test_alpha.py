"""Transparent parts of videos of YCbCr, of wide RGB and of grey show white. The truth: arithmetic."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from curation.config.load import load_config
from curation.decode.pixels.alpha import opaque
from curation.decode.video import Video
from tests.curation.helpers import cut, decode, measure

W, H = 192, 64
INK = (200, 40, 40)
PLACES = {32: 255, 96: 128, 160: 0}  # x -> alpha: opaque, half transparent, transparent over a hidden green

CASES = [
    ("prores.mov", "prores_ks", "yuva444p10le", {"profile": "4"}),
    ("vp9.webm", "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "0"}),
    ("vp8.webm", "libvpx", "yuva420p", {"auto-alt-ref": "0", "crf": "4", "b": "4000000"}),
    ("ffv1.mkv", "ffv1", "yuva420p", {}),
    ("ffv1-422.mkv", "ffv1", "yuva422p10le", {}),
    ("ffv1-16.mkv", "ffv1", "yuva444p16le", {}),
    ("utvideo.avi", "utvideo", "gbrap", {}),
    ("cineform.mov", "cfhd", "gbrap12le", {}),
    ("png.mov", "png", "rgba64be", {}),
]


def picture(alpha: int | None = None) -> np.ndarray:
    """(H, W, 4) RGBA in thirds. alpha: of all of it."""
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[:, :64], rgba[:, 64:128], rgba[:, 128:] = (*INK, 255), (*INK, 128), (0, 255, 0, 0)
    if alpha is not None:
        rgba[..., 3] = alpha
    return rgba


def write(
    path: Path, codec: str, format_: str, options: dict[str, str], rgba: np.ndarray, n: int = 12
) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = W, H, format_
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=format_)
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def over_white(alpha: int) -> np.ndarray:
    return np.array(INK) * alpha / 255 + 255 * (1 - alpha / 255)


@pytest.mark.parametrize(("name", "codec", "format_", "options"), CASES)
def test_a_white_ground_shows(
    name: str, codec: str, format_: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / name, codec, format_, options, picture())
    with Video(path) as video:
        frames = list(video.frames())
    assert [f.time_s for f in frames] == pytest.approx([k / 10 for k in range(12)])
    for frame in (frames[0], frames[-1]):
        rgb, gray = frame.rgb(W, H).astype(float), frame.gray(W, H)
        for x, alpha in PLACES.items():
            assert np.abs(rgb[H // 2, x] - over_white(alpha)).max() <= 5, (x, rgb[H // 2, x])
        assert gray[:, 140:].min() >= 252


@pytest.mark.parametrize("name", ["prores.mov", "vp9.webm"])
def test_clips_and_seeks_have_it_too(name: str, tmp_path: Path) -> None:
    _, codec, format_, options = next(c for c in CASES if c[0] == name)
    path = write(tmp_path / name, codec, format_, options, picture(), 40)
    config = load_config(
        "filters: {quality: {}}\nshots: {detector: none}\nspans: {trim_seconds: 0}\ncut: {crf: 1}\n"
    )
    (clip,), _ = measure(path, config)
    ((_, mp4),) = cut(path, [clip], config)
    for x, alpha in PLACES.items():
        assert np.abs(decode(mp4)[20][H // 2, x].astype(float) - over_white(alpha)).max() <= 6
    with Video(path) as video:
        first = next(video.frames_from(3.0), None)
    if codec.startswith("libvpx"):  # it does not say which frames are key frames: decode from the start
        assert first is None
        return
    assert first is not None
    assert 0 < first.time_s <= 3.0
    assert np.abs(first.rgb(W, H)[H // 2, 160].astype(int) - 255).max() <= 5


@pytest.mark.parametrize("format_", ["yuva420p", "yuva444p10le", "rgba64le", "gbrap", "ya8", "rgba"])
def test_frames_that_are_opaque_stay_as_they_are(format_: str) -> None:
    frame = av.VideoFrame.from_ndarray(picture(255), format="rgba").reformat(format=format_)
    assert opaque(frame) is frame


def test_full_range_and_tags_are_kept() -> None:
    frame = av.VideoFrame.from_ndarray(picture(0), format="rgba").reformat(
        format="yuva420p", dst_color_range="JPEG", dst_colorspace="ITU709"
    )
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = 1, 9, 14, 2
    frame.pts, frame.time_base = 7, Fraction(1, 10)
    found = opaque(frame)
    assert found.format.name == "yuv420p"
    assert (found.pts, found.colorspace, found.color_primaries, found.color_trc) == (7, 1, 9, 14)
    assert int(found.color_range) == 2
    planes = found.to_ndarray()
    assert (planes[:H] == 255).all()
    assert (planes[H:] == 128).all()
