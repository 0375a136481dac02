"""What a captioner is: accepted clips in, captions out, joined by `clip_id` and never by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

Kind = Literal["sidecar", "long", "short", "structured", "rewritten"]


@dataclass(frozen=True)
class Pictures:
    """Which pictures of a clip a captioner looks at.

    `fps` None: `count` of them, evenly over the clip. Otherwise `fps` of them per second, at most `count`.
    """

    count: int
    fps: float | None
    side: int  # pixels of the longer side; never enlarged


@dataclass(frozen=True)
class CaptionRequest:
    """One accepted clip, and what is known of its source."""

    clip_id: str
    uri: str
    start_s: float  # presentation time
    end_s: float
    is_image: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # the source list's other columns
    # uint8 (H, W, 3) RGB, in order of time; for captioners that look.
    pictures: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    times_s: tuple[float, ...] = ()  # of the pictures, from the clip's start
    text: str | None = None  # for rewriters: the caption to rewrite


@dataclass(frozen=True)
class Caption:
    """One text for one clip. `kind` is a `Kind`."""

    clip_id: str
    captioner: str
    kind: str
    text: str
    model: str | None = None
    revision: str | None = None
    prompt_version: str | None = None
    truncated: bool = False  # the model ran into its limit of tokens
    # Column without "caption." -> value.
    checks: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class CaptionFailed:
    """The captioner tried, and there is no caption. `error` is the name of the error's type."""

    clip_id: str
    error: str
    message: str


class CaptionerMissing(ValueError):
    """The captioner cannot work at all: no model, no key, no server. Names the setting and the remedy."""


class Captioner(Protocol):
    """Turns clips into captions; a clip may get several, of different kinds.

    A clip that has nothing to be captioned from is simply not among the answers.
    """

    name: ClassVar[str]

    @property
    def key(self) -> str:
        """Changes when the captions would: what was captioned under another key is captioned again."""

    @property
    def pictures(self) -> Pictures | None:
        """What `CaptionRequest.pictures` has to hold; None for a captioner that does not look."""

    def check(self) -> None:
        """Raises `CaptionerMissing` where it can be known before work that no caption would come."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> Sequence[Caption | CaptionFailed]: ...


class NoCaptions:
    """Captions are null: the clips train an unconditional model."""

    name: ClassVar[str] = "none"
    key = "none"
    pictures: Pictures | None = None

    def check(self) -> None:
        """Nothing can be missing."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]:
        return []
