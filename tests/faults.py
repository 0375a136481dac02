"""Broken, odd and hostile files: what a folder from the internet holds besides good videos.

`write_corpus` is a function of its seed: the same call writes the same bytes. The files are tiny, a second or
two of 64x48 pixels; those of 8 GB are holes and take no room.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from tests.render import Frame, pan, write_video

Expect = Literal["fails", "measures", "either"]

HOLE_BYTES = 8 << 30
SIZE = (64, 48)
FPS = 12
SECONDS = 1.5
_BITEXACT = {"fflags": "bitexact"}


@dataclass(frozen=True)
class Fault:
    """One name of the corpus.

    expect: what becomes of it: "either" where that is the decoder's taste. A file that "measures" may have
        no clips.
    copy_of: the path that has the same content, and comes before it in the order of paths.
    uri: how the name is stored.
    """

    path: Path
    kind: str
    expect: Expect
    copy_of: Path | None = None

    @property
    def uri(self) -> str:
        # Only the one byte that `_names` uses is not UTF-8, and no such name holds a backslash.
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")


def write_corpus(folder: Path, seed: int = 0) -> list[Fault]:
    """Write the corpus below `folder`, in order of paths. What is unreadable stays so: see `unlock`."""
    corpus = _Corpus(folder, seed)
    for write in (
        _not_videos,
        _truncated,
        _flipped,
        _lying_headers,
        _streams,
        _no_key_frames,
        _times,
        _geometry,
        _pixels,
        _codecs,
        _containers,
        _changing_size,
        _large,
        _no_files,
        _names,
        _caption_files,
        _playlists,
        _images,
        _copies,
    ):
        write(corpus)
    return sorted(corpus.faults, key=lambda f: f.uri)


def unlock(folder: Path) -> None:
    """Make readable again what `write_corpus` made unreadable, so that the folder can be removed."""
    for locked in folder.rglob("locked*"):
        locked.chmod(0o700)


class _Corpus:
    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.faults: list[Fault] = []

    def name(self, kind: str, name: str, expect: Expect, copy_of: Path | None = None) -> Path:
        """Enter a path that the caller makes."""
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.faults.append(Fault(path, kind, expect, copy_of))
        return path

    def file(self, kind: str, name: str, expect: Expect, content: bytes) -> Path:
        path = self.name(kind, name, expect)
        path.write_bytes(content)
        return path


# ---------------------------------------------------------------------------------------------------
# Making videos
# ---------------------------------------------------------------------------------------------------


def _frames(seed: int = 1, size: tuple[int, int] = SIZE, seconds: float = SECONDS) -> Iterator[Frame]:
    return pan(seed, size, fps=FPS, seconds=seconds, speed=0.1)


def _encoded(suffix: str, frames: Iterable[Frame] | None = None, **settings: object) -> bytes:
    """The bytes of a video; `settings` are those of `tests.render.write_video`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{suffix}"
        options: dict = {"fps": FPS, "container_options": _BITEXACT, **settings}
        if str(options.get("codec", "libx264")).startswith("libx264"):
            # Its macroblock tree reads beyond pictures this small: other bytes on every run.
            options["options"] = {"mbtree": "0"}
        write_video(path, _frames() if frames is None else frames, **options)
        return path.read_bytes()


@cache
def _base(suffix: str) -> bytes:
    """A sound video of each container, with several key frames."""
    codecs = {".webm": "libvpx-vp9", ".avi": "mpeg4", ".gif": "gif", ".flv": "flv", ".mpg": "mpeg2video"}
    codec = codecs.get(suffix, "libx264")
    # MPEG-1 and 2 know a few rates only.
    settings: dict = {"fps": 24} if suffix == ".mpg" else {}
    return _encoded(suffix, codec=codec, gop=6, pix_fmt="rgb8" if suffix == ".gif" else None, **settings)


_CONTAINERS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".flv", ".gif")


