"""The costs and benefits of Ray, and the costs of many sources.

    python -m benchmarks.scale --footage ../shared/data/video         # a plain loop, one worker, two workers
    python -m benchmarks.scale --sources 100 1000 10000 100000        # a stub in the decoder's place

The first command compares rates of the measure phase between each worker's first finished source and the last
source, so Ray's start does not count. The upper limit is the gain of two bare decoders in the same run.

In the second command everything is real (listing, fingerprints, Ray, commits, verdicts, shards, report),
except the decoding child, which immediately answers with one clip per source. So the command measures the
cost of a source apart from its video.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import av
import cv2
import ray
from rich.console import Console

from benchmarks.curation import bare_decode
from benchmarks.footage import loop
from benchmarks.many import resident_mb
from benchmarks.profiles import profiled
from curation import pipeline
from curation.audit.accounting import accounting
from curation.cluster import measurer, session
from curation.config.load import load_config
from curation.config.schema import Config
from curation.driver import apply, manifest
from curation.progress import Progress
from curation.report.page import write_report
from curation.sandbox.protocol import Message
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.store.rows import SourceRow
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.measure import MEASURE_TASKS, MeasureTask, StreamRow
from curation.verdicts.todo import find_work

MEASURING = """
spans: {min_seconds: 3, max_seconds: 10}
filters: {duration: {}, resolution: {}, motion: {}, quality: {}, borders: {}, transition: {}}
captions: {captioner: none}
"""
MANY = """
filters: {duration: {}, resolution: {}}
rules: {duration.seconds: {min: 3}}
captions: {captioner: none}
"""
FILE = "testvideo.mp4"
STUB_MP4 = bytes(4096)  # the video of a clip: 100,000 clips make two shards


class Clock(Progress):
    """Records the time when each source was committed."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.committed: list[float] = []

    def source(self, row: SourceRow) -> None:
        super().source(row)
        self.committed.append(time.monotonic())

    def rate(self, workers: int) -> float:
        """Sources per second after each worker's first source."""
        return (len(self.committed) - workers) / (self.committed[-1] - self.committed[workers - 1])


def without_ray(parts: list[MeasureTask], config: Config, location: str) -> Iterator[StreamRow]:
    """`pipeline.measured` as a plain loop over the same worker."""
    worker = measurer.Measurer(config.for_workers(), location)
    try:
        for part in parts:
            for table in worker(table_of([part], MEASURE_TASKS)):
                yield from rows_of(table)
    finally:
        worker._child.stop()


def rate(sources: Path, workers: int, *, plain: bool) -> float:
    config = load_config(f"{MEASURING}run: {{measure_workers: {workers}}}")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(folder)
        manifest.write_manifest(dataset, config, sources_named=0, ended=False)
        todo = find_work(dataset, list_sources([str(sources)]), config)
        clock.start_measure(todo.sources, todo.done)
        if plain:
            with mock.patch.object(pipeline, "measured", without_ray):
                pipeline.measure(dataset, todo, config, clock)
        else:
            pipeline.measure(dataset, todo, config, clock)
    return clock.rate(workers)


def ceiling(path: Path) -> float:
    """The gain of two bare decoders at the same time over one decoder: 2 on two free cores."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(bare_decode, [path] * 2)  # starts both processes
        began = time.monotonic()
        pool.apply(bare_decode, (path,))
        one = time.monotonic() - began
        began = time.monotonic()
        pool.map(bare_decode, [path] * 2, chunksize=1)
        return 2 * one / (time.monotonic() - began)


def compare_workers(footage: Path, count: int, seconds: float, rounds: int) -> None:
    cv2.setNumThreads(1)
    av.logging.set_libav_level(av.logging.ERROR)
    found: dict[str, list[float]] = {"plain": [], "one": [], "two": [], "ceiling": []}
    with tempfile.TemporaryDirectory() as name:
        sources = Path(name)
        loop(footage / FILE, sources / "0.mp4", seconds)
        data = (sources / "0.mp4").read_bytes()
        for i in range(1, count):  # readers skip this box, so the files differ but their pictures are equal
            (sources / f"{i}.mp4").write_bytes(data + struct.pack(">I4sQ", 16, b"free", i))
        print(f"{count} sources of {seconds:g} s ({FILE} looped), {len(os.sched_getaffinity(0))} CPUs")
        with session.session(load_config(MEASURING)):
            for _ in range(rounds):
                found["plain"].append(rate(sources, 1, plain=True))
                found["one"].append(rate(sources, 1, plain=False))
                found["two"].append(rate(sources, 2, plain=False))
                found["ceiling"].append(ceiling(sources / "0.mp4"))
    middle = {name: statistics.median(values) for name, values in found.items()}
    print(f"plain loop {middle['plain']:.3f} sources/s; {_rounds(found['plain'], '.3f')}")
    overhead = [p / o - 1 for p, o in zip(found["plain"], found["one"], strict=True)]
    print(
        f"one worker takes {statistics.median(overhead):+.1%} of the loop's time; {_rounds(overhead, '+.1%')}"
    )
    gain = [t / o for t, o in zip(found["two"], found["one"], strict=True)]
    print(f"two workers: {statistics.median(gain):.2f} times one; {_rounds(gain, '.2f')}")
    print(f"two bare decoders: {middle['ceiling']:.2f} times one; {_rounds(found['ceiling'], '.2f')}")


def _rounds(values: Sequence[float], how: str) -> str:
    return "rounds: " + ", ".join(format(v, how) for v in values)


class StubChild:
    """Replaces `curation.sandbox.parent.Child` and immediately answers with one clip of 4 s."""

    def __init__(self, *_: object):
        pass

    def request(self, request: dict[str, Any], deadline_s: float) -> Iterator[Message]:
        if request["op"] == "measure":
            size = {"width": 640, "height": 360, "fps": 25.0}
            scores = {"duration.seconds": 4.0, "resolution.short_side": 360.0, "resolution.long_side": 640.0}
            span = {"clip_id": request["source_id"], "start_s": 0.0, "end_s": 4.0, "frames": 100}
            flags = {"jpegs": {}, "has_thumbnail": False}
            yield Message({"kind": "clip", **span, **size, "scores": scores, **flags})
            stream = {"container": "mp4", "codec": "h264", "is_vfr": False, "duration_s": 4.0, "frames": 100}
            yield Message({"kind": "source", **size, **stream, "clips": 1, "seconds": 0.0, "message": None})
        for span in request.get("spans", ()):
            head = {"kind": "clip", "clip_id": span["clip_id"], "width": 640, "height": 360}
            yield Message({**head, "fps": 25.0, "frames": 100, "duration_s": 4.0}, [STUB_MP4])

    def stop(self) -> None:
        pass


def install_stub() -> None:
    """Runs in each of Ray's workers before its work."""
    measurer.Child = StubChild  # type: ignore[assignment,misc]


