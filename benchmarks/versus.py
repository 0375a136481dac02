"""One job in three ways in the same run: reelmill, the customary way, and Data-Juicer's operators and runner.

The job: split by scene, keep clips of 3 to 10 s with sufficient resolution, score their motion, accept a
quarter of their seconds by this score, and store the accepted clips as mp4. With --text the text area of the
clips that motion accepts is measured, too.

    python -m venv juicer && juicer/bin/pip install PACKAGES
    python -m benchmarks.versus --footage ../shared/data/video --data-juicer juicer [--minutes 10] [--text]

where PACKAGES are py-data-juicer==1.6.1 aiohttp opencv-contrib-python-headless scenedetect av==13.1.0
imageio-ffmpeg, and for --text easyocr==1.7.1 (the versions that Data-Juicer requires).

All ways use the content detector at its threshold of 27 with scenes of at least 0.6 s (15 frames), and x264
with the same preset, quality and distance of key frames. The differences are printed below the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import cv2
import yaml

from benchmarks import tree
from benchmarks.curation import bare_decode, customary, machine, measured
from benchmarks.footage import loop
from curation.audit.accounting import accounting
from curation.config.load import load_config
from curation.config.schema import Config
from curation.store.dataset import Dataset
from filters.text import find_weights

# Scenes have 3 to 10 s, so that all ways keep the same scenes; 1280x720 and 960x540, H.264, constant rate.
FILES = ("bigbuckbunny.mp4", "testvideo.mp4", "flower.mp4")
SHARE = 0.25  # the accepted part of the seconds
MIN_SECONDS, MAX_SECONDS, SHORT_SIDE = 3.0, 10.0, 240
PAIRS_PER_SECOND = 4  # Data-Juicer uses 2
FLOW_SIDE = 256  # pixels: the size of pictures for flow in the second run of Data-Juicer
SETTINGS = f"""
base: none
shots: {{detector: content, threshold: 27, min_scene_seconds: 0.6}}
spans: {{min_seconds: {MIN_SECONDS}, max_seconds: {MAX_SECONDS}}}
filters: {{duration: {{}}, resolution: {{}}, motion: {{per_second: {PAIRS_PER_SECOND}}}}}
rules:
  duration.seconds: {{min: {MIN_SECONDS}, max: {MAX_SECONDS}}}
  resolution.short_side: {{min: {SHORT_SIDE}}}
captions: {{captioner: none}}
"""
TEXT_FRAMES = 3  # frames per clip, Data-Juicer's default
ROW_SEPARATOR = "<__dj__video>"
DIFFERENCES = f"""\
Differences:
- Cuts: `ours` compares frames sampled from the decoder's planes, `ours, exact` PySceneDetect's own pictures.
- Motion: `ours` uses {PAIRS_PER_SECOND} pairs a second 0.1 s apart on small grey pictures. Data-Juicer uses 2
  pairs a second 0.5 s apart on full pictures (its default) or on pictures of {FLOW_SIDE} pixels a side. Each
  way has its own bound, which accepts the printed share.
- Data-Juicer's filters take complete rows, so it runs twice: to split, and to filter the clips. The time of
  its second start is not counted.
- `ours` also lists, identifies, verifies and reports. Its clips are in shards with all their scores.
- Text: the network is the same. `ours` uses pictures of at most 960 pixels, Data-Juicer full pictures."""


@dataclass(frozen=True)
class Took:
    """The costs and results of one way."""

    cpu_s: float
    wall_s: float
    clips: int = 0
    accepted: int = 0
    share: float = 0.0  # the accepted part of the footage's seconds

    def __add__(self, other: Took) -> Took:
        return Took(
            self.cpu_s + other.cpu_s, self.wall_s + other.wall_s, self.clips, self.accepted, self.share
        )

    def __sub__(self, other: Took) -> Took:
        return self + Took(-other.cpu_s, -other.wall_s)


def bound_for(clips: Sequence[tuple[float, float]], total_s: float) -> float:
    """The highest accepted score of clips (seconds, score) whose seconds are nearest to `SHARE` of `total_s`.

    Looped footage has many clips with the same score, and a bound accepts all of them or none."""
    best = (SHARE, float("-inf"))
    for bound in {score for _, score in clips}:
        accepted_s = sum(seconds for seconds, score in clips if score <= bound)
        best = min(best, (abs(accepted_s / total_s - SHARE), bound))
    return best[1]


def nearest_to(share: float, clips: Mapping[str, tuple[float, float]], total_s: float) -> list[str]:
    """Names of the clips (seconds, score) with the lowest scores whose seconds are nearest to `share` of
    `total_s`. Some clips of an equal score may be left out."""
    in_order = sorted(clips, key=lambda name: (clips[name][1], name))
    sums = [0.0, *accumulate(clips[name][0] for name in in_order)]
    return in_order[: min(range(len(sums)), key=lambda k: abs(sums[k] / total_s - share))]


# ---- ours


def ours(paths: Sequence[Path], folder: Path, total_s: float, *overrides: str) -> Took:
    """Run a complete `reelmill build`, including Ray's services."""
    folder.mkdir()
    (folder / "c.yaml").write_text(SETTINGS)
    command = [sys.executable, "-m", "jobs.build", *map(str, paths), "--out", str(folder / "dataset")]
    command += ["--config", str(folder / "c.yaml"), *(word for o in overrides for word in ("--set", o))]
    usage = tree.run(command, period_s=0.2)
    counted = accounting(Dataset(str(folder / "dataset")))
    cpu_s, share = usage.cpu_s + usage.services_cpu_s, counted.accepted_seconds / total_s
    return Took(cpu_s, usage.wall_s, counted.clips, counted.accepted, share)


