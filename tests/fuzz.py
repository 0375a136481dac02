"""Fuzzing of the decoding child: mutated files through probe, measure and cut.

    python -m tests.fuzz --cases 2000 --seed 1          prints what became of them
    python -m tests.fuzz --seed 1 --only 217 --keep x   that case alone; the mutated file stays in x

A case is a function of (seed, number, the seed files): it can be repeated alone. Seed files are rendered
ones of every kind, and, where it is present, pieces of the shared real footage.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import random
import re
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import psutil
from PIL import Image

from curation.config.load import load_config
from curation.config.schema import Config
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from tests import render

CONFIG = """
filters: {duration: {}, resolution: {}, motion: {}, quality: {}, borders: {}, transition: {}}
shots: {min_scene_seconds: 0.3}
spans: {min_seconds: 0.5, max_seconds: 1.0, trim_seconds: 0.1}
cut: {preset: ultrafast, max_side: 128}
run: {deadline_seconds: 6, deadline_per_second: 1, deadline_max_seconds: 8, child_memory_mb: 1024}
"""
MAX_CLIPS = 6  # of a case that are cut
PATIENCE_SECONDS = 10.0  # past the deadline, to kill and reap on a busy machine
REPEAT_EVERY = 10  # cases
MAX_FILE_BYTES = 60_000  # of a piece of real footage


@dataclass(frozen=True)
class Seed:
    name: str  # with the suffix that its mutations keep
    data: bytes


# --- seed files -----------------------------------------------------------------------------------


def rendered(folder: Path) -> list[Seed]:
    """Two scenes of 1.5 s in every container and codec that matters, and still images."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("h264.mp4", {}),
        ("h264.mov", {"rotation": 90}),
        ("h264.mkv", {"pix_fmt": "yuv420p10le"}),
        ("h264.ts", {"gop": 5}),
        ("h264-444.mp4", {"pix_fmt": "yuv444p", "sar": (4, 3)}),
        ("hevc.mp4", {"codec": "libx265"}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("mjpeg.avi", {"codec": "mjpeg"}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("av1.mkv", {"codec": "libsvtav1"}),
        ("gif.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("mpeg2.mpg", {"codec": "mpeg2video", "fps": 25}),
        ("flv.flv", {"codec": "flv"}),
    ]
    seeds = []
    for name, options in kinds:
        fps = options.pop("fps", 10)
        frames = render.scenes([15, 15], (96, 64), fps=fps)
        seeds.append(Seed(name, render.write_video(folder / name, frames, fps=fps, **options).read_bytes()))
    image = Image.fromarray(render.texture(0, 64, 96))
    for suffix, kind in (
        (".png", "PNG"),
        (".jpg", "JPEG"),
        (".webp", "WEBP"),
        (".bmp", "BMP"),
        (".tiff", "TIFF"),
    ):
        out = io.BytesIO()
        image.save(out, kind)
        seeds.append(Seed(f"still{suffix}", out.getvalue()))
    return seeds


def real(footage: Path, folder: Path) -> list[Seed]:
    """The first packets of each real file, copied: what cameras and other people's encoders write."""
    seeds = []
    for path in sorted(footage.glob("*.*")):
        if path.suffix in (".mp4", ".mkv", ".avi"):
            piece = path
            if path.stat().st_size > MAX_FILE_BYTES:
                piece = folder / path.name
                _copy_start(path, piece, MAX_FILE_BYTES)
            seeds.append(Seed(path.name, piece.read_bytes()))
    return seeds


def _copy_start(source: Path, target: Path, max_bytes: int) -> None:
    with av.open(str(source)) as whole, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        left = max_bytes
        for packet in whole.demux(video=0):
            if packet.dts is None or left <= 0:
                return
            left -= packet.size
            packet.stream = stream
            out.mux(packet)


# --- mutations ------------------------------------------------------------------------------------

Mutation = Callable[[bytearray, bytes, random.Random], None]  # of data in place; another file's bytes


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four mutations, most of them near the start or the end, where containers keep their indices."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if len(out) > 16:
            rng.choice(_MUTATIONS)(out, other, rng)
    return bytes(out)


def _place(data: bytearray, rng: random.Random) -> int:
    near = rng.randrange(min(len(data), 2000))
    return rng.choice((near, len(data) - 1 - near, rng.randrange(len(data))))


def _run_of(data: bytearray, rng: random.Random) -> slice:
    start = _place(data, rng)
    return slice(start, min(len(data), start + rng.choice((1, 4, 16, 100, 1000, 10_000))))


def _flip_bits(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 5, 50))):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, _: bytes, rng: random.Random) -> None:
    run = _run_of(data, rng)
    n = run.stop - run.start
    data[run] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))


def _delete(data: bytearray, _: bytes, rng: random.Random) -> None:
    del data[_run_of(data, rng)]


def _duplicate(data: bytearray, _: bytes, rng: random.Random) -> None:
    run = _run_of(data, rng)
    data[run.start : run.start] = data[run] * rng.choice((1, 1, 20))