class Memory(Progress):
    """Records the driver's resident set in MiB after each tenth of measuring and of cutting."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.seen: dict[str, list[float]] = {"measure": [], "cut": []}
        self._done = {"measure": 0, "cut": 0}
        self._todo = {"measure": 0, "cut": 0}

    def start_measure(self, todo: int, done: int) -> None:
        super().start_measure(todo, done)
        self._todo["measure"] = todo

    def source(self, row: SourceRow) -> None:
        super().source(row)
        self._count("measure", 1)

    def start_cut(self, clips: int) -> None:
        super().start_cut(clips)
        self._todo["cut"] = clips

    def shard(self, rows: int, failed: int, size: int, seconds: float) -> None:
        super().shard(rows, failed, size, seconds)
        self._count("cut", rows)

    def _count(self, phase: str, more: int) -> None:
        before, self._done[phase] = self._done[phase], self._done[phase] + more
        tenth = max(1, self._todo[phase] // 10)
        if self._done[phase] // tenth > before // tenth:
            self.seen[phase].append(resident_mb())


def many(count: int, profile: Path | None) -> None:
    """Build `count` stub sources and print times. Profiles, which slow the driver, are added to `profile`."""
    quiet = Progress(Console(quiet=True))
    config = load_config(MANY)
    with tempfile.TemporaryDirectory() as name:
        sources, dataset = Path(name) / "sources", Dataset(f"{name}/dataset")
        for i in range(count):
            folder = sources / f"{i // 1000:03d}"
            if i % 1000 == 0:
                folder.mkdir(parents=True)
            (folder / f"{i:06d}.mp4").write_bytes(struct.pack(">Q", i))
        memory = Memory()
        took = {}
        began = time.monotonic()
        profiled(
            lambda: pipeline.build(dataset, list_sources([str(sources)]), config, memory),
            f"The driver of a build of {count} sources",
            profile,
        )
        took["build"] = time.monotonic() - began
        after = resident_mb()
        began = time.monotonic()
        todo = profiled(
            lambda: pipeline.build(dataset, list_sources([str(sources)]), config, quiet),
            "The same build again",
            profile,
        )
        took["the same build again"] = time.monotonic() - began
        assert not todo.sources
        began = time.monotonic()
        apply.apply_rules(dataset, load_config(MANY, ["rules.duration.seconds.max=5"]))
        took["select"] = time.monotonic() - began
        began = time.monotonic()
        profiled(lambda: write_report(dataset), "Its report", profile)
        took["report"] = time.monotonic() - began
        counts = accounting(dataset)
        if counts.check() or (counts.sources, counts.accepted) != (count, count):
            sys.exit(f"the sums are wrong: {counts.lines()} {counts.check()}")
    print(f"{count:7d} sources: build {took['build'] / count * 1000:.2f} ms per source", end="")
    print("".join(f", {name} {s:.1f} s" for name, s in took.items()), end="")
    print(f"; driver {after:.0f} MiB", flush=True)
    for phase, seen in memory.seen.items():
        print(f"        driver by tenths of {phase}: {', '.join(f'{mb:.0f}' for mb in seen)} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, help="a folder with testvideo.mp4: compare workers")
    parser.add_argument("--count", type=int, default=24, help="number of sources for comparing workers")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of these sources")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sources", type=int, nargs="*", default=[], help="numbers of stub sources")
    parser.add_argument(
        "--profile", type=Path, help="with --sources: append profiles of the driver to this file"
    )
    args = parser.parse_args()
    if args.footage:
        compare_workers(args.footage, args.count, args.seconds, args.rounds)
    if args.sources:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 << 20,
            runtime_env={"worker_process_setup_hook": install_stub},
        )
        with session.session(load_config(MANY)):
            print(f"before: driver {resident_mb():.0f} MiB")
            for count in args.sources:
                many(count, args.profile)


if __name__ == "__main__":
    main()
