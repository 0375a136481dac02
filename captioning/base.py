"""The interface of a captioner: accepted clips in, captions out. They are matched by `clip_id` only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

Kind = Literal["sidecar", "long", "short", "structured", "rewritten"]


@dataclass(frozen=True)
class Pictures:
    """Which pictures of a clip a captioner needs.

    `fps` None: `count` pictures at equal distances over the clip. Otherwise `fps` pictures per second, at
    most `count`.
    """

    count: int
    fps: float | None
    side: int  # pixels of the longer side; pictures are never enlarged


@dataclass(frozen=True)
class CaptionRequest:
    """One accepted clip, with its place in its source."""

    clip_id: str
    uri: str
    start_s: float  # presentation time; for `sidecar`, and in its files, the time since the file begins
    end_s: float
    is_image: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # the other columns of the source list
    # uint8 (H, W, 3) RGB, in order of time; empty for captioners that need no pictures.
    pictures: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    times_s: tuple[float, ...] = ()  # times of the pictures, in seconds from the clip's start
    text: str | None = None  # the caption to rewrite, for rewriters


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
    truncated: bool = False  # the model reached its limit of tokens
    # Name of a column without "caption." -> value.
    checks: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class CaptionFailed:
    """The captioner found no caption for a clip. `error` is the name of the error's type."""

    clip_id: str
    error: str
    message: str


class CaptionerMissing(ValueError):
    """The captioner cannot work at all: it has no model, key or server. The message names the setting and a
    remedy."""


class Captioner(Protocol):
    """Turns clips into captions. A clip may get several captions of different kinds.

    The answers leave out clips that have no material for a caption.
    """

    name: ClassVar[str]

    @property
    def key(self) -> str:
        """A name of the settings that decide the captions. Clips with captions of another key are captioned
        again."""

    @property
    def pictures(self) -> Pictures | None:
        """The required content of `CaptionRequest.pictures`; None if the captioner needs no pictures."""

    def check(self) -> None:
        """Raise `CaptionerMissing` if it is clear before the work that no clip would get a caption."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> Sequence[Caption | CaptionFailed]: ...


class OwnCaptioner:
    """The base of a captioner of your own: one text for each clip, from its pictures.

    A subclass is a frozen dataclass. Its fields are the parameters that a configuration can set
    (`captions.own`). Only `caption` must be written; everything else has a default:

        @dataclass(frozen=True)
        class Brightness(OwnCaptioner):
            def caption(self, clip: CaptionRequest) -> str:
                return "a dark scene" if np.mean(clip.pictures) < 60 else "a bright scene"
    """

    name: ClassVar[str] = ""  # default: the name of the class in lower case
    version: ClassVar[str] = "1"  # raise it when the texts change: clips are then captioned again
    kind: ClassVar[Kind] = "long"
    pictures: Pictures | None = Pictures(4, None, 512)  # 4 pictures of at most 512 pixels; None: none

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @property
    def key(self) -> str:
        """A short hash of the name, the version and the parameters."""
        params = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        text = json.dumps([self.name, self.version, params], sort_keys=True, default=str)
        return f"{self.name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def check(self) -> None:
        """Raise `CaptionerMissing` if no clip would get a caption. Called once, before any work."""

    def caption(self, clip: CaptionRequest) -> str | None:
        """The text for one clip. None: the clip gets no caption. An error is recorded for this clip."""
        raise NotImplementedError(f"{type(self).__name__} has no method caption")

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        """The answers for a batch. A captioner with a model overrides this, to work in batches."""
        found: list[Caption | CaptionFailed] = []
        for clip in clips:
            try:
                text = self.caption(clip)
            except Exception as error:  # whatever the user's code raises
                found.append(CaptionFailed(clip.clip_id, type(error).__name__, str(error)))
                continue
            if text is not None:
                found.append(Caption(clip.clip_id, self.name, self.kind, text))
        return found


class NoCaptions:
    """No clip gets a caption: the clips train an unconditional model."""

    name: ClassVar[str] = "none"
    key = "none"
    pictures: Pictures | None = None

    def check(self) -> None:
        """This captioner needs nothing."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]:
        return []
