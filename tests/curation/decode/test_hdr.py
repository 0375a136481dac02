"""HLG and PQ sources are tone-mapped to BT.709, for measures and clips alike.

The truth: the formulas of BT.2100 in the other direction, for the sources; ffmpeg's own filter `tonemap` for
the curve. 203 cd/m2 are white.
"""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from curation.config.schema import Cut, Run
from curation.decode import cut
from curation.decode.video import Video
from tests import render
from tests.curation.helpers import decode

PATCHES = [(200, 30, 30), (30, 180, 40), (40, 50, 200), (224, 172, 138), (128, 128, 128), (255, 255, 255)]
NITS = [0.0, 1, 10, 50, 100, 203, 400, 600, 800, 1000]
SIDE = 32
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMA = np.array([0.2627, 0.6780, 0.0593])


def _light() -> np.ndarray:
    """(squares, 3) light in cd/m2 of BT.709's primaries: six patches, and a row of greys."""
    patches = 203 * (np.array(PATCHES) / 255) ** 2.4
    return np.concatenate([patches, np.repeat(np.array(NITS)[:, None], 3, axis=1)])


def _pq(nits: np.ndarray) -> np.ndarray:
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def _hlg(nits: np.ndarray) -> np.ndarray:
    display = nits / 1000
    luma = (display @ LUMA)[:, None]
    scene = display * np.where(luma > 0, np.maximum(luma, 1e-12) ** (1 / 1.2 - 1), 0)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-12)) + c)


def _write(path: Path, transfer: str, frames: int = 10) -> Path:
    """10-bit HEVC whose frames show all squares side by side."""
    light = np.maximum(_light() @ TO_2020.T, 0)
    signal = {"pq": _pq, "hlg": _hlg}[transfer](light)
    luma = signal @ LUMA
    cb, cr = (signal[:, 2] - luma) / 1.8814, (signal[:, 0] - luma) / 1.4746
    planes = [
        np.round(o + s * v).astype(np.uint16) for o, s, v in ((64, 876, luma), (512, 896, cb), (512, 896, cr))
    ]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIDE * len(light), SIDE * 2, "yuv420p10le"
        tags = "colorprim=bt2020:colormatrix=bt2020nc:range=limited:transfer="
        tags += {"pq": "smpte2084", "hlg": "arib-std-b67"}[transfer]
        stream.options = {
            "preset": "ultrafast",
            "crf": "4",
            "x265-params": f"pools=none:log-level=none:{tags}",
        }
        for k in range(frames):
            frame = av.VideoFrame(stream.width, stream.height, "yuv420p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                row = np.zeros(plane.line_size // 2, np.uint16)
                wide = np.repeat(values, SIDE * plane.width // stream.width)
                row[: len(wide)] = wide
                plane.update(np.tile(row, (plane.height, 1)).tobytes())
            frame.colorspace, frame.color_range, frame.color_primaries = 9, 1, 9
            frame.color_trc = {"pq": 16, "hlg": 18}[transfer]
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _by_ffmpeg(light: np.ndarray) -> np.ndarray:
    """(n, 3) levels of 255: what ffmpeg's `tonemap` makes of linear light, with BT.1886's power."""
    n = len(light)
    frame = av.VideoFrame(n * 8, 8, "gbrpf32le")
    for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
        values = np.zeros((plane.height, plane.line_size // 4), np.float32)
        values[:, : n * 8] = np.repeat(light[:, channel] / 203, 8)
        plane.update(values.tobytes())
    frame.pts, frame.time_base, frame.color_trc = 0, Fraction(1, 25), 8
    graph = av.filter.Graph()
    source = graph.add_buffer(width=n * 8, height=8, format=frame.format, time_base=Fraction(1, 25))
    mapped = graph.add("tonemap", f"tonemap=mobius:param=0.5:desat=0:peak={1000 / 203}")
    sink = graph.add("buffersink")
    source.link_to(mapped)
    mapped.link_to(sink)
    graph.configure()
    source.push(frame)
    found = sink.pull()
    rows = [np.frombuffer(p, np.float32).reshape(8, -1)[4, 4 : n * 8 : 8] for p in found.planes]
    linear = np.stack([rows[2], rows[0], rows[1]], axis=1)
    return 255 * linear.clip(0, 1) ** (1 / 2.4)


def _squares(image: np.ndarray) -> np.ndarray:
    n = len(_light())
    step = image.shape[1] / n
    middle = image[image.shape[0] // 2]
    return np.array([middle[int((i + 0.5) * step)] for i in range(n)], float)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_pictures_are_tone_mapped_everywhere(transfer: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", transfer)
    wanted = _by_ffmpeg(_light())
    with Video(str(path)) as video:
        frame = next(video.frames())
        width, height = video.info.width, video.info.height
        assert video.info.hdr == transfer
        rgb, small = frame.rgb(width, height), frame.rgb(width // 4, height // 4)
        grey = frame.gray(width, height)
        bgr = frame.bgr_full()
    assert dataclasses.asdict(video.info)["transfer"] == {"pq": "smpte2084", "hlg": "arib-std-b67"}[transfer]
    span = {"clip_id": "c", "start_s": 0.0, "end_s": 0.4, "frames": 10, "fps": 25.0}
    request = {"uri": str(path), "spans": [span], "cut": Cut(crf=4).model_dump(), "run": Run().model_dump()}
    (message,) = (m for m in cut.run(request) if m.head["kind"] == "clip")
    clip = decode(message.parts[0])[0]
    for name, found in {"rgb": rgb, "small": small, "bgr": bgr[..., ::-1], "clip": clip}.items():
        # One level of 10 bits is up to 4 of 8 in the darkest squares.
        assert np.abs(_squares(found) - wanted).max() <= 6, name
    assert np.abs(_squares(grey) - wanted @ (0.2126, 0.7152, 0.0722)).max() <= 5
    # White is white, light beyond it is still told apart, and middle grey stays.
    greys = _squares(rgb)[len(PATCHES) :].mean(axis=1)
    assert (np.diff(greys) > 0).all()
    assert greys[NITS.index(50)] == pytest.approx(255 * (50 / 203) ** (1 / 2.4), abs=3)
    assert greys[NITS.index(203)] > 220
    assert greys[-1] >= 253
    with av.open(io.BytesIO(message.parts[0])) as container:
        frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc)) == (1, 1, 1)


def test_sdr_stays_as_it_was(tmp_path: Path) -> None:
    path = render.write_video(
        tmp_path / "a.mp4", render.pan(1, (96, 64), fps=25, seconds=0.4, speed=0.1), fps=25, colour=(9, 14, 9)
    )
    with Video(str(path)) as video:
        assert (video.info.hdr, video.info.transfer) == (None, "bt2020-10")  # BT.2020 with an SDR transfer
