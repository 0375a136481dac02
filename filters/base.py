"""The interface of a scorer: sampled frames of a clip in, named numbers out.

A scorer knows nothing of thresholds, Ray or storage. A scorer names the frames that it needs (`Sampling`),
receives them as `Frames`, and returns `Scores`. Scorers are frozen dataclasses. Their fields are their
parameters, so `measure_key` can detect that a stored number is out of date.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

Media = Literal["image", "video"]
VIDEO: frozenset[Media] = frozenset({"video"})
IMAGE_AND_VIDEO: frozenset[Media] = frozenset({"image", "video"})


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip a scorer needs.

    `none`: no pixels. `uniform`: `n` frames at the middles of `n` equal parts of the clip.
    `pairs`: `per_second` pairs of grey frames. The frames of a pair are `step_s` seconds apart.
    Rotation and pixel aspect are applied. Frames are not enlarged; only pairs always have the same width.
    """

    kind: Literal["none", "uniform", "pairs"]
    n: int = 0
    long_side: int | None = None  # pixels; the larger of width and height is reduced to this
    short_side: int | None = None  # pixels; the smaller one is reduced to this
    color: Literal["rgb", "gray"] = "rgb"
    per_second: float = 0.0
    step_s: float = 0.0
    width: int = 0  # pixels, of the frames of pairs
    combing: bool = False  # `ClipInfo.combing` is wanted, too; it looks at all frames of the clip

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) in pixels at which the scorer receives a `width` x `height` frame."""
        if self.kind == "pairs":
            # Motion is analysed at the same width for all sources. The limit is for very narrow frames.
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
    combing: bool = False,
) -> Sampling:
    """`n` frames, at the middles of `n` equal parts of the clip."""
    return Sampling("uniform", n=n, long_side=long_side, short_side=short_side, color=color, combing=combing)


def pairs(per_second: float, step_s: float, width: int) -> Sampling:
    """`per_second` pairs of grey frames `step_s` seconds apart, `width` pixels wide."""
    return Sampling("pairs", per_second=per_second, step_s=step_s, width=width, color="gray")


@dataclass(frozen=True)
class ClipInfo:
    """The properties of a clip that are known without decoding its pixels."""

    duration_s: float
    frames: int
    fps: float | None  # None: a still image
    width: int  # pixels, as displayed
    height: int
    doubtful: int = 0  # frames within it that were left out or timed by a guess
    combing: float | None = None  # part of the frames that show combs; None: no scorer wants to know

    @property
    def media(self) -> Media:
        return "image" if self.fps is None else "video"


@dataclass(frozen=True)
class Pair:
    """Two grey frames, (H, W) uint8. `dt_s` is the true difference of their timestamps, in seconds."""

    first: np.ndarray
    second: np.ndarray
    dt_s: float


@dataclass(frozen=True)
class Frames:
    """The frames of one clip that a scorer's `sampling` asked for.

    `images` are (H, W, 3) RGB or (H, W) grey, uint8, in order of time. `pairs` is filled for pair
    sampling only. Short clips give fewer frames or pairs than asked for, or none. Scorers that ask for
    the same pairs get the same objects.
    """

    clip: ClipInfo
    images: Sequence[np.ndarray] = ()
    pairs: Sequence[Pair] = ()
    # What several scorers of the clip need, such as the flow of a pair. The first of them computes it.
    shared: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Scores:
    """A scorer's answer for one clip: column -> number (None: the number could not be measured)."""

    values: dict[str, float | None]
    embedding: np.ndarray | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Column:
    """One stored number, with its unit and meaning for the documents and the report."""

    name: str  # measure.value
    unit: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)
    meaning: str = ""


class Scorer:
    """Turns sampled frames of clips into named numbers. The base class of all filters.

    A subclass is a frozen dataclass. Its fields are the parameters that a configuration can set. Only
    `measure` must be written; everything else has a default:

        @dataclass(frozen=True)
        class Redness(Scorer):
            def measure(self, frames: Frames) -> float:
                return float(np.mean([image[..., 0].mean() for image in frames.images]))
    """

    name: ClassVar[str] = ""  # column prefix; default: the name of the class in lower case
    version: ClassVar[str] = "1"  # part of the cache key: raise it when the numbers change
    applies_to: ClassVar[frozenset[Media]] = IMAGE_AND_VIDEO
    columns: ClassVar[tuple[Column, ...]] = ()  # default: one column, <name>.value
    # Columns that came without a new version, and are never null: a clip that lacks one is scored again if a
    # rule asks for it. Clips of before stay complete under the rules of before.
    later: ClassVar[tuple[str, ...]] = ()
    cost_ms: ClassVar[float] = 10.0  # of CPU time for a clip of 5 seconds: cheap scorers run first
    uses_model: ClassVar[bool] = False  # True: runs in Ray actors, in batches, on a GPU if there is one

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()
        if "columns" not in vars(cls):
            cls.columns = (Column(f"{cls.name}.value"),)

    @property
    def sampling(self) -> Sampling:
        """The frames that `measure` receives. Default: 4 uniform frames, at most 320 pixels long."""
        return uniform(4, long_side=320)

    def check(self) -> None:
        """Raise `MissingModel` if a needed model is not available. Called once, before any work."""

    def measure(self, frames: Frames) -> float | Mapping[str, float | None] | None:
        """The number of one clip; with several columns, a mapping of column to number. None: the number
        could not be measured. A clip without the frames that `sampling` asks for is never passed."""
        raise NotImplementedError(f"{type(self).__name__} has no method measure")

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        """One `Scores` for each clip, in order. A scorer with a model overrides this, to work in batches."""
        return [self._scores(clip) for clip in clips]

    def _scores(self, clip: Frames) -> Scores:
        nothing: dict[str, float | None] = dict.fromkeys(column.name for column in self.columns)
        if self.sampling.kind != "none" and not clip.images and not clip.pairs:
            return Scores(nothing)
        found = self.measure(clip)
        if not isinstance(found, Mapping):
            assert len(nothing) == 1, f"{self.name} has several columns, and measure returned one number"
            found = dict.fromkeys(nothing, found)
        assert found.keys() <= nothing.keys(), f"{self.name} has no column {set(found) - set(nothing)}"
        return Scores(nothing | {k: None if v is None else float(v) for k, v in found.items()})


class MissingModel(ValueError):
    """The weights of a configured model are not available. The message names the key to change or the
    package to install."""


def measure_key(scorer: Scorer) -> str:
    """A short hash of a scorer's name, version and parameters. Equal keys mean comparable numbers."""
    assert dataclasses.is_dataclass(scorer)
    assert not isinstance(scorer, type)
    # Parameters with `key=False` decide where a model runs. They do not change its numbers.
    params = {
        f.name: getattr(scorer, f.name) for f in dataclasses.fields(scorer) if f.metadata.get("key", True)
    }
    text = json.dumps([scorer.name, scorer.version, params], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