def by_custom(
    paths: Sequence[Path],
    found: dict[Path, list[dict[str, Any]]],
    config: Config,
    accepted: Took,
) -> Took:
    """Encode every clip, and decode it again for its scores, in one process, as most such scripts do."""
    began = time.monotonic()
    steps = [customary(path, found[path], config) for path in paths]
    cpu_s = sum(sum(seconds.values()) for seconds in steps)
    clips = sum(map(len, found.values()))
    return Took(cpu_s, time.monotonic() - began, clips, accepted.accepted, accepted.share)


# ---- Data-Juicer


class Juicer:
    """Data-Juicer's runner in its own environment."""

    def __init__(self, environment: Path, folder: Path):
        self._command = environment / "bin" / "dj-process"
        if not self._command.exists():
            sys.exit(f"--data-juicer {environment}: contains no bin/dj-process; --help says how to make it")
        self._folder = folder
        folder.mkdir()
        path = f"{environment / 'bin'}:{os.environ['PATH']}"
        own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        homes = {name: str(folder / name.lower()) for name in ("HF_HOME", "DATA_JUICER_CACHE_HOME")}
        self._environment = {**own, **homes, "PATH": path, "OMP_NUM_THREADS": "1"}
        self._environment["EASYOCR_MODULE_PATH"] = str(folder / "easyocr")
        command = [str(self._command), "--help"]  # a test before the other ways do their work
        tried = subprocess.run(command, check=False, env=self._environment, capture_output=True, text=True)
        if tried.returncode:
            sys.exit(f"--data-juicer {environment}: {tried.stderr[-3000:]}")

    def use_text_model(self) -> None:
        """Copy the weights of a package to the folder where Data-Juicer's EasyOCR searches."""
        target = self._folder / "easyocr" / "model"
        target.mkdir(parents=True)
        shutil.copy(find_weights("auto"), target)

    def run(
        self, name: str, rows: Iterable[list[str]], process: list[dict[str, Any]]
    ) -> tuple[Took, list[dict[str, Any]]]:
        """Process rows of videos with operators. Returns the costs, and the remaining rows."""
        folder = self._folder / name
        folder.mkdir()
        lines = [json.dumps({"text": ROW_SEPARATOR * len(row), "videos": row}) for row in rows]
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
        recipe = {
            "project_name": name,
            "dataset_path": str(folder / "in.jsonl"),
            "export_path": str(folder / "out.jsonl"),
            "np": len(os.sched_getaffinity(0)),
            "keep_stats_in_res_ds": True,
            "open_tracer": False,
            "skip_op_error": False,  # True would drop unreadable videos without an error
            "process": process,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [str(self._command), "--config", str(folder / "recipe.yaml")]
        try:
            usage = tree.run(command, period_s=0.2, cwd=folder, environment=self._environment)
        except subprocess.CalledProcessError as error:
            sys.exit(f"Data-Juicer failed: {error.stderr[-3000:]}")
        took = Took(usage.cpu_s + usage.services_cpu_s, usage.wall_s)
        return took, [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def splitting(config: Config, folder: Path) -> dict[str, Any]:
    cut = config.cut
    arguments = f"-map 0:v:0 -an -c:v libx264 -preset {cut.preset} -crf {cut.crf} -g {cut.gop_frames}"
    return {
        "video_split_by_scene_mapper": {
            "detector": "ContentDetector",
            "threshold": 27.0,
            "min_scene_len": 15,
            "ffmpeg_extra_args": f"{arguments} -pix_fmt yuv420p",
            "save_dir": str(folder),
        }
    }


def filtering(flow_side: int | None) -> list[dict[str, Any]]:
    """The filters, with motion unbounded: the bound is computed from the scores afterwards."""
    limits = {"min_duration": MIN_SECONDS, "max_duration": MAX_SECONDS, "video_backend": "av"}
    return [
        {"video_duration_filter": limits},
        {"video_resolution_filter": {"min_width": SHORT_SIDE, "min_height": SHORT_SIDE}},
        {"video_motion_score_filter": {"min_score": 0.0, "sampling_fps": 2, "size": flow_side}},
    ]


def juiced(
    juicer: Juicer, paths: Sequence[Path], config: Config, share: float, total_s: float, *, text: bool
) -> dict[str, Took]:
    """Costs by the size of pictures for flow, and for the first size with text.

    `share`: the part of the seconds to accept."""
    folder = juicer._folder / "clips"
    took_split, rows = juicer.run("split", [[str(p)] for p in paths], [splitting(config, folder)])
    clips = [video for row in rows for video in row["videos"]]
    start, _ = juicer.run("start", [clips[:1]], [filtering(None)[0]])
    found: dict[str, Took] = {}
    for name, side in (("Data-Juicer", None), ("Data-Juicer, flow made small", FLOW_SIDE)):
        took, left = juicer.run(
            name.replace(" ", "-").replace(",", ""), [[c] for c in clips], filtering(side)
        )
        stats = {row["videos"][0]: row["__dj__stats__"] for row in left}
        scored = {v: (s["video_duration"][0], s["video_motion_score"][0]) for v, s in stats.items()}
        accepted = nearest_to(share, scored, total_s)
        is_share = sum(scored[v][0] for v in accepted) / total_s
        whole = took_split + (took - start)
        found[name] = Took(whole.cpu_s, whole.wall_s, len(clips), len(accepted), is_share)
        if text and side is None:
            juicer.use_text_model()
            ocr = {"frame_sample_num": TEXT_FRAMES, "languages_to_detect": ["en"]}
            took, _ = juicer.run("text", [[c] for c in accepted], [{"video_ocr_area_ratio_filter": ocr}])
            found[f"{name}, text"] = found[name] + (took - start)
    return found


# ---- the table


def table(found: dict[str, Took]) -> None:
    head = ("CPU s", "wall s", "clips", "accepted", "seconds", "CPU", "wall")
    print(f"{'':32s}" + "".join(f"{word:>10s}" for word in head))
    for name, took in found.items():
        base = found["ours, text" if name.endswith(", text") else "ours"]
        figures = [f"{took.cpu_s:.1f}", f"{took.wall_s:.1f}", str(took.clips), str(took.accepted)]
        figures += [
            f"{took.share:.1%}",
            f"{took.cpu_s / base.cpu_s:.1f}x",
            f"{took.wall_s / base.wall_s:.1f}x",
        ]
        print(f"{name:32s}" + "".join(f"{figure:>10s}" for figure in figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, required=True)
    parser.add_argument("--data-juicer", type=Path, help="its environment; default: only the two other ways")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of footage in total")
    parser.add_argument("--text", action="store_true", help="measure the text area, too")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    av.logging.set_libav_level(av.logging.ERROR)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        juicer = Juicer(args.data_juicer.absolute(), folder / "juicer") if args.data_juicer else None
        (folder / "footage").mkdir()
        paths = [folder / "footage" / file for file in FILES]
        for path in paths:
            loop(args.footage / path.name, path, args.minutes * 60 / len(FILES))
        config = load_config(SETTINGS)
        everything = {path: measured(path, config)[1] for path in paths}
        total_s = sum(c["end_s"] - c["start_s"] for of in everything.values() for c in of)
        fitting = {
            path: [c for c in of if MIN_SECONDS <= c["end_s"] - c["start_s"] <= MAX_SECONDS]
            for path, of in everything.items()
        }
        scores = [
            (c["end_s"] - c["start_s"], c["scores"]["motion.speed"]) for of in fitting.values() for c in of
        ]
        override = f"rules.motion.speed.max={bound_for(scores, total_s)!r}"
        decode_s = sum(bare_decode(path) for path in paths)
        print(f"footage: {args.minutes:g} min of {', '.join(FILES)}, looped")
        print(f"a bare decode of the footage: {decode_s:.1f} CPU s")

        found = {"ours": ours(paths, folder / "ours", total_s, override)}
        found["ours, exact"] = ours(paths, folder / "exact", total_s, override, "shots.exact=true")
        found["the customary way"] = by_custom(paths, fitting, config, found["ours"])
        if args.text:
            text = f"filters.text={{frames: {TEXT_FRAMES}}}"
            found["ours, text"] = ours(paths, folder / "text", total_s, override, text)
        if juicer:
            found |= juiced(juicer, paths, config, found["ours"].share, total_s, text=args.text)
        table(found)
        print(DIFFERENCES)


if __name__ == "__main__":
    main()