def _swap(data: bytearray, _: bytes, rng: random.Random) -> None:
    a, b = _run_of(data, rng), _run_of(data, rng)
    if a.stop <= b.start:
        data[a.start : b.stop] = data[b] + data[a.stop : b.start] + data[a]


def _truncate(data: bytearray, _: bytes, rng: random.Random) -> None:
    del data[_place(data, rng) :]


_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _integer(data: bytearray, _: bytes, rng: random.Random) -> None:
    """An extreme or slightly wrong number of 16, 32 or 64 bits, of either byte order."""
    kind = rng.choice((">H", "<H", ">I", "<I", ">Q", "<Q"))
    size = struct.calcsize(kind)
    at = min(_place(data, rng), len(data) - size)
    (old,) = struct.unpack_from(kind, data, at)
    new = rng.choice((*_NUMBERS, old + 1, old - 1, old * 2, old * 1000))
    struct.pack_into(kind, data, at, new % (1 << 8 * size))


def _box_field(data: bytearray, other: bytes, rng: random.Random) -> None:
    """The size of a box of an mp4, or one of its first fields: counts, durations, dimensions, offsets."""
    boxes = [m.start() for m in re.finditer(rb"[a-z][a-z0-9]{3}|LIST|RIFF|idx1", data)]
    boxes = [at for at in boxes if bytes(data[at : at + 4]) in _BOXES and at >= 4 and at + 40 < len(data)]
    if not boxes:
        _integer(data, other, rng)
        return
    at = rng.choice(boxes) + rng.choice((-4, -4, *range(4, 40, 4)))
    (old,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, rng.choice((*_NUMBERS, old + 1, old - 1, old * 1000)) % (1 << 32))


_BOXES = frozenset(
    b"ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr minf stbl stsd stts ctts stsc stsz stco stss "
    b"mdat avc1 avcC hvc1 hev1 hvcC mp4v esds pasp LIST RIFF avih strl strh strf movi idx1".split()
)


def _splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    data[_place(data, rng) :] = other[rng.randrange(len(other)) :]


_MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits,
    _overwrite,
    _delete,
    _duplicate,
    _swap,
    _truncate,
    _integer,
    _box_field,
    _box_field,
    _splice,
)


def case(seeds: Sequence[Seed], seed: int, number: int) -> Seed:
    rng = random.Random(f"{seed} {number}")
    one, other = rng.choice(seeds), rng.choice(seeds)
    return Seed(one.name, mutated(one.data, other.data, rng))


# --- running --------------------------------------------------------------------------------------


@dataclass
class Found:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)  # "measure: done", "cut: Crash (SIGSEGV)" ...
    examples: dict[str, str] = field(default_factory=dict)  # outcome -> the first one
    violations: list[str] = field(default_factory=list)
    slowest: list[tuple[float, int, str]] = field(default_factory=list)  # (seconds, number, step)
    repeated: int = 0  # cases, in a child of their own
    asked_again: int = 0  # requests, after a failure that may pass
    rss_bytes: list[int] = field(default_factory=list)  # of this process after each case

    def growth_bytes(self) -> int:
        """Of this process since a quarter of the cases were done."""
        quarter = len(self.rss_bytes) // 4
        return self.rss_bytes[-1] - self.rss_bytes[quarter]


Answer = tuple[str, ...]  # (result, messages), or of a failure (step, stage, error, message)


def run(seeds: Sequence[Seed], seed: int, numbers: Iterable[int], folder: Path) -> Found:
    """Run cases in one child after another. Files are written to `folder`, one at a time."""
    config = load_config(CONFIG)
    found = Found()
    process = psutil.Process()
    with Child(config.run.child_memory_mb) as child:
        for number in numbers:
            mutation = case(seeds, seed, number)
            path = folder / f"case{Path(mutation.name).suffix}"
            path.write_bytes(mutation.data)
            what = f"case {number} of seed {seed} ({mutation.name})"
            answers = _answers(child, path, config, found, number)
            for answer in answers:
                found.violations += [f"{what}: {fault}" for fault in _faults(answer)]
                found.outcomes[_outcome(answer)] += 1
                found.examples.setdefault(_outcome(answer), f"{what}: {answer[-1][:300]}")
            timed_out = any(a[2] == "Timeout" for a in answers if len(a) == 4)
            if number % REPEAT_EVERY == 0 and not timed_out:
                # What a file gives must not depend on which files the child has seen before.
                found.repeated += 1
                with Child(config.run.child_memory_mb) as alone:
                    again = _answers(alone, path, config, Found(), number)
                if again != answers:
                    found.violations.append(f"{what}: {answers} after others, {again} alone")
            path.unlink()
            found.rss_bytes.append(process.memory_info().rss)
    return found


