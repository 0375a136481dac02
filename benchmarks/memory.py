"""Peak memory of a build of one long source: does it grow with the source's length?

The source is a single shot: a pan over a periodic texture, repeated without encoding. The counted memory is
the proportional set size of the driver, Ray's workers and the decoding children, without Ray's services.

    python -m benchmarks.memory [--hours 0.25 2]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import tree
from benchmarks.footage import loop
from tests import render

CONFIG = """
base: none
filters: {duration: {}, resolution: {}, motion: {}, quality: {}, borders: {}, transition: {}}
rules: {duration.seconds: {min: 3, max: 10}, motion.speed: {min: 9}}
"""
SIZE = (640, 360)
FPS = 24
LOOP_SECONDS = 10  # at a speed of 0.1 frame widths per second the pan ends where it starts


def long_source(folder: Path, hours: float) -> Path:
    """A video file with a single shot of `hours`."""
    round_ = folder / "round.mp4"
    if not round_.exists():
        frames = render.pan(5, SIZE, fps=FPS, seconds=LOOP_SECONDS, speed=1 / LOOP_SECONDS)
        render.write_video(round_, frames, fps=FPS, gop=48)
    path = folder / f"{hours:g}h.mp4"
    loop(round_, path, hours * 3600)
    return path


def peak(folder: Path, hours: float) -> tree.Usage:
    source = long_source(folder, hours)
    settings = folder / "config.yaml"
    settings.write_text(CONFIG)
    out = folder / f"dataset-{hours:g}"
    command = [sys.executable, "-m", "jobs.build", str(source), "--out", str(out), "--config", str(settings)]
    return tree.run(command, memory=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, nargs="+", default=[0.25, 2.0])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for hours in args.hours:
            usage = peak(Path(name), hours)
            shown = ", ".join(f"{k} {v:.0f}" for k, v in sorted(usage.peak_by_kind_mb.items()))
            print(
                f"{hours:g} h, {SIZE[0]}x{SIZE[1]} at {FPS} fps, one shot: peak {usage.peak_mb:.0f} MiB "
                f"({shown}), {usage.wall_s:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
