"""Single shots of labelled footage, small."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from curation.decode.pixels.levels import CHROMA_TO_FULL, LUMA_TO_FULL
from curation.decode.video import Frame, Video

WIDTH, HEIGHT = 128, 72
_SHORTEST = 14  # frames
_EDGE = 3  # frames beside a gradual transition that are left out
_MOST_FRAMES = 2000  # of a file
# Synthetic ones, in which hardly anything is like footage.
_LEFT_OUT = ("counter.mp4", "fades.mp4", "h265_video.mp4", "movie_300.mp4")


@dataclass(frozen=True)
class SingleShot:
    """Frames without a cut: (n, 72, 128, 3) uint8, luma and chroma in full range."""

    file: str
    frames: np.ndarray


@dataclass(frozen=True)
class Labels:
    """Frame numbers. A cut is the first frame of a new shot; ranges contain their last frame."""

    cuts: list[int]
    gradual: list[tuple[int, int]]
    ignored: list[tuple[int, int]]  # where people disagree


def labels(data: Path) -> dict[Path, Labels]:
    """The labels of the files in `data/film` and `data/video`; see the READMEs there."""
    found = {}
    for name, row in json.loads((data / "film" / "truth.json").read_text()).items():
        gradual = [(g["first"], g["last"]) for g in row["gradual"]]
        found[data / "film" / name] = Labels(row["cuts"], gradual, [(a, b) for a, b in row["ambiguous"]])
    for name, row in json.loads((data / "video" / "ground_truth.json").read_text()).items():
        truth = row.get("ground_truth", {})
        if "cuts" in truth:
            gradual = [(g["start"], g["end"]) for g in truth.get("gradual") or []]
            found[data / "video" / name] = Labels(truth["cuts"] or [], gradual, [])
    return found


def small_frames(path: Path) -> np.ndarray:
    """(n, 72, 128, 3) uint8 of a file, at most `_MOST_FRAMES`."""
    with Video(str(path), skip_loop_filter=True) as video:
        return np.stack(
            [_small(frame) for frame, _ in zip(video.frames(), range(_MOST_FRAMES), strict=False)]
        )


def _small(frame: Frame) -> np.ndarray:
    planes = [cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for p in frame.planes()]
    if not frame.full_range:
        tables = (LUMA_TO_FULL, CHROMA_TO_FULL, CHROMA_TO_FULL)
        planes = [cv2.LUT(p, table) for p, table in zip(planes, tables, strict=True)]
    return np.stack(planes, -1)


def single_shots(data: Path, more: Path | None, without: frozenset[str]) -> list[SingleShot]:
    """The shots of the labelled files, and the files of the folder `more`, each of which holds one shot.

    without: names of files that are left out.
    """
    found = []
    for path, of in labels(data).items():
        if path.name not in without and path.name not in _LEFT_OUT:
            frames = small_frames(path)
            found += [SingleShot(path.name, frames[a:b]) for a, b in _stretches(of, len(frames))]
    for path in sorted(more.iterdir()) if more else []:
        found.append(SingleShot(path.name, small_frames(path)))
    return found


def _stretches(of: Labels, frames: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the parts of a file without any change."""
    ends = {0, frames, *(k for k in of.cuts if k < frames)}
    inside = np.zeros(frames, bool)
    for first, last in [*of.gradual, *of.ignored]:
        inside[max(0, first - _EDGE) : last + 1 + _EDGE] = True
    edges = np.flatnonzero(np.diff(inside)) + 1
    bounds = sorted(ends | set(edges.tolist()))
    for a, b in itertools.pairwise(bounds):
        if b - a >= _SHORTEST and not inside[a]:
            yield a, b
