"""The filter `camera`: classes of rendered moves, its thresholds, labelled footage, and its cost.

python -m benchmarks.camera --footage ../shared/data
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from curation.decode.sampling import Keeper
from curation.decode.shots.spans import Span
from curation.decode.video import Video
from filters.base import ClipInfo, Frames, Pair
from filters.camera import Camera, camera_class
from filters.motion import Motion, flows
from tests.filters.moves import Disc, clip, frames_of, hand_held, steady
from tests.filters.moves import Path as Move

CLASSES = ("static", "pan", "tilt", "zoom", "roll", "shake")
LEAST = {"pan": 0.015, "tilt": 0.015, "zoom": 0.05, "roll": 2.5}  # rates, in the units of the columns
LABELS = Path(__file__).with_name("camera_labels.csv")
Values = Mapping[str, float]


def measured(frames: Frames) -> Values:
    motion = Motion()([frames])[0].values
    return {k: float(v or 0) for k, v in (motion | Camera()([frames])[0].values).items()}


def rendered(rounds: int) -> Iterator[tuple[str, bool, Values]]:
    """(the camera's class, does a thing move, the columns) of moves drawn at random."""
    rng = np.random.default_rng(1)
    for seed in range(rounds):
        for disc in (None, Disc(rng.uniform(0.08, 0.15), rng.uniform(0.05, 0.25))):
            slope = rng.uniform(1.1, 1.6)
            moves: dict[str, Move] = {
                kind: steady(kind, rng.choice([-1, 1]) * least * rng.uniform(1, 8))
                for kind, least in LEAST.items()
            }
            moves |= {"static": steady("static", 0), "shake": hand_held(seed, rng.uniform(0.002, 0.01))}
            for kind, move in moves.items():
                yield kind, disc is not None, measured(clip(frames_of(move, seed, slope=slope, disc=disc)))


def confusion(found: Sequence[tuple[str, bool, Values]]) -> None:
    for things in (False, True):
        print(f"\n### Rendered moves, {'a thing moves' if things else 'nothing else moves'}\n")
        names = (*CLASSES, "mixed")
        print(f"| is, called | {' | '.join(names)} | object, most | object, least |")
        print("|---" * (len(names) + 3) + "|")
        for kind in CLASSES:
            mine = [values for k, t, values in found if (k, t) == (kind, things)]
            called = [camera_class(values) for values in mine]
            objects = [values["camera.object"] for values in mine]
            parts = [f"{called.count(name) / len(mine):.2f}" for name in names]  # type: ignore[arg-type]
            print(f"| {kind} | {' | '.join(parts)} | {max(objects):.4f} | {min(objects):.4f} |")


def curves(
    rows: Sequence[tuple[Mapping[str, str], Values]], drawn: Sequence[tuple[str, bool, Values]]
) -> None:
    """What each threshold does, on labelled footage and on renderings."""
    one = [(row["camera"], values) for row, values in rows if "/" not in row["camera"]]
    one += [(kind, values) for kind, _, values in drawn]
    print(
        "\n### static: slower than\n\n| widths/s | standing cameras called so | moving ones |\n|---|---|---|"
    )
    for bound in (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02):
        print(f"| {bound:g} | {_below(one, 'static', bound)} |")
    print(
        "\n### shake: more of the speed than\n\n| part | hand-held called so | steady moves |\n|---|---|---|"
    )
    moving = [(c, v) for c, v in one if c != "static" and v["camera.speed"] >= 0.01]
    for bound in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        held = [v["camera.shake"] > bound * v["camera.speed"] for c, v in moving if c == "shake"]
        other = [v["camera.shake"] > bound * v["camera.speed"] for c, v in moving if c in LEAST]
        print(f"| {bound:g} | {sum(held)} of {len(held)} | {sum(other)} of {len(other)} |")
    print("\n### object: faster than\n\n| widths/s | with things that move | without |\n|---|---|---|")
    things = [(row["things"], v) for row, v in rows] + [("yes" if t else "no", v) for _, t, v in drawn]
    for bound in (0.0005, 0.001, 0.002, 0.004, 0.008):
        yes, no = ([v["camera.object"] > bound for t, v in things if t == kind] for kind in ("yes", "no"))
        print(f"| {bound:g} | {sum(yes)} of {len(yes)} | {sum(no)} of {len(no)} |")
    print("\n### still: at most\n\n| widths/s | rejected with things that move | without |\n|---|---|---|")
    for bound in (0.0025, 0.005, 0.01, 0.02, 0.04):
        yes, no = ([v["camera.still"] > bound for t, v in things if t == kind] for kind in ("yes", "no"))
        print(f"| {bound:g} | {sum(yes)} of {len(yes)} | {sum(no)} of {len(no)} |")


def _below(one: Sequence[tuple[str, Values]], kind: str, bound: float) -> str:
    mine, others = (
        [v["camera.speed"] < bound for c, v in one if (c == kind) is same] for same in (True, False)
    )
    return f"{sum(mine)} of {len(mine)} | {sum(others)} of {len(others)}"


def footage(folder: Path) -> Iterator[tuple[Mapping[str, str], Values]]:
    """Each row of camera_labels.csv, and the columns of its frames `first` to `last`."""
    with LABELS.open() as file:
        rows = list(csv.DictReader(file))
    for name in dict.fromkeys(row["file"] for row in rows):
        paths = sorted(folder.rglob(name))
        if not paths:
            raise SystemExit(f"{folder}: there is no {name}; --footage names the folder of the footage")
        mine = [row for row in rows if row["file"] == name]
        for row, pairs in zip(mine, _pairs(paths[0], mine), strict=True):
            info = ClipInfo(duration_s=1, frames=2, fps=25, width=1, height=1)
            yield row, measured(Frames(info, pairs=pairs))


def _pairs(path: Path, rows: Sequence[Mapping[str, str]]) -> list[list[Pair]]:
    with Video(str(path), skip_loop_filter=True) as video:
        keeper = Keeper(video.info, {"camera": Camera().sampling}, {}, 3, thumbnails=False)
        times = []
        for frame in video.frames():
            keeper.offer(frame)
            times.append(frame.time_s)
    spans = [(times[int(row["first"])], times[int(row["last"])] + 1e-4) for row in rows]
    return [keeper.pairs("camera", Span(start, end, 2)) for start, end in spans]


def table(rows: Sequence[tuple[Mapping[str, str], Values]]) -> None:
    right = sum(camera_class(values) in row["camera"].split("/") for row, values in rows)
    print(f"\n### Footage: {right} of {len(rows)} clips have a class that the label allows\n")
    print(
        "| clip | label | class | things | motion | speed | pan | tilt | zoom | roll | shake | object "
        "| still |"
    )
    print("|---" * 13 + "|")
    for row, v in rows:
        name = camera_class(v)
        mark = name if name in row["camera"].split("/") else f"**{name}**"
        rates = " | ".join(f"{v[f'camera.{part}']:+.3f}" for part in ("pan", "tilt", "zoom", "roll"))
        print(
            f"| {row['file']} {row['first']}-{row['last']} | {row['camera']} | {mark} | {row['things']} | "
            f"{v['motion.speed']:.4f} | {v['camera.speed']:.4f} | {rates} | {v['camera.shake']:.4f} | "
            f"{v['camera.object']:.4f} | {v['camera.still']:.4f} |"
        )


def cost(seconds: float = 10) -> None:
    frames = clip(frames_of(steady("pan", 0.05), slope=1.3, seconds=seconds, disc=Disc(0.12, 0.05)))
    pairs = len(frames.pairs)
    best = {"flow": np.inf, "camera": np.inf}
    for _ in range(5):
        frames.shared.clear()
        began = time.process_time()
        flows(frames, 128)
        flowed = time.process_time()
        Camera()([frames])
        ended = time.process_time()
        best = {"flow": min(best["flow"], flowed - began), "camera": min(best["camera"], ended - flowed)}
    print(
        f"\nCPU of a pair: flow {best['flow'] / pairs * 1e3:.2f} ms, and camera "
        f"{best['camera'] / pairs * 1e3:.2f} ms more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--footage", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20, help="of rendered moves (default: %(default)s)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    drawn = list(rendered(args.rounds))
    rows = list(footage(args.footage))
    confusion(drawn)
    curves(rows, drawn)
    table(rows)
    cost()


if __name__ == "__main__":
    main()
