"""What a scorer is: sampled frames of a clip in, named numbers out.

A scorer knows nothing of thresholds, Ray or storage. It says which frames it needs (`Sampling`), gets
them as `Frames`, and returns `Scores`. Scorers are frozen dataclasses: their fields are their
parameters, so `measure_key` can tell when a stored number is out of date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

Media = Literal["image", "video"]
VIDEO: frozenset[Media] = frozenset({"video"})
IMAGE_AND_VIDEO: frozenset[Media] = frozenset({"image", "video"})


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip a scorer needs.

    `none`: no pixels. `uniform`: `n` frames at the middles of `n` equal parts of the clip.
    `pairs`: `per_second` pairs of grey frames, each pair `step_s` seconds apart.
    Frames are as displayed (rotation and pixel aspect applied) and are only ever made smaller.
    """

    kind: Literal["none", "uniform", "pairs"]
    n: int = 0
    long_side: int | None = None  # pixels; the larger of width and height is reduced to this
    short_side: int | None = None  # pixels; the smaller one is reduced to this
    color: Literal["rgb", "gray"] = "rgb"
    per_second: float = 0.0
    step_s: float = 0.0
    width: int = 0  # pixels, of pairs

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in which a `width` x `height` frame is handed to the scorer."""
        if self.kind == "pairs":
            # Motion is analysed at one width, whatever the source's; a sliver must not become a mile high.
            scale = min(self.width / width, 4 * self.width / height)
        elif self.long_side:
            scale = min(1.0, self.long_side / max(width, height))
        elif self.short_side:
            scale = min(1.0, self.short_side / min(width, height))
        else:
            scale = 1.0
        return max(1, round(width * scale)), max(1, round(height * scale))


NONE = Sampling("none")


def uniform(
    n: int,
    *,
    long_side: int | None = None,
    short_side: int | None = None,
    color: Literal["rgb", "gray"] = "rgb",
) -> Sampling:
    """`n` frames, at the middles of `n` equal parts of the clip."""
    return Sampling("uniform", n=n, long_side=long_side, short_side=short_side, color=color)


def pairs(per_second: float, step_s: float, width: int) -> Sampling:
    """`per_second` pairs of grey frames `step_s` seconds apart, `width` pixels wide."""
    return Sampling("pairs", per_second=per_second, step_s=step_s, width=width, color="gray")


@dataclass(frozen=True)
class ClipInfo:
    """What is known of a clip without looking at its pixels."""

    duration_s: float
    frames: int
    fps: float | None  # None: a still image
    width: int  # pixels, as displayed
    height: int

    @property
    def media(self) -> Media:
        return "image" if self.fps is None else "video"


@dataclass(frozen=True)
class Pair:
    """Two grey frames, (H, W) uint8, `dt_s` seconds apart (the true difference of their timestamps)."""

    first: np.ndarray
    second: np.ndarray
    dt_s: float


@dataclass(frozen=True)
class Frames:
    """One clip as a scorer sees it: what its `sampling` asked for.

    `images` are (H, W, 3) RGB or (H, W) grey, uint8, in order of time; `pairs` is filled for pair
    sampling only. Either may hold fewer than asked for when the clip is short, and may be empty.
    """

    clip: ClipInfo
    images: Sequence[np.ndarray] = ()
    pairs: Sequence[Pair] = ()


@dataclass(frozen=True)
class Scores:
    """A scorer's answer for one clip: column -> number (None = could not be measured)."""

    values: dict[str, float | None]
    embedding: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Column:
    """One stored number: what it means, for the docs and the report."""

    name: str  # measure.value
    unit: str
    range: tuple[float, float]
    meaning: str


@runtime_checkable
class Scorer(Protocol):
    """Turns sampled frames of clips into named numbers."""

    name: ClassVar[str]  # column prefix
    version: ClassVar[str]  # part of the cache key: bump it when the numbers change
    applies_to: ClassVar[frozenset[Media]]
    columns: ClassVar[tuple[Column, ...]]
    cost: ClassVar[str]  # CPU time, as measured
    uses_model: ClassVar[bool]  # True: runs in Ray actors, in batches, on a GPU where there is one

    @property
    def sampling(self) -> Sampling: ...

    def check(self) -> None:
        """Raise `MissingModel` when a needed model cannot be had. Called once, before any work."""

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]: ...


class MissingModel(ValueError):
    """A configured model's weights cannot be had; the message says which key to change or what to install."""


def measure_key(scorer: Scorer) -> str:
    """A short hash of a scorer's name, version and parameters: equal keys mean comparable numbers."""
    assert dataclasses.is_dataclass(scorer)
    assert not isinstance(scorer, type)
    # Parameters that change where a model runs but not what it says are marked `key=False`.
    params = {
        f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer) if f.metadata.get("key", True)
    }
    text = json.dumps([scorer.name, scorer.version, params], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
