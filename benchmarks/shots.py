"""Recall and precision of the shot detectors on cuts labelled by people.

python -m benchmarks.shots --footage ../shared/data/video
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import cv2

from curation.config.schema import DetectorName
from curation.decode.shots import make_detector
from curation.decode.video import Video

WAYS: list[tuple[DetectorName, bool]] = [
    ("adaptive", False),
    ("adaptive", True),
    ("content", False),
    ("content", True),
    ("transnetv2", False),
]


def found(path: Path, name: DetectorName, *, exact: bool) -> list[int]:
    with Video(str(path), skip_loop_filter=True) as video:
        detector = make_detector(name, None, 0.6, exact=exact, fps=video.info.fps or 25.0)
        cuts = [c.index for frame in video.frames() for c in detector.push(frame)]
        return cuts + [c.index for c in detector.finish()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    truth = json.loads((args.footage / "ground_truth.json").read_text())
    labelled = {n: r["ground_truth"] for n, r in truth.items() if "cuts" in r.get("ground_truth", {})}
    counts = [sum(len(t.get(kind, [])) for t in labelled.values()) for kind in ("cuts", "gradual")]
    print(f"{len(labelled)} files, {counts[0]} hard cuts, {counts[1]} gradual transitions")
    print("| detector | frames | hits | missed | false | recall | precision | in gradual | CPU s | where |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, exact in WAYS:
        hits = missed = gradual = 0
        where: Counter[str] = Counter()
        began = time.process_time()
        for file, t in labelled.items():
            cuts = found(args.footage / file, name, exact=exact)
            blends = [(g["start"] - 1, g["end"] + 1) for g in t.get("gradual", [])]
            inside = {c for c in cuts if c not in t["cuts"] and any(a <= c <= b for a, b in blends)}
            hits += sum(c in cuts for c in t["cuts"])
            missed += sum(c not in cuts for c in t["cuts"])
            where[file] = sum(c not in t["cuts"] and c not in inside for c in cuts)
            gradual += sum(any(a <= c <= b for c in inside) for a, b in blends)
        way = "as PySceneDetect's API" if exact else "sampled planes"
        way = "48x27" if name == "transnetv2" else way
        false = where.total()
        recall, precision = hits / (hits + missed), hits / max(1, hits + false)
        print(
            f"| {name} | {way} | {hits} | {missed} | {false} | {recall:.2f} | {precision:.2f} | "
            f"{gradual} | {time.process_time() - began:.0f} | "
            f"{', '.join(f'{file} {count}' for file, count in (+where).items())} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