def _repacked(data: bytes, suffix: str, keep: Callable[[int, av.Packet], bool], *, shift: int = 0) -> bytes:
    """Some packets of a video in a new container, `shift` ticks later."""
    buffer = io.BytesIO()
    form = {".mkv": "matroska", ".ts": "mpegts"}.get(suffix, suffix[1:])
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", form, options=_BITEXACT) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()  # or nothing at all is written of no packets
        packets = [p for p in source.demux(video=0) if p.dts is not None]
        for k, packet in enumerate(packets):
            if keep(k, packet):
                packet.dts += shift
                packet.pts += shift
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def _tone(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    """Fill a stream with a quiet tone."""
    wave = (np.sin(np.arange(int(16000 * SECONDS)) * 0.1) * 3000).astype(np.int16)
    sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    sound.sample_rate = 16000
    sound.pts, sound.time_base = 0, Fraction(1, 16000)
    container.mux(stream.encode(sound))
    container.mux(stream.encode(None))


def _box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def _variant(number: int) -> bytes:
    """A sound mp4, other bytes for each number: a box at its end that players skip."""
    return _base(".mp4") + _box(b"free", struct.pack(">I", number))


def _patched(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` at `offset` bytes after the end of the first `mark`."""
    at = data.index(mark) + len(mark) + offset
    assert at + len(new) <= len(data)
    return data[:at] + new + data[at + len(new) :]


# ---------------------------------------------------------------------------------------------------
# The kinds
# ---------------------------------------------------------------------------------------------------


def _not_videos(corpus: _Corpus) -> None:
    corpus.file("empty", "zero.mp4", "fails", b"")
    for name, content in {"one.mp4": b"\0", "blank.mkv": b" ", "newline.webm": b"\n"}.items():
        corpus.file("empty", name, "fails", content)

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("v.mp4"), _base(".mp4"))
    contents = {
        "text.mp4": b"This is no video.\n" * 50,
        "page.mp4": b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n",
        "answer.mp4": b'{"error": "rate limit exceeded"}\n',
        "archive.mp4": archive.getvalue(),
        "packed.mp4": gzip.compress(_base(".mp4"), mtime=0),
        "script.mp4": b"#!/bin/sh\ntouch pwned\n",
        "program.mp4": b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(200),
        "paper.mp4": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "database.avi": b"SQLite format 3\0" + bytes(200),
        "pointer.mp4": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "subtitles.mkv": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
        "text.gif": b"GIF, but only in name\n",
        "text.ts": b"export const answer: number = 42;\n" * 100,  # TypeScript
        "text.y4m": b"YUV4MPEG3 is not a format\n",
        "text.h264": b"no start code anywhere\n" * 20,
        "zeros.mpg": bytes(10_000),
    }
    for name, content in contents.items():
        corpus.file("not a video", name, "fails", content)
    for k, suffix in enumerate((".mp4", ".mkv", ".ts", ".avi")):
        corpus.file("not a video", f"random{k}{suffix}", "either", corpus.random.randbytes(20_000))


def _truncated(corpus: _Corpus) -> None:
    for suffix in _CONTAINERS:
        data = _base(suffix)
        n = len(data)
        for name, content in {
            "tail 90": data[: n * 9 // 10],
            "tail 50": data[: n // 2],
            "tail 2": data[: n // 50],
            "head 40": data[40:],
            "head 20 percent": data[n // 5 :],
            "middle": data[: n // 3] + data[n * 2 // 3 :],
        }.items():
            # The index of an mp4 is at its end: without it there is nothing to go by.
            lost = suffix in (".mp4", ".mov") and name.startswith("tail")
            corpus.file("truncated", f"{name}{suffix}", "fails" if lost else "either", content)


def _flipped(corpus: _Corpus) -> None:
    for suffix in _CONTAINERS:
        for k in range(6):
            data = bytearray(_base(suffix))
            # From one bit to a tenth of a percent, and to noise all over.
            for _ in range((1, 4, 10, 30, 100, 300)[k]):
                data[corpus.random.randrange(len(data))] ^= 1 << corpus.random.randrange(8)
            corpus.file("flipped", f"{k}{suffix}", "either", bytes(data))


def _lying_headers(corpus: _Corpus) -> None:
    mp4, mkv, avi = _base(".mp4"), _base(".mkv"), _base(".avi")
    huge = b"\x7f\xff\xff\xff"
    for name, mark, offset, new in [
        ("movie duration", b"mvhd", 16, huge),
        ("movie scale 1", b"mvhd", 12, b"\0\0\0\1"),
        ("movie scale 0", b"mvhd", 12, b"\0\0\0\0"),
        ("track duration", b"tkhd", 20, huge),
        ("media duration", b"mdhd", 16, huge),
        ("media scale 1", b"mdhd", 12, b"\0\0\0\1"),
        ("media scale 0", b"mdhd", 12, b"\0\0\0\0"),
        ("edit duration", b"elst", 8, huge),
        ("edit start", b"elst", 12, huge),
        ("frames of one length", b"stts", 8, huge),
        ("length of frames", b"stts", 12, huge),
        ("number of lengths", b"stts", 4, huge),
        ("number of sizes", b"stsz", 8, huge),
        ("size of frames", b"stsz", 4, huge),
        ("place of frames", b"stco", 8, huge),
        ("number of places", b"stco", 4, huge),
        ("stored width", b"avc1", 24, b"\xff\xff\xff\xff"),
        ("box of zero", b"mdia", -8, b"\0\0\0\0"),
        ("box of all", b"moov", -8, b"\xff\xff\xff\xff"),
        ("box of 16 EB", b"moov", -8, b"\0\0\0\1"),
    ]:
        corpus.file("lying header", f"{name}.mp4", "either", _patched(mp4, mark, offset, new))
    long = _patched(_patched(mp4, b"mvhd", 16, huge), b"mdhd", 16, huge)
    corpus.file("lying header", "all durations.mp4", "either", _patched(long, b"tkhd", 20, huge))
    for name, seconds in {
        "days": 1e12,
        "infinite": float("inf"),
        "nan": float("nan"),
        "negative": -1e9,
    }.items():
        patched = _patched(mkv, b"\x44\x89\x88", 0, struct.pack(">d", seconds))
        corpus.file("lying header", f"{name}.mkv", "either", patched)
    for name, offset, new in [
        ("frames", 20, huge[::-1]),
        ("microseconds 0", 4, bytes(4)),
        ("size", 36, b"\xff\xff\0\0\xff\xff\0\0"),
    ]:
        corpus.file("lying header", f"{name}.avi", "either", _patched(avi, b"avih", offset, new))
    corpus.file("lying header", "length.avi", "either", _patched(avi, b"strh", 36, huge[::-1]))
    corpus.file("lying header", "rate.avi", "either", _patched(avi, b"strh", 24, huge[::-1] + bytes(4)))
    canvas = _patched(_base(".gif"), b"GIF89a", 0, b"\xff\xff\xff\xff")
    corpus.file("lying header", "canvas.gif", "either", canvas)
    corpus.file(
        "lying header", "plane.y4m", "fails", b"YUV4MPEG2 W100000 H100000 F25:1 C420\nFRAME\n" + bytes(64)
    )
    ivf = b"DKIF\0\0 \0VP90\xff\xff\xff\xff" + struct.pack("<IIII", 25, 1, 1 << 30, 0)
    corpus.file("lying header", "plane.ivf", "fails", ivf + bytes(64))
    deep = b""
    for _ in range(4000):
        deep = _box(b"moov", deep)
    corpus.file("lying header", "deep.mp4", "fails", mp4[:32] + deep)


def _streams(corpus: _Corpus) -> None:
    for name, codec in {
        "sound.mp4": "aac",
        "sound.mkv": "pcm_s16le",
        "sound.avi": "pcm_s16le",
        "sound.ts": "mp2",
    }.items():
        path = corpus.name("no pictures", name, "fails")
        with av.open(str(path), "w", options=_BITEXACT) as container:
            _tone(container, container.add_stream(codec, rate=16000))
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(cover, "JPEG")
    path = corpus.name("no pictures", "sound with a cover.mp4", "fails")
    with av.open(str(path), "w", options=_BITEXACT) as container:
        picture = container.add_stream("mjpeg", rate=1)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(cover.getvalue())
        packet.stream = picture
        packet.pts = packet.dts = 0
        sound = container.add_stream("aac", rate=16000)
        container.mux(packet)
        _tone(container, sound)
    path = corpus.name("several streams", "sound first.mp4", "measures")
    with av.open(io.BytesIO(_base(".mp4"))) as source, av.open(str(path), "w", options=_BITEXACT) as target:
        sound = target.add_stream("aac", rate=16000)
        video = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        _tone(target, sound)
    path = corpus.name("several streams", "two videos.mkv", "measures")
    small = _encoded(".mp4", _frames(2, (32, 32)))
    with (
        av.open(io.BytesIO(_base(".mp4"))) as a,
        av.open(io.BytesIO(small)) as b,
        av.open(str(path), "w", options=_BITEXACT) as target,
    ):
        outs = [target.add_stream_from_template(s.streams.video[0]) for s in (a, b)]
        for source, out in zip((a, b), outs, strict=True):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = out
                    target.mux(packet)
    first = next(_frames())
    for suffix in (".mp4", ".mkv", ".avi"):
        codec = "mpeg4" if suffix == ".avi" else "libx264"
        corpus.file("one frame", f"one{suffix}", "measures", _encoded(suffix, [first], codec=codec))
    corpus.file("one frame", "no frame.mp4", "fails", _repacked(_base(".mp4"), ".mp4", lambda k, p: False))


def _no_key_frames(corpus: _Corpus) -> None:
    for codec, suffix in [("libx264", ".mp4"), ("libx264", ".mkv"), ("libx264", ".ts"), ("mpeg4", ".avi")]:
        whole = _encoded(suffix, codec=codec, gop=100)
        corpus.file(
            "no key frames", f"{codec}{suffix}", "either", _repacked(whole, suffix, lambda k, p: k > 0)
        )
    whole = _base(".mp4")
    none = _repacked(whole, ".mp4", lambda k, p: not p.is_keyframe)
    corpus.file("no key frames", "none.mp4", "either", none)
    last = _repacked(_encoded(".mp4", gop=12), ".mp4", lambda k, p: k > 0)
    corpus.file("no key frames", "only a later one.mp4", "either", last)


def _times(corpus: _Corpus) -> None:
    n = round(FPS * SECONDS)
    even = [k / FPS for k in range(n)]
    slower = [k / FPS if k < n // 2 else (2 * k - n // 2) / FPS for k in range(n)]
    jitter = [t + corpus.random.uniform(0, 0.8 / FPS) for t in even]
    gap = [t + (30 if k > n // 2 else 0) for k, t in enumerate(even)]
    crowd = [k / 10_000 for k in range(n)]
    day = [t + 86_400 for t in even]
    wrap = [t + 2**33 / 90_000 - 0.7 for t in even]  # MPEG-TS counts 26.5 hours, and from 0 again
    for name, pts in {
        "slower.mp4": slower,
        "slower.mkv": slower,
        "jitter.webm": jitter,
        "gap.mp4": gap,
    }.items():
        codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
        data = _encoded(Path(name).suffix, pts=pts, codec=codec)
        corpus.file("variable rate", name, "measures", data)
    corpus.file("variable rate", "crowd.mp4", "measures", _encoded(".mp4", pts=crowd))
    for name, pts in {
        "5 s.mp4": [t + 5 for t in even],
        "5 s.mkv": [t + 5 for t in even],
        "day.mp4": day,
    }.items():
        corpus.file("start", name, "measures", _encoded(Path(name).suffix, pts=pts))
    corpus.file("start", "wrap.ts", "measures", _encoded(".ts", pts=wrap))
    before = _repacked(_base(".mp4"), ".mp4", lambda k, p: True, shift=-6 * 1024)
    corpus.file("start", "before 0.mp4", "measures", before)
    before = _repacked(_base(".mp4"), ".mov", lambda k, p: True, shift=-3 * 1024)
    corpus.file("start", "before 0.mov", "measures", before)
    edited = _patched(_base(".mp4"), b"elst", 12, struct.pack(">I", 9 * 1024))
    corpus.file("start", "edited away.mp4", "measures", edited)


def _geometry(corpus: _Corpus) -> None:
    for rotation in (90, 180, 270):
        for suffix in (".mp4", ".mov"):
            data = _encoded(suffix, rotation=rotation)
            corpus.file("rotated", f"{rotation}{suffix}", "measures", data)
    for name, sar in {
        "anamorphic": (4, 3),
        "narrow": (1, 2),
        "prime": (1009, 1013),
        "extreme": (400, 1),
    }.items():
        expect: Expect = "either" if name == "extreme" else "measures"
        corpus.file("pixel aspect", f"{name}.mp4", expect, _encoded(".mp4", sar=sar))
    corpus.file("pixel aspect", "both.mkv", "measures", _encoded(".mkv", sar=(3, 2)))
    for width, height in [(65, 49), (63, 47), (1, 1), (2, 2), (17, 16), (16, 300), (300, 16), (3, 200)]:
        frames = _frames(3, (width, height))
        data = _encoded(".mkv", frames, codec="ffv1", pix_fmt="yuv444p")
        corpus.file("odd size", f"{width}x{height}.mkv", "measures", data)
    corpus.file(
        "odd size", "vp9 65x49.webm", "measures", _encoded(".webm", _frames(3, (65, 49)), codec="libvpx-vp9")
    )


def _pixels(corpus: _Corpus) -> None:
    for codec, pix_fmt, suffix in [
        ("libx264", "yuv444p", ".mp4"),
        ("libx264", "yuv422p", ".mp4"),
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv422p10le", ".mkv"),
        ("libx264", "yuv444p10le", ".mkv"),
        ("libx264", "gray", ".mp4"),
        ("libx264", "gray10le", ".mkv"),
        ("libx264", "yuvj420p", ".mp4"),
        ("libx264", "nv12", ".mp4"),
        ("libx264rgb", "rgb24", ".mkv"),
        ("libx265", "yuv420p10le", ".mp4"),
        ("libx265", "yuv420p12le", ".mkv"),
        ("libx265", "gray", ".mp4"),
        ("libx265", "gbrp", ".mkv"),
        ("libvpx-vp9", "yuv444p", ".webm"),
        ("libvpx-vp9", "yuva420p", ".webm"),
        ("ffv1", "bgra", ".mkv"),
        ("ffv1", "yuv410p", ".mkv"),
        ("ffv1", "gray16le", ".mkv"),
        ("prores_ks", "yuva444p10le", ".mov"),
        ("qtrle", "rgb24", ".mov"),
    ]:
        data = _encoded(suffix, codec=codec, pix_fmt=pix_fmt)
        corpus.file("pixels", f"{codec} {pix_fmt}{suffix}", "measures", data)
    for name, colour in {
        "pq": (9, 16, 9),
        "hlg": (9, 18, 9),
        "bt601": (6, 6, 6),
        "identity": (1, 13, 0),
    }.items():
        # The identity matrix says RGB of what is YUV.
        expect: Expect = "either" if name == "identity" else "measures"
        pix_fmt = "yuv420p" if name == "bt601" else "yuv444p10le" if name == "identity" else "yuv420p10le"
        data = _encoded(".mp4", codec="libx265", pix_fmt=pix_fmt, colour=colour)
        corpus.file("colour tags", f"{name}.mp4", expect, data)


def _codecs(corpus: _Corpus) -> None:
    for codec, suffix, settings in [
        ("libsvtav1", ".mp4", {}),
        ("libsvtav1", ".mkv", {"pix_fmt": "yuv420p10le"}),
        ("libvpx-vp9", ".mp4", {}),
        ("libvpx", ".webm", {}),
        ("libx265", ".mov", {}),
        ("mpeg4", ".mp4", {}),
        ("mjpeg", ".mov", {}),
        ("mjpeg", ".avi", {}),
        ("gif", ".gif", {"pix_fmt": "gray"}),
        ("mpeg1video", ".mpg", {"fps": 25}),
        ("mpeg2video", ".ts", {"fps": 25}),
        ("wmv2", ".avi", {}),
        ("msmpeg4", ".avi", {}),
        ("prores_ks", ".mov", {"pix_fmt": "yuv422p10le"}),
        ("huffyuv", ".avi", {"pix_fmt": "yuv422p"}),
        ("rawvideo", ".avi", {}),
        ("png", ".mov", {"pix_fmt": "rgb24"}),
        ("snow", ".mkv", {"options": {"strict": "-2"}}),
    ]:
        # Theora has no encoder in PyAV's ffmpeg; VP8 stands for the older free codecs.
        expect: Expect = "either" if codec in ("snow",) else "measures"
        name = f"{codec} {'-'.join(map(str, settings.values())) if 'options' not in settings else ''}".strip()
        corpus.file("codec", f"{name}{suffix}", expect, _encoded(suffix, codec=codec, **settings))


def _containers(corpus: _Corpus) -> None:
    for suffix, settings in {
        ".m4v": {},
        ".3gp": {},
        ".m2ts": {},
        ".f4v": {},
        ".y4m": {"codec": "wrapped_avframe"},
        ".h264": {},
        ".hevc": {"codec": "libx265"},
        ".ivf": {"codec": "libvpx-vp9"},
        ".vob": {"codec": "mpeg2video", "fps": 25},
        ".wmv": {"codec": "wmv2"},
        ".asf": {"codec": "mpeg4"},
        ".mxf": {"codec": "mpeg2video", "fps": 25},
        ".ogv": {"codec": "libvpx"},
        ".dv": {},
    }.items():
        if suffix == ".dv":  # fixed sizes
            frames = _frames(4, (720, 576), 0.5)
            data = _encoded(suffix, frames, codec="dvvideo", fps=25)
        else:
            data = _encoded(suffix, **settings)
        corpus.file("container", f"v{suffix}", "measures", data)
    for suffix in (".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".flv", ".mpg"):
        corpus.file("container", f"sound{suffix}", "measures", _base(suffix))
    fragmented = {**_BITEXACT, "movflags": "frag_keyframe+empty_moov+default_base_moof"}
    corpus.file(
        "container", "fragments.mp4", "measures", _encoded(".mp4", gop=6, container_options=fragmented)
    )
    front = {**_BITEXACT, "movflags": "faststart"}
    corpus.file("container", "index first.mp4", "measures", _encoded(".mp4", container_options=front))
    corpus.file("container", "matroska inside.mp4", "measures", _base(".mkv") + b"\0")
    corpus.file("container", "mp4 inside.mkv", "measures", _variant(1))
    corpus.file("container", "gif inside.mp4", "measures", _base(".gif") + b"\0")


def _changing_size(corpus: _Corpus) -> None:
    for suffix in (".h264", ".ts", ".mpg"):
        settings: dict = {"codec": "mpeg2video", "fps": 25} if suffix == ".mpg" else {}
        parts = [_encoded(suffix, _frames(5, size), **settings) for size in (SIZE, (96, 80), (32, 64))]
        corpus.file("changing size", f"three{suffix}", "either", b"".join(parts))
        corpus.file("changing size", f"to and fro{suffix}", "either", b"".join(parts[:2] * 2))
    # One track with packets of two encoders, as broken recorders write it.
    buffer = io.BytesIO()
    parts = [_encoded(".mkv", _frames(5, size), codec="mjpeg") for size in (SIZE, (96, 80))]
    with av.open(buffer, "w", "mp4", options=_BITEXACT) as target:
        stream: av.VideoStream | None = None
        for k, part in enumerate(parts):
            with av.open(io.BytesIO(part)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is not None:
                        packet.pts = packet.dts = packet.dts + k * 2000
                        packet.stream = stream
                        target.mux(packet)
    corpus.file("changing size", "inside.mp4", "either", buffer.getvalue())


def _large(corpus: _Corpus) -> None:
    wide = _frames(6, (16384, 16), 0.5)
    corpus.file("wide", "16384x16.mp4", "measures", _encoded(".mp4", wide, crf=40))
    wide = _frames(6, (16384, 64), 0.2)
    corpus.file("wide", "16384x64.avi", "measures", _encoded(".avi", wide, codec="mjpeg", crf=31))
    tall = _encoded(".avi", _frames(6, (4, 16384), 0.5), codec="mjpeg", crf=31)
    corpus.file("wide", "4x16384.avi", "either", tall)
    for name, head in {
        "hole.mp4": b"",
        "head, then a hole.mp4": _base(".mp4"),
        "hole.ts": _base(".ts"),
    }.items():
        path = corpus.file("sparse", name, "fails" if not head else "either", head)
        os.truncate(path, HOLE_BYTES)


def _no_files(corpus: _Corpus) -> None:
    os.mkfifo(corpus.name("no file", "pipe.mp4", "fails"))
    os.mkfifo(corpus.name("no file", "pipe.png", "fails"))
    corpus.name("no file", "folder.mp4", "fails").mkdir()
    folder = corpus.name("no file", "folder with text.mkv", "fails")
    folder.mkdir()
    (folder / "notes.txt").write_text("no media here")
    for a, b in [
        ("self.mp4", "self.mp4"),
        ("a.mp4", "b.mp4"),
        ("b.mp4", "a.mp4"),
        ("dangling.mp4", "nowhere"),
    ]:
        corpus.name("no file", a, "fails").symlink_to(b)
    corpus.name("no file", "device.mp4", "fails").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    path = corpus.name("no file", "socket.mp4", "fails")
    os.chdir(path.parent)  # a socket's whole path may have 107 bytes
    try:
        listening.bind(path.name)
    finally:
        os.chdir(here)
        listening.close()
    corpus.name("no file", "loop.mp4", "fails").symlink_to(".", target_is_directory=True)
    (corpus.folder / "no file" / "up").symlink_to("..", target_is_directory=True)

    corpus.file("no permission", "locked.mp4", "fails", _variant(2)).chmod(0)
    folder = corpus.name("no permission", "locked folder", "fails")
    folder.mkdir()
    (folder / "inside.mp4").write_bytes(_variant(3))
    folder.chmod(0)
    folder = corpus.folder / "no permission" / "locked names"  # they can be listed, and no more
    corpus.file("no permission", "locked names/inside.mp4", "fails", _variant(4))
    folder.chmod(0o600)


def _names(corpus: _Corpus) -> None:
    names = [
        "line\nbreak.mp4",
        "carriage\rreturn.mp4",
        "tab\there.mp4",
        'it\'s "quoted" `now`.mp4',
        "🎬 café 動画.mp4",
        "right\u202eto left.mp4",
        "combining e\u0301.mp4",
        "-rf.mp4",
        "--help.mp4",
        "-i http:.mp4",
        "$(touch pwned).mp4",
        "; touch pwned;.mp4",
        "concat:a.mp4|b.mp4",
        "file:v.mp4",
        "..%2f..%2fetc%2fpasswd.mp4",
        "..\\..\\up.mp4",
        "~root.mp4",
        "%03d.mp4",
        "<script>alert(1)</script>.mp4".replace("/", "\u2215"),
        "[b]{c}*?.mp4",
        "{{ 7 * 7 }}.mp4",
        "escape \x1b[31mred\x1b[0m \x07.mp4",
        "delete \x7f c1 \x9b.mp4",
        " leading and trailing .mp4",
        "=cmd|' -C calc'!A0.mp4",
        "x" * 251 + ".mp4",
    ]
    for k, name in enumerate(names):
        corpus.file("name", name, "measures", _variant(100 + k))
    # One that fails: the failures of a report are shown by name.
    corpus.file("name", "<img src=x onerror=alert(3)>.mp4", "fails", b"not a video either\n")
    for k, raw in enumerate((b"latin \xe9.mp4", b"\xff\xfe.mp4", b"half \xf0\x9f\x8e.mp4")):
        corpus.file("name", os.fsdecode(raw), "fails", _variant(200 + k))


def _caption_files(corpus: _Corpus) -> None:
    """Sound videos beside captions that are not."""
    contents = {
        "not json.json": b"{caption: 'no quotes'}",
        "no caption.json": b'{"title": "a video"}',
        "deep.json": b"[" * 100_000,
        "half a character.json": b'{"caption": "half \\ud83c"}',
        "no text.txt": corpus.random.randbytes(1000),
        "control.txt": b"\x1b[31mred\x1b[0m \x00 \x07",
        "markup.txt": b"<script>alert(2)</script>",
        "no times.vtt": b"WEBVTT\n\n99:99:99.999 --> 00:00:00.000\nbackwards\n",
        "blanks.srt": b"\n" * 100_000,
    }
    for k, (name, content) in enumerate(contents.items()):
        path = corpus.file("caption file", Path(name).with_suffix(".mp4").name, "measures", _variant(600 + k))
        path.with_name(name).write_bytes(content)
    path = corpus.file("caption file", "pipe.mp4", "measures", _variant(620))
    os.mkfifo(path.with_suffix(".txt"))
    path = corpus.file("caption file", "folder.mp4", "measures", _variant(621))
    path.with_suffix(".txt").mkdir()
    path = corpus.file("caption file", "locked text.mp4", "measures", _variant(622))
    path.with_suffix(".txt").touch(0)


def _playlists(corpus: _Corpus) -> None:
    good = corpus.folder / "playlist" / "target.mp4"
    corpus.file("playlist", good.name, "measures", _variant(300))
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    scripts = {
        "hls.mp4": hls.format(good.name),
        "hls absolute.mp4": hls.format(f"file:{good}"),
        "hls remote.mp4": hls.format("http://127.0.0.1:9/v.ts"),
        "hls concat.ts": hls.format(f"concat:{good}|/etc/passwd"),
        "concat.mp4": f"ffconcat version 1.0\nfile {good.name}\n",
        "concat absolute.mkv": f"ffconcat version 1.0\nfile '{good}'\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
        f"<AdaptationSet><Representation><BaseURL>{good.name}</BaseURL></Representation></AdaptationSet>"
        "</Period></MPD>\n",
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "m3u.avi": f"{good}\n",
        "asx.wmv": f'<asx version="3.0"><entry><ref href="file://{good}"/></entry></asx>\n',
        "pls.mp4": f"[playlist]\nFile1={good}\nNumberOfEntries=1\n",
        "imf.mxf": f'<?xml version="1.0"?><CompositionPlaylist>{good}</CompositionPlaylist>\n',
    }
    for name, text in scripts.items():
        corpus.file("playlist", name, "fails", text.encode())
    # A movie whose samples are said to lie in another file.
    url = _box(b"url ", bytes(4) + f"file:{good}\0".encode())
    mp4 = _base(".mp4")
    at = mp4.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", mp4, at)
    dref = _box(b"dref", bytes(4) + struct.pack(">I", 1) + url)
    grown = len(dref) - size
    data = bytearray(mp4[:at] + dref + mp4[at + size :])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        here = data.index(parent) - 4
        struct.pack_into(">I", data, here, struct.unpack_from(">I", data, here)[0] + grown)
    corpus.file("playlist", "reference.mov", "either", bytes(data))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _image(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _images(corpus: _Corpus) -> None:
    rgb = Image.fromarray(next(_frames(7)))
    more = [Image.fromarray(f) for f in _frames(7, seconds=0.5)]
    png, jpeg = _image("PNG", rgb), _image("JPEG", rgb)
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees for display
    sound = {
        "rgb.png": png,
        "rgb.jpg": jpeg,
        "grey.jpg": _image("JPEG", rgb.convert("L")),
        "cmyk.jpg": _image("JPEG", rgb.convert("CMYK")),
        "turned.jpg": _image("JPEG", rgb, exif=turned),
        "progressive.jpeg": _image("JPEG", rgb, progressive=True),
        "palette.png": _image("PNG", rgb.convert("P"), transparency=3),
        "alpha.png": _image("PNG", rgb.convert("RGBA")),
        "one bit.png": _image("PNG", rgb.convert("1")),
        "16 bit.png": _image("PNG", Image.fromarray(np.arange(3072, dtype=np.uint16).reshape(48, 64) * 20)),
        "one pixel.png": _image("PNG", Image.new("RGB", (1, 1))),
        "animated.png": _image("PNG", more[0], save_all=True, append_images=more[1:]),
        "animated.webp": _image("WEBP", more[0], save_all=True, append_images=more[1:]),
        "lossless.webp": _image("WEBP", rgb, lossless=True),
        "pages.tiff": _image("TIFF", more[0], save_all=True, append_images=more[1:]),
        "plain.bmp": _image("BMP", rgb),
        "jpeg inside.png": jpeg + b"\0",
    }
    for name, content in sound.items():
        corpus.file("image", name, "measures", content)
    floats = Image.fromarray(np.linspace(0, 1, 3072, dtype=np.float32).reshape(48, 64))
    corpus.file("image", "float.tif", "fails", _image("TIFF", floats))  # which number is white?
    rows = zlib.compress(bytes(1126 * 9000), 9)
    bombs = {
        "60000x60000.png": _png(60_000, 60_000, 1, 0, rows),
        "2 billion.png": _png(2**31 - 1, 2**31 - 1, 8, 2, rows),
        "65535x65535.bmp": _patched(_image("BMP", rgb), b"BM", 16, b"\xff\xff\0\0\xff\xff\0\0"),
        "65500x65500.jpg": _patched(jpeg, b"\xff\xc0", 3, b"\xff\xdc\xff\xdc"),
    }
    for name, content in bombs.items():
        corpus.file("image bomb", name, "fails", content)
    corpus.file("image bomb", "9000x9000.png", "either", _png(9000, 9000, 1, 0, rows))
    text = _png(8, 8, 8, 2, zlib.compress(bytes(8 * 25)))
    comment = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20), 1))
    corpus.file("image bomb", "comment.png", "either", text[:33] + comment + text[33:])
    broken = {
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>\n',
        "external.png": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>\n',
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n(pwned) (w) file\n%%EOF\n",
        "text.jpg": b"not a picture\n",
        "half.png": png[: len(png) // 2],
        "header.png": png[:20],
        "wrong sum.png": _patched(png, b"IHDR", 13, b"\0\0\0\0"),
    }
    for name, content in broken.items():
        corpus.file("broken image", name, "fails", content)
    corpus.file("video named as an image", "video.png", "measures", _variant(400))
    corpus.file("video named as an image", "video.jpg", "measures", _variant(401))
    corpus.file("broken image", "half.jpg", "either", jpeg[: len(jpeg) // 2])
    corpus.file("image named as a video", "png.mp4", "either", png + b"\1")
    corpus.file("image named as a video", "jpeg.mkv", "either", jpeg + b"\1")
    corpus.file("image named as a video", "webp.mp4", "either", _image("WEBP", rgb))


def _copies(corpus: _Corpus) -> None:
    first = corpus.file("copy", "a/first.mp4", "measures", _variant(500))
    for name in ("a/second.mp4", "b/first.mp4", "renamed.mov"):
        corpus.name("copy", name, "measures", first).write_bytes(_variant(500))
    os.link(first, corpus.name("copy", "hard link.mp4", "measures", first))
    corpus.name("copy", "link.mp4", "measures", first).symlink_to("a/first.mp4")
    half = _base(".mp4")[:1000]
    broken = corpus.file("copy", "broken a.mp4", "fails", half)
    corpus.name("copy", "broken b.mp4", "either", broken).write_bytes(half)
    # The same name in several folders, each with another content.
    for k, folder in enumerate(("x", "y", "z")):
        corpus.file("copy", f"{folder}/clip.mp4", "measures", _variant(501 + k))
