"""The savings of the first two ideas of the design, in CPU seconds, on real 720p footage.

1. The measure phase is compared with a bare full decode of the same file on the same core.
2. A complete build is compared with the customary way: detect scenes with PySceneDetect, cut and encode every
   scene, then decode each clip again to score it. Detector, clips, encoder preset and scorers are the same.

    python -m benchmarks.curation --footage ../shared/data/video [--minutes 5] [--profile FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import av
import cv2
from av.container import InputContainer
from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, open_video

from benchmarks import tree
from benchmarks.footage import loop
from benchmarks.profiles import profiled
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode import cut, measure
from curation.decode.sampling import Keeper
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from curation.store.dataset import Dataset
from filters.base import ClipInfo, Frames

FILES = ("testvideo.mp4", "bigbuckbunny.mp4")  # both 1280x720 H.264
CONFIG = """
base: none
filters: {duration: {}, resolution: {}, motion: {per_second: PAIRS}, quality: {}, borders: {}, transition: {}}
rules: {duration.seconds: {min: 3, max: 10}}
run: {measure_cpus: 1}
"""
ACCEPTANCE = 0.25


def config(pairs_per_second: int) -> Config:
    return load_config(CONFIG.replace("PAIRS", str(pairs_per_second)))


def bare_decode(path: Path) -> float:
    """CPU seconds for decoding every frame on one thread."""
    began = time.process_time()
    with cast(InputContainer, av.open(str(path))) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass
    return time.process_time() - began


def measured(path: Path, settings: Config) -> tuple[float, list[dict[str, Any]]]:
    """CPU seconds of the measure phase as in the decoding child, and the clips."""
    request = {"uri": str(path), "source_id": path.name, "config": settings.for_workers()}
    began = time.process_time()
    heads = [m.head for m in measure.run(request)]
    return time.process_time() - began, [h for h in heads if h["kind"] == "clip"]


def first_ratio(paths: Sequence[Path], rounds: int) -> dict[int, list[float]]:
    """Motion pairs per second -> for each round, the rate of measuring over the rate of bare decoding."""
    ratios: dict[int, list[float]] = {2: [], 10: []}
    for _ in range(rounds):
        for pairs, found in ratios.items():
            bare = full = 0.0
            for path in paths:
                bare += bare_decode(path)
                full += measured(path, config(pairs))[0]
            found.append(bare / full)
    return ratios


def customary(path: Path, clips: list[dict[str, Any]], settings: Config) -> dict[str, float]:
    """CPU seconds of each step of the customary way. `clips` come from the build, so both ways make the same
    clips."""
    seconds = {}
    began = time.process_time()
    manager = SceneManager()
    shortest = settings.shots.min_scene_seconds
    if settings.shots.detector == "content":
        manager.add_detector(ContentDetector(min_scene_len=shortest))
    else:
        manager.add_detector(AdaptiveDetector(min_scene_len=shortest))
    manager.detect_scenes(open_video(str(path), backend="pyav"))
    seconds["detect"] = time.process_time() - began

    began = time.process_time()
    fields = ("clip_id", "start_s", "end_s", "frames", "fps")
    request = {
        "uri": str(path),
        "spans": [{f: c[f] for f in fields} for c in clips],
        "cut": settings.cut.model_dump(),
        "run": settings.run.model_dump(),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for message in cut.run(request):
            if message.head["kind"] == "clip":
                files.append(Path(folder) / f"{message.head['clip_id']}.mp4")
                files[-1].write_bytes(message.parts[0])
        assert len(files) == len(clips)
        seconds["encode"] = time.process_time() - began
        began = time.process_time()
        for file in files:
            _score(file, settings)
        seconds["score"] = time.process_time() - began
    return seconds


def _score(path: Path, settings: Config) -> None:
    """Run every scorer on one clip file with one decode (most pipelines decode once per scorer)."""
    scorers = settings.local_scorers
    with Video(str(path)) as video:
        keeper = Keeper(
            video.info, {n: s.sampling for n, s in scorers.items()}, {}, settings.spans.min_seconds
        )
        times = []
        for frame in video.frames():
            times.append(frame.time_s)
            keeper.offer(frame)
    span = Span(times[0], times[-1] + 0.04, len(times))
    clip = ClipInfo(span.duration_s, span.frames, video.info.fps, video.info.width, video.info.height)
    for name, scorer in scorers.items():
        kind = scorer.sampling.kind
        images = keeper.images(name, span, scorer.sampling.n) if kind == "uniform" else []
        scorer([Frames(clip, images, keeper.pairs(name, span) if kind == "pairs" else [])])


def rules_for(clips: list[dict[str, Any]], share: float) -> tuple[str, float]:
    """The rule, as an override, whose accepted part of the seconds is nearest to `share`; and this part."""
    long_enough = [c for c in clips if c["end_s"] - c["start_s"] >= 3]
    total = sum(c["end_s"] - c["start_s"] for c in clips)
    best: tuple[float, str, float] | None = None
    for column in ("motion.speed", "quality.sharpness", "transition.distance", "quality.contrast"):
        for bound in sorted({c["scores"][column] for c in long_enough}):
            kept = sum(c["end_s"] - c["start_s"] for c in long_enough if c["scores"][column] <= bound)
            found = (abs(kept / total - share), f"rules.{column}.max={bound!r}", kept / total)
            best = min(best, found) if best else found
    assert best is not None
    return best[1], best[2]


def build(paths: Sequence[Path], override: str, folder: Path) -> tree.Usage:
    """Run a real `reelmill build` with all its processes, including Ray's."""
    settings = folder / "config.yaml"
    settings.write_text(CONFIG.replace("PAIRS", "2"))
    command = [sys.executable, "-m", "jobs.build", *map(str, paths), "--out", str(folder / "dataset")]
    return tree.run([*command, "--config", str(settings), "--set", override], period_s=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each of the two files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--profile", type=Path, help="only profile the measuring, and append the profile to this file"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    av.logging.set_libav_level(av.logging.ERROR)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for file in FILES:
            paths.append(folder / file)
            rate = loop(args.footage / file, paths[-1], args.minutes * 60)
            print(f"footage: {file} looped to {args.minutes:g} min, 1280x720 H.264, {rate:.2f} Mb/s")
        if args.profile:
            for path in paths:
                title = f"Measuring {args.minutes:g} min of {path.name}, motion at 10 pairs/s"
                profiled(partial(measured, path, config(10)), title, args.profile)
            return
        for pairs, ratios in first_ratio(paths, args.rounds).items():
            shown = ", ".join(f"{r:.2f}" for r in ratios)
            print(
                f"measure / bare decode, motion at {pairs} pairs/s: "
                f"{statistics.median(ratios):.0%} of its rate (rounds: {shown})"
            )
        settings = config(2)
        per_file = {path: measured(path, settings)[1] for path in paths}
        clips = [c for found in per_file.values() for c in found]
        override, share = rules_for(clips, ACCEPTANCE)
        usage = build(paths, override, folder)
        dataset = Dataset(str(folder / "dataset"))
        accepted = [v for v in dataset.verdicts() if v["status"] == "accepted"]
        print(f"build: {override} accepts {share:.1%} of the seconds, {len(accepted)} of {len(clips)} clips")
        steps: dict[str, float] = {}
        for path, found in per_file.items():
            wanted = [c for c in found if c["end_s"] - c["start_s"] >= settings.spans.min_seconds]
            for step, seconds in customary(path, wanted, settings).items():
                steps[step] = steps.get(step, 0.0) + seconds
        shown = ", ".join(f"{k} {v:.0f}" for k, v in steps.items())
        ours = usage.cpu_s + usage.services_cpu_s
        print(
            f"customary way: {sum(steps.values()):.0f} CPU s ({shown}); build: {ours:.0f} CPU s, "
            f"{usage.services_cpu_s:.0f} of them Ray's services: {sum(steps.values()) / ours:.2f} times less"
        )
        print(json.dumps({"accepted_share": share, "ratio": sum(steps.values()) / ours}))


def machine() -> str:
    """A description of this machine."""
    return f"machine: {_processor()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def _processor() -> str:
    for line in open("/proc/cpuinfo", encoding="utf-8") if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