def _answers(child: Child, path: Path, config: Config, found: Found, number: int) -> list[Answer]:
    """Of probe, of measure, and of cut if measuring gave clips."""
    plain = config.model_dump(mode="json")
    measure = {"op": "measure", "uri": str(path), "source_id": "s", "config": plain}
    answers: list[Answer] = []
    clips: list[dict[str, Any]] = []
    for step in ("probe", "measure", "cut"):
        if step == "cut":
            if not clips:
                break
            keys = ("clip_id", "start_s", "end_s", "frames", "fps")
            spans = [{k: c[k] for k in keys} for c in clips[:MAX_CLIPS]]
            cut = {"op": "cut", "stage": "open", "uri": str(path), "spans": spans}
            request = {**cut, "cut": plain["cut"], "run": plain["run"]}
        else:
            request = measure if step == "measure" else {"op": "probe", "uri": str(path)}
        began = time.monotonic()
        try:
            messages = _messages(child, request, config, found)
        except SourceFailed as failed:
            answers.append((step, failed.stage, failed.error, failed.message))
            if failed.transient:
                found.violations.append(f"case {number}: {step} fails in passing, twice: {failed.message}")
        else:
            heads = [head for head, _ in messages]
            if step == "measure":
                clips = [h for h in heads if h["kind"] == "clip"]
            for head in heads:
                head.pop("seconds", None)
            lost = sorted({h["error"] for h in heads if h["kind"] == "clip_failed"})
            answers.append((f"{step}: " + (f"clip {', '.join(lost)}" if lost else "done"), repr(messages)))
        seconds = time.monotonic() - began
        found.slowest = sorted([*found.slowest, (seconds, number, step)], reverse=True)[:5]
        if seconds > config.run.deadline_max_seconds + PATIENCE_SECONDS:
            found.violations.append(f"case {number}: {step} took {seconds:.1f} s")
    return answers


def _messages(
    child: Child, request: dict[str, Any], config: Config, found: Found
) -> list[tuple[dict[str, Any], list[int]]]:
    """Heads and lengths of parts. Like the workers it asks again after a failure that may pass."""
    for is_last in (False, True):
        try:
            messages = child.request(request, config.run.deadline_seconds)
            return [(m.head, [len(p) for p in m.parts]) for m in messages]
        except SourceFailed as failed:
            if is_last or not failed.transient:
                raise
            found.asked_again += 1
    raise AssertionError


def _outcome(answer: Answer) -> str:
    if len(answer) == 2:
        return answer[0]
    step, _, error, message = answer
    signal = re.search(r"SIG[A-Z]+|exit code \d+", message) if error == "Crash" else None
    return f"{step}: {error}" + (f" ({signal.group()})" if signal else "")


def _faults(answer: Answer) -> Iterator[str]:
    if len(answer) == 2:
        return
    step, stage, error, message = answer
    if not stage or not error:
        yield f"{step} failed without a stage or an error: {answer}"
    if len(message) < 8 or not message.isprintable() or len(message) > 2000:
        yield f"{step} failed with a message that is not readable: {message!r}"
    if "0x7f" in message or "/" + "curation" in message:
        yield f"{step} failed with a message of this run or this machine: {message!r}"


@dataclass(frozen=True)
class Resources:
    """What a run must leave as it found it."""

    descriptors: int
    children: int
    temporary_files: int

    @classmethod
    def now(cls, temporary: Path) -> Resources:
        gc.collect()
        process = psutil.Process()
        # Other tests may have Ray's processes.
        ours = [
            p
            for p in process.children()
            if p.status() == psutil.STATUS_ZOMBIE or "curation.decode" in p.cmdline()
        ]
        return cls(process.num_fds(), len(ours), len(list(temporary.iterdir())))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--keep", type=Path, help="write the mutated file of --only to this folder")
    arguments = parser.parse_args()
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder's errors alone
    footage = Path(__file__).parents[2] / "shared" / "data" / "video"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = rendered(folder) + (real(footage, folder) if footage.is_dir() else [])
        numbers = range(arguments.cases) if arguments.only is None else [arguments.only]
        if arguments.keep is not None and arguments.only is not None:
            only = case(seeds, arguments.seed, arguments.only)
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / f"{arguments.only}-{only.name}").write_bytes(only.data)
        work, temporary = folder / "work", folder / "tmp"
        work.mkdir()
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        before, began = Resources.now(temporary), time.monotonic()
        found = run(seeds, arguments.seed, numbers, work)
        seconds, after = time.monotonic() - began, Resources.now(temporary)
        tempfile.tempdir = None
    print(f"{len(found.rss_bytes)} cases of {len(seeds)} files in {seconds:.0f} s")
    for outcome, count in sorted(found.outcomes.items()):
        example = "" if outcome.endswith("done") else f"    {found.examples[outcome]}"
        print(f"{count:7d} {outcome}{example}")
    for slow in found.slowest:
        print(f"{slow[0]:7.1f} s {slow[2]} of case {slow[1]}")
    print(
        f"{found.asked_again} requests asked again, {found.repeated} cases repeated alone; "
        f"this process grew by {found.growth_bytes() / 2**20:.1f} MiB"
    )
    print(f"before {before}, after {after}")
    for violation in found.violations:
        print("VIOLATION", violation)
    sys.exit(1 if found.violations or before != after else 0)


if __name__ == "__main__":
    main()
