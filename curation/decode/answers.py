"""The answers of the decoding child, as types for the parent. Only this module checks their heads.

The bytes come from a process that parses foreign files and may have overwritten its own memory. The source
fails if a field of a head is missing or has another type, or if a message cannot be read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from curation.decode.pixels.fields import Kind
from curation.decode.pixels.frame import VideoInfo
from curation.sandbox.protocol import Message, SourceFailed

T = TypeVar("T")


@dataclass(frozen=True)
class ClipAnswer:
    """A candidate clip with the scores that need no model.

    jpegs: model-backed scorer -> the frames for this scorer.
    """

    clip_id: str
    start_s: float
    end_s: float
    frames: int
    fps: float | None  # None: a still image
    width: int
    height: int
    scores: dict[str, float | None]
    jpegs: dict[str, list[bytes]]
    thumbnail: bytes | None


@dataclass(frozen=True)
class SourceAnswer:
    """A source after all of its frames were decoded. message: the damage that a decoder skipped."""

    container: str
    codec: str
    width: int
    height: int
    fps: float | None
    is_vfr: bool
    file_start_s: float
    duration_s: float
    frames: int
    transfer: str | None
    fields: Kind | None
    clips: int
    seconds: float
    message: str | None


@dataclass(frozen=True)
class ScoresAnswer:
    """A committed clip that was scored again."""

    clip_id: str
    scores: dict[str, float | None]
    jpegs: dict[str, list[bytes]]


@dataclass(frozen=True)
class EncodedAnswer:
    clip_id: str
    width: int
    height: int
    fps: float | None
    frames: int
    duration_s: float
    mp4: bytes


@dataclass(frozen=True)
class UncutAnswer:
    """A span that could not be cut. transient: the same request may succeed a moment later."""

    clip_id: str
    stage: str
    error: str
    message: str
    transient: bool


@dataclass(frozen=True)
class Mark:
    """A frame at which two pieces are joined: its time in seconds, and a digest of its picture."""

    time_s: float
    digest: int


@dataclass(frozen=True)
class PieceAnswer:
    """The frames of a piece, as arrays with one number per frame.

    times_s: float64, seconds. stamps: int64, timestamps. values: see `ValueDetector.value_type`.
    """

    info: VideoInfo
    time_base: list[int]  # numerator, denominator
    before: Mark | None  # the frame before the first one
    last: Mark
    last_duration_s: float | None
    times_s: bytes
    stamps: bytes
    values: bytes


def measured(messages: Iterable[Message]) -> Iterator[ClipAnswer | SourceAnswer]:
    """Answers to `measure` and `score`. Raises `SourceFailed`."""
    for message in messages:
        if message.head["kind"] == "clip":
            jpegs = iter(message.parts)
            thumbnail = next(jpegs, None) if message.head.get("has_thumbnail") else None
            yield _made(
                ClipAnswer, {**message.head, "jpegs": _split(message, list(jpegs)), "thumbnail": thumbnail}
            )
        elif message.head["kind"] == "source":
            yield _made(SourceAnswer, message.head)


def rescored(messages: Iterable[Message]) -> Iterator[ScoresAnswer]:
    """Answers to `rescore`. Raises `SourceFailed`."""
    for message in messages:
        if message.head["kind"] == "scores":
            yield _made(ScoresAnswer, {**message.head, "jpegs": _split(message, message.parts)})


def cut(messages: Iterable[Message]) -> Iterator[EncodedAnswer | UncutAnswer]:
    """Answers to `cut`. Raises `SourceFailed`."""
    for message in messages:
        if message.head["kind"] == "clip":
            yield _made(EncodedAnswer, {**message.head, **_named(message, "mp4")})
        elif message.head["kind"] == "clip_failed":
            yield _made(UncutAnswer, message.head)


def looked(messages: Iterable[Message]) -> Iterator[PieceAnswer]:
    """The answer to `look`. Raises `SourceFailed`."""
    for message in messages:
        if message.head["kind"] == "piece":
            head = message.head
            before = head.get("before")
            nested = {
                "info": _made(VideoInfo, head.get("info")),
                "before": None if before is None else _made(Mark, before),
                "last": _made(Mark, head.get("last")),
            }
            arrays = _named(message, "times_s", "stamps", "values")
            yield _made(PieceAnswer, {**head, **nested, **arrays})


def probed(messages: Iterable[Message]) -> VideoInfo:
    """The answer to `probe`. Raises `SourceFailed`."""
    found = [_made(VideoInfo, m.head) for m in messages if m.head["kind"] == "info"]
    if len(found) != 1:
        raise _no_answer()
    return found[0]


@cache
def _fields(kind: Hashable) -> dict[str, TypeAdapter[Any]]:
    return {name: TypeAdapter(of) for name, of in get_type_hints(kind).items()}


def _made(kind: type[T], given: Any) -> T:
    try:
        fields = _fields(cast(Hashable, kind)).items()
        return kind(**{name: of.validate_python(given[name], strict=True) for name, of in fields})
    except (ValidationError, KeyError, TypeError):
        raise _no_answer() from None


def _split(message: Message, jpegs: list[bytes]) -> dict[str, list[bytes]]:
    """The JPEGs by the scorer that asked for them. The head gives the number of JPEGs for each scorer."""
    counts = message.head.get("jpegs")
    if not isinstance(counts, dict) or not all(type(n) is int and n >= 0 for n in counts.values()):
        raise _no_answer()
    if sum(counts.values()) != len(jpegs):
        raise _no_answer()
    rest = iter(jpegs)
    return {name: [next(rest) for _ in range(n)] for name, n in counts.items()}


def _named(message: Message, *names: str) -> dict[str, bytes]:
    if len(message.parts) != len(names):
        raise _no_answer()
    return dict(zip(names, message.parts, strict=True))


def _no_answer() -> SourceFailed:
    return SourceFailed("measure", "Crash", "the decoder sent an answer that is not valid", transient=True)
