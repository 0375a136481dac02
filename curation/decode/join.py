"""A long source in pieces, as the driver sees it: which sources, which pieces, and how they are joined.

From what `segments.look` found of each frame, `Long` makes the cuts and the spans in one place, by the very
code that a whole source goes through.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, cast

import numpy as np

from curation.config.schema import Config
from curation.decode.measure import source_row
from curation.decode.sampling import make_ticks, samplings_of
from curation.decode.scenes import Scenes, detector_of, frame_rate, is_vfr, shown_s
from curation.decode.segments import NotInPieces
from curation.decode.shots import ValueDetector
from curation.decode.spans import Span
from curation.decode.video import VideoInfo

Row = dict[str, Any]
_DECIDES_BY_VALUES = ("content", "adaptive", "none")
_WARM_UP_SECONDS = 2.0  # before a span: more than the step of any grid, and than a pair lasts


def pick(sizes_bytes: Mapping[str, int], workers: int, config: Config) -> set[str]:
    """The sources (by id, with their sizes) that would each take longer alone than all of them do when all
    workers share two decodes of everything."""
    if config.run.segment_seconds is None or config.shots.detector not in _DECIDES_BY_VALUES:
        return set()
    fair_bytes = sum(sizes_bytes.values()) / max(1, workers)
    return {id_ for id_, size in sizes_bytes.items() if size > 2 * fair_bytes}


def set_apart(parts: Sequence[Row], workers: int, config: Config) -> tuple[list[Row], dict[str, Long]]:
    """The parts without their long sources, and these by id."""
    sources = {part["part"]: json.loads(part["sources"]) for part in parts}
    new = [s for of_part in sources.values() for s in of_part if not s["rescore"]]
    chosen = pick({s["source_id"]: s["bytes"] or 0 for s in new}, workers, config)
    if not chosen:
        return list(parts), {}
    left = []
    long: dict[str, Long] = {}
    for part, of_part in sources.items():
        others = [s for s in of_part if s["source_id"] not in chosen]
        long |= {s["source_id"]: Long(part, s) for s in of_part if s["source_id"] in chosen}
        if others:
            left.append(in_part(part, others))
    return left, long


def in_part(part: str, sources: Sequence[Row]) -> Row:
    """What `workers.Measurer` takes: sources of one part."""
    return {"part": part, "sources": json.dumps(sources)}


def plan(info: VideoInfo, segment_seconds: float) -> list[tuple[float | None, float | None]]:
    """Pieces of near-equal length, [from, until) in seconds; null: from the first frame, to the last one.
    Raises `NotInPieces` when the source is too short for several."""
    n = math.ceil((info.declared_duration_s or 0) / segment_seconds - 1e-6)
    if n < 2 or info.is_image:
        raise NotInPieces(f"it says that it is {info.declared_duration_s} s long")
    length_s = cast(float, info.declared_duration_s) / n
    bounds = [info.start_s + length_s * k for k in range(1, n)]
    return list(zip([None, *bounds], [*bounds, None], strict=True))


# ---- in one place


@dataclass(frozen=True)
class Piece:
    """What `look` found."""

    head: dict[str, Any]
    times_s: np.ndarray
    stamps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, head: dict[str, Any], parts: Sequence[bytes]) -> Piece:
        return cls(head, *(np.frombuffer(p, t) for p, t in zip(parts, ("f8", "i8", "f8"), strict=True)))


@dataclass
class Group:
    """Spans that one worker scores in one go, and from where it must decode."""

    spans: list[Span] = field(default_factory=list)
    from_s: float | None = None  # null: from the start
    at: dict[str, float | None] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        return {"spans": [asdict(s) for s in self.spans], "from_s": self.from_s, "at": self.at}


def join(pieces: Sequence[Piece], config: Config, group_seconds: float) -> tuple[dict[str, Any], list[Group]]:
    """(the source's row, groups of its spans) from all pieces in order. Raises `NotInPieces`."""
    for one, other in itertools.pairwise(pieces):
        # A decoder that comes from elsewhere must have arrived at the same picture.
        if one.head["last"] != other.head["before"] or one.head["time_base"] != other.head["time_base"]:
            raise NotInPieces(f"its pieces do not join at {other.times_s[0]:.3f} s")
    info = VideoInfo(**pieces[0].head["info"])
    times = [float(t) for piece in pieces for t in piece.times_s]
    gaps_ms = Counter(round((b - a) * 1000) for a, b in itertools.pairwise(times))
    fps = frame_rate(times[0], times[-1], len(times), info.fps)
    end_s = times[-1] + shown_s(pieces[-1].head["last_duration_s"], fps, gaps_ms)
    spans = _spans(pieces, config, info, end_s)
    row = source_row(info, fps, end_s - times[0], len(times), is_vfr=is_vfr(gaps_ms))
    return {**row, "clips": len(spans)}, _groups(spans, times, config, info, group_seconds)


def _spans(pieces: Sequence[Piece], config: Config, info: VideoInfo, end_s: float) -> list[Span]:
    detector = cast(ValueDetector, detector_of(config, info.fps))
    scenes = Scenes(config, detector.lag_s, detector.lag_frames)
    spans: list[Span] = []
    for piece in pieces:
        base = Fraction(*piece.head["time_base"])
        of_frames = zip(piece.times_s.tolist(), piece.stamps.tolist(), piece.values.tolist(), strict=True)
        for time_s, pts, value in of_frames:
            spans += scenes.push(time_s, detector.decide(time_s, pts, base, value))
    return spans + scenes.finish(end_s, detector.finish())


def _groups(
    spans: Sequence[Span], times_s: Sequence[float], config: Config, info: VideoInfo, group_seconds: float
) -> list[Group]:
    """Spans in groups of about `group_seconds`, each with where the grids stand at its first frame."""
    groups: list[Group] = []
    for span in spans:
        if not groups or span.end_s - groups[-1].spans[0].start_s > group_seconds:
            groups.append(Group())
        groups[-1].spans.append(span)
    local = {n: s.sampling for n, s in config.local_scorers.items() if "video" in s.applies_to}
    remote = {n: s.sampling for n, s in config.model_scorers.items() if "video" in s.applies_to}
    ticks = make_ticks(samplings_of(local, remote), config.spans.min_seconds)
    waiting = [g for g in groups[1:] if g.spans[0].start_s - _WARM_UP_SECONDS > times_s[0]]
    for time_s in times_s:
        if not waiting:
            break
        while waiting and time_s >= waiting[0].spans[0].start_s - _WARM_UP_SECONDS:
            group = waiting.pop(0)
            group.from_s, group.at = time_s, {name: t.next_s for name, t in ticks.items()}
        for tick in ticks.values():
            tick.pass_by(time_s)
    return groups


class Long:
    """One source on its way through `look`, `join` and `score`."""

    def __init__(self, part: str, source: Row):
        self.part = part
        self._source = source
        self._pieces: dict[int, Piece | None] = {}  # null: not looked at yet
        self._groups_left: set[int] = set()
        self._failed = False
        self._seconds = 0.0  # of work
        self.row: Row = {}

    @property
    def uri(self) -> str:
        return str(self._source["uri"])

    def looks(self, info: VideoInfo, config: Config) -> list[Row]:
        """What is to be looked at. Raises `NotInPieces`."""
        assert config.run.segment_seconds is not None
        bounds = plan(info, config.run.segment_seconds)
        self._pieces = dict.fromkeys(range(len(bounds)))
        fields = {"source_id": self._source["source_id"], "uri": self.uri}
        return [{**fields, "index": i, "from_s": a, "until_s": b} for i, (a, b) in enumerate(bounds)]

    def looked(self, found: Row, config: Config) -> list[Row] | None:
        """A row of `workers.LOOKS`. With the last one, in whatever order they come, returns what is to be
        scored. Raises `NotInPieces`."""
        index = found["index"]
        if self._pieces.get(index, found) is not None:  # what a killed worker had in hand may come twice
            return None
        self._seconds += json.loads(found["spent"])["seconds"]
        if found["error"]:
            self._pieces = {}
            raise NotInPieces(found["error"])
        self._pieces[index] = Piece.of(json.loads(found["head"]), found["arrays"])
        if any(piece is None for piece in self._pieces.values()):
            return None
        assert config.run.segment_seconds is not None
        pieces = [piece for _, piece in sorted(self._pieces.items()) if piece is not None]
        self._pieces = {}  # numbers for every frame: gone before those of the next source come
        self.row, groups = join(pieces, config, config.run.segment_seconds / 2)
        self._groups_left = set(range(len(groups)))
        return [
            in_part(self.part, [{**self._source, "group": group.request(), "number": k}])
            for k, group in enumerate(groups)
        ]

    def scored(self, done: Row) -> bool | None:
        """A group. With the last one: were all without a fault?"""
        if done["number"] not in self._groups_left:
            return None
        self._groups_left.remove(done["number"])
        self._seconds += done["seconds"]
        self._failed |= done["error"] is not None
        return None if self._groups_left else not self._failed

    def measured(self) -> Row:
        """Of the source, when all is scored."""
        return {"status": "measured", **self.row, "seconds": self._seconds, "message": None}

    def whole(self) -> Row:
        """To be measured in one piece. Clips that came in groups do not count then."""
        return in_part(self.part, [{**self._source, "attempts_before": 1}])

    @property
    def source(self) -> Row:
        return self._source
