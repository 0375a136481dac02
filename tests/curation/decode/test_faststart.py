"""Clips that can be read from a pipe: the index of an mp4 stands in front of its pictures.

The truth is ffmpeg's own reading, of frames from a source that cannot seek, and the places of boxes.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from curation.config.load import load_config
from curation.decode import cut
from curation.decode.container.faststart import index_first
from tests import render
from tests.conftest import CHEAP


class Pipe:
    """Bytes that can be read once, from front to back."""

    def __init__(self, data: bytes):
        self.read = io.BytesIO(data).read


def frames(source: Any) -> list[tuple[int | None, np.ndarray]]:
    with av.open(source, "r", format="mp4") as container:
        return [(f.pts, f.to_ndarray()) for f in container.decode(video=0)]


def kinds(mp4: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(mp4):
        size, kind = struct.unpack_from(">I4s", mp4, at)
        found.append(kind)
        at += size
    return found


def same(a: list[tuple[int | None, np.ndarray]], b: list[tuple[int | None, np.ndarray]]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(p == q and np.array_equal(x, y) for (p, x), (q, y) in pairs)


def encoded(n: int, size: tuple[int, int], *, sound: bool = False) -> bytes:
    """An mp4 as ffmpeg writes it to memory: its index is at the end."""
    out = io.BytesIO()
    with av.open(out, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "3"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for k in range(n):
            image = render.draw_counter(render.texture(k % 3, size[1], size[0]), k)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            if audio is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 640), "f4"), "fltp", "mono")
                samples.rate = 16000
                container.mux(audio.encode(samples))
        for each in filter(None, (stream, audio)):
            container.mux(each.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("n", [1, 2, 60])
@pytest.mark.parametrize("sound", [False, True])
def test_the_frames_and_the_bytes_of_pictures_stay(n: int, sound: bool) -> None:
    plain = encoded(n, (320, 192), sound=sound)
    moved = index_first(plain)
    assert kinds(plain).index(b"mdat") < kinds(plain).index(b"moov")
    assert kinds(moved).index(b"moov") < kinds(moved).index(b"mdat")
    assert sorted(kinds(plain)) == sorted(kinds(moved))
    assert len(moved) == len(plain)
    if n == 60:  # ffmpeg keeps what is shorter as a whole
        with pytest.raises(av.error.FFmpegError):
            frames(Pipe(plain))  # what was wrong
    read = frames(Pipe(moved))
    assert [render.read_counter(y[:192]) for _, y in read] == list(range(n))
    assert same(read, frames(io.BytesIO(plain)))
    assert same(read, frames(io.BytesIO(moved)))
    assert index_first(moved) == moved
    # Every packet is found at its place, and holds the same bytes.
    packets = []
    for data in (plain, moved):
        with av.open(io.BytesIO(data)) as container:
            packets.append([(p.stream_index, p.pts, bytes(p)) for p in container.demux() if p.size])
            at = [(p.pos, bytes(p)) for p in av.open(io.BytesIO(data)).demux() if p.size]
            assert all(data[pos : pos + len(packet)] == packet for pos, packet in at)
    assert packets[0] == packets[1]


def test_tables_with_places_of_64_bits() -> None:
    """As they are in files above 4 GB: the same table, written by hand with twice the width."""
    plain = encoded(20, (96, 64))
    start = plain.index(b"moov") - 4
    at = plain.index(b"stco", start) - 4
    size, _, head, count = struct.unpack_from(">I4sII", plain, at)
    places = struct.unpack_from(f">{count}I", plain, at + 16)
    table = struct.pack(f">I4sII{count}Q", 16 + 8 * count, b"co64", head, count, *places)
    wide = bytearray(plain[:at] + table + plain[at + size :])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = wide.index(kind, start) - 4
        (before,) = struct.unpack_from(">I", wide, place)
        struct.pack_into(">I", wide, place, before + len(table) - size)
    assert same(frames(io.BytesIO(bytes(wide))), frames(io.BytesIO(plain)))
    assert same(frames(Pipe(index_first(bytes(wide)))), frames(io.BytesIO(plain)))


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\x08free", b"\0\0\0\x08ftyp\0\0\0\x10moov\0\0\0\0\0\0\0\0", b"\0\0\0\x04ftyp"]
)
def test_what_is_no_mp4_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an mp4 of our encoder"):
        index_first(data)


def test_clips_can_be_read_from_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    render.write_video(path, render.counted(render.scenes([30], (160, 96), fps=20)), fps=20)
    config = load_config(CHEAP)
    span = {"clip_id": "c", "start_s": 0.25, "end_s": 1.5, "frames": 25, "fps": 20.0}
    request = {
        "uri": str(path),
        "spans": [span],
        "cut": config.cut.model_dump(),
        "run": config.run.model_dump(),
    }
    (mp4,) = (m.parts[0] for m in cut.run(request) if m.head["kind"] == "clip")
    assert kinds(mp4).index(b"moov") < kinds(mp4).index(b"mdat")
    assert [render.read_counter(y[:96]) for _, y in frames(Pipe(mp4))] == list(range(5, 30))
