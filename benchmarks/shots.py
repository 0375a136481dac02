"""The shot detectors against cuts and gradual transitions that people labelled, file by file.

python -m benchmarks.shots --data ../shared/data

`--data` holds `film/truth.json` and `video/ground_truth.json`, and the files beside them.
`--coefficients FILE` takes those of `similarity` from a file that `benchmarks.likeness.train` wrote.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.likeness.score import Score, score
from benchmarks.likeness.shots import Labels, labels
from curation.config.schema import DetectorName
from curation.decode.likeness import network
from curation.decode.likeness.compare import stride_of
from curation.decode.likeness.decide import changes
from curation.decode.shots.base import Cut
from curation.decode.shots.choice import DEFAULT_THRESHOLD, make_detector
from curation.decode.shots.similarity import GRADUAL_THRESHOLD, Similarity
from curation.decode.video import Video
from curation.sources.media import is_media

MIN_SCENE_SECONDS = 0.6


def bare(path: Path) -> tuple[float, float]:
    """(CPU seconds of a bare decode, frames per second)."""
    began = time.process_time()
    with Video(str(path), skip_loop_filter=True) as video:
        for _ in video.frames():
            pass
        return time.process_time() - began, video.info.fps or 25.0


def found(path: Path, name: DetectorName) -> tuple[float, list[Cut]]:
    """(CPU seconds of a decode with the detector, what it found)."""
    began = time.process_time()
    with Video(str(path), skip_loop_filter=True) as video:
        detector = make_detector(name, None, MIN_SCENE_SECONDS, exact=False, fps=video.info.fps or 25.0)
        cuts = [c for frame in video.frames() for c in detector.push(frame)]
        cuts += detector.finish()
    return time.process_time() - began, cuts


def of_detector(name: DetectorName, truth: dict[Path, Labels]) -> None:
    """Print the table of one detector."""
    print(f"\n`{name}`\n")
    print("| file | hits | missed | false | gradual found | not found | false ranges | bare s | added s |")
    print("|---|---|---|---|---|---|---|---|---|")
    total, bare_s, added_s = Score(), 0.0, 0.0
    for path, of in truth.items():
        alone_s, fps = bare(path)
        spent_s, cuts = found(path, name)
        one = score(cuts, of, MIN_SCENE_SECONDS * fps - 1e-6)
        total += one
        bare_s += alone_s
        added_s += spent_s - alone_s
        _line(path.name, one, alone_s, spent_s - alone_s)
    _line("all", total, bare_s, added_s)
    recall = len(total.hits) / (len(total.hits) + len(total.missed))
    precision = len(total.hits) / max(1, len(total.hits) + len(total.false))
    gradual = len(total.found) + len(total.unfound)
    ranges = len(total.found) / max(1, len(total.found) + len(total.false_ranges))
    print(
        f"\nhard cuts: recall {recall:.3f}, precision {precision:.3f}; gradual transitions: "
        f"{len(total.touched)} of {gradual} touched, {len(total.found)} found with their frames, precision "
        f"{ranges:.2f}; added cost {added_s / bare_s:.2f} of a bare decode",
        flush=True,
    )


def _line(name: str, of: Score, bare_s: float, added_s: float) -> None:
    def some(items: list[int] | list[tuple[int, int]]) -> str:
        if name == "all" or not items:
            return str(len(items))
        return f"{len(items)}: " + ", ".join(
            str(i) if isinstance(i, int) else f"{i[0]}-{i[1]}" for i in items
        )

    print(
        f"| {name} | {len(of.hits)} | {some(of.missed)} | {some(of.false)} | {len(of.found)} | "
        f"{some(of.unfound)} | {some(of.false_ranges)} | {bare_s:.2f} | {added_s:.2f} |",
        flush=True,
    )


def cost(data: Path) -> None:
    """Print what `similarity` adds to a bare decode of all films and videos, also of those without labels."""
    bare_s = added_s = 0.0
    for path in sorted(
        p for folder in ("film", "video") for p in (data / folder).iterdir() if is_media(p.name)
    ):
        alone_s = bare(path)[0]
        one_s = found(path, "similarity")[0] - alone_s
        bare_s, added_s = bare_s + alone_s, added_s + one_s
        print(f"{path.name}: {alone_s:.2f} s, {one_s:.2f} s more")
    print(f"added cost {added_s / bare_s:.2f} of a bare decode")


def curve(truth: dict[Path, Labels]) -> None:
    """Print recall and precision of `similarity` over its two thresholds."""
    probable: dict[Path, tuple[np.ndarray, float]] = {}
    for path in truth:
        with Video(str(path), skip_loop_filter=True) as video:
            fps = video.info.fps or 25.0
            of = Similarity(0.5, fps)
            stream = network.Stream(stride_of(fps))
            parts = [stream.push(of.value(frame)) for frame in video.frames()]
            probable[path] = np.concatenate([*parts, stream.finish()]), fps

    def total(hard: float, gradual: float) -> Score:
        result = Score()
        for path, (of, fps) in probable.items():
            of[0, 0] = 0
            cuts = [Cut(c.first, 0, c.last - c.first + 1) for c in changes(of, hard, gradual)]
            result += score(cuts, truth[path], MIN_SCENE_SECONDS * fps - 1e-6)
        return result

    print("| threshold of hard cuts | hits | missed | false |\n|---|---|---|---|")
    for threshold in (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        of_hard = total(threshold, GRADUAL_THRESHOLD)
        print(f"| {threshold} | {len(of_hard.hits)} | {len(of_hard.missed)} | {len(of_hard.false)} |")
    print("\n| threshold of gradual transitions | found | not found | false ranges |\n|---|---|---|---|")
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        soft = total(DEFAULT_THRESHOLD["similarity"], threshold)
        print(f"| {threshold} | {len(soft.found)} | {len(soft.unfound)} | {len(soft.false_ranges)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--coefficients", type=Path)
    parser.add_argument("--only", nargs="*", help="names of files")
    parser.add_argument("--detectors", nargs="*", default=["similarity", "adaptive", "content", "transnetv2"])
    parser.add_argument("--cost", action="store_true", help="of `similarity`, on all files")
    parser.add_argument("--curve", action="store_true", help="of the thresholds of `similarity`")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.coefficients:
        network.COEFFICIENTS = args.coefficients
    truth = {p: t for p, t in labels(args.data).items() if not args.only or p.name in args.only}
    if args.cost:
        cost(args.data)
        return
    if args.curve:
        curve(truth)
        return
    for name in args.detectors:
        of_detector(name, truth)


if __name__ == "__main__":
    main()
