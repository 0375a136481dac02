"""What a captioner is: accepted clips in, captions out, joined by `clip_id` and never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class CaptionRequest:
    """One accepted clip, and what is known of its source."""

    clip_id: str
    uri: str
    start_s: float  # presentation time
    end_s: float
    is_image: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # the source list's other columns


@dataclass(frozen=True)
class Caption:
    """One text for one clip. `kind`: sidecar, long, short, structured, rewritten."""

    clip_id: str
    captioner: str
    kind: str
    text: str
    model: str | None = None
    revision: str | None = None
    prompt_version: str | None = None


class Captioner(Protocol):
    """Turns clips into captions. A clip without a caption is simply not among the answers."""

    name: ClassVar[str]

    @property
    def key(self) -> str:
        """Changes when the captions would: what was captioned under another key is captioned again."""

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]: ...


class NoCaptions:
    """Captions are null: the clips train an unconditional model."""

    name: ClassVar[str] = "none"
    key = "none"

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption]:
        return []
