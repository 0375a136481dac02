"""A build of many tiny sources: does the driver's memory grow, and do later sources take longer?

All sources are the same rendered video of one second, with a number after its end (an MP4 box that readers
skip). So the files differ, but their pictures are equal. The build runs in this process, and the printed
memory is the driver's resident set.

    python -m benchmarks.many [--sources 10000] [--trace]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import struct
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import psutil
from rich.console import Console

from curation import pipeline
from curation.audit.accounting import accounting
from curation.cluster import session
from curation.config.load import load_config
from curation.config.schema import Config
from curation.progress import Progress
from curation.report.page import write_report
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.store.rows import SourceRow
from tests import render

CONFIG = """
spans: {min_seconds: 0.3, max_seconds: 2, trim_seconds: 0}
filters: {duration: {}, resolution: {}, quality: {}}
rules: {duration.seconds: {min: 0.3}}
captions: {captioner: none}
shards: {target_mb: 1}
"""
SIZE = (64, 48)
FPS = 10
EVERY = 1000  # sources between two lines


def write_sources(folder: Path, count: int) -> None:
    one = folder / "one.mp4"
    data = render.write_video(one, render.pan(1, SIZE, fps=FPS, seconds=1, speed=0.2), fps=FPS).read_bytes()
    one.unlink()
    for i in range(count):
        (folder / f"{i:06d}.mp4").write_bytes(data + struct.pack(">I4sQ", 16, b"free", i))


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / (1 << 20)


class Meter(Progress):
    """Prints memory and time after every `EVERY` measured sources and every `EVERY` cut clips."""

    def __init__(self, trace: bool) -> None:
        super().__init__(Console(quiet=True))
        self.times = {"start": time.monotonic()}
        self._trace = trace
        self._before: tracemalloc.Snapshot | None = None

    def mark(self, name: str) -> None:
        self.times[name] = time.monotonic()

    def start_measure(self, todo: int, done: int) -> None:
        super().start_measure(todo, done)
        self.mark("listed")
        self._count, self._printed, self._last = 0, 0, time.monotonic()

    def source(self, row: SourceRow) -> None:
        super().source(row)
        self._step("sources measured", 1)
        self.mark("measured")

    def start_cut(self, clips: int) -> None:
        super().start_cut(clips)
        self.mark("selected")
        self._count, self._printed, self._last = 0, 0, time.monotonic()

    def shard(self, rows: int, failed: int, size: int, seconds: float) -> None:
        super().shard(rows, failed, size, seconds)
        self._step("clips cut", rows)
        self.mark("cut")

    def _step(self, what: str, count: int) -> None:
        before, self._count = self._count, self._count + count
        if self._count // EVERY == before // EVERY:
            return
        now = time.monotonic()
        each_ms = (now - self._last) / (self._count - self._printed) * 1000
        driver = f"driver {resident_mb():.0f} MiB"
        print(f"{self._count:6d} {what}: {driver}, {each_ms:.1f} ms each", flush=True)
        if self._trace:
            self._growth()
        self._last, self._printed = time.monotonic(), self._count

    def _growth(self) -> None:
        gc.collect()
        now = tracemalloc.take_snapshot()
        if self._before is not None:
            for line in now.compare_to(self._before, "lineno")[:8]:
                print(f"       {line}")
        self._before = now


def run(folder: Path, count: int, config: Config, *, trace: bool) -> None:
    sources, dataset = folder / "sources", Dataset(str(folder / "dataset"))
    sources.mkdir()
    write_sources(sources, count)
    if trace:
        tracemalloc.start()
    meter = Meter(trace)
    with session.session(config):
        meter.mark("Ray")
        pipeline.build(dataset, list_sources([str(sources)]), config, meter)
        meter.mark("ended")
    meter.mark("shut down")
    write_report(dataset)
    meter.mark("report")
    times = list(meter.times.items())
    for (_, began), (name, ended) in itertools.pairwise(times):
        each_ms = (ended - began) / count * 1000
        print(f"{name:>10} after {ended - began:6.1f} s more, {each_ms:6.2f} ms per source")
    counts = accounting(dataset)
    print(f"{'all':>10} {times[-1][1] - times[0][1]:12.1f} s, driver {resident_mb():.0f} MiB")
    print("\n".join([*counts.lines(), *counts.check()]))
    if counts.check() or counts.sources != count:
        sys.exit("the sums are wrong")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", type=int, default=10_000)
    parser.add_argument("--trace", action="store_true", help="print the lines of Python whose memory grows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), args.sources, load_config(CONFIG), trace=args.trace)


if __name__ == "__main__":
    main()
