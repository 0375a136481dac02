"""The driver's side of long sources: it chooses the sources, plans their pieces and joins the pieces.

`segments.look` returns a value for each frame. From these values `Long` makes the cuts and the spans in one
process, with the same code that a whole source uses.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import numpy as np

from curation.config.schema import Config
from curation.decode.measure import source_row
from curation.decode.pixels.frame import VideoInfo
from curation.decode.sampling import make_ticks, samplings_of
from curation.decode.segments import NotInPieces
from curation.decode.shots.base import ValueDetector
from curation.decode.shots.scenes import Scenes, detector_of, frame_rate, is_vfr, shown_s
from curation.decode.shots.spans import Span
from curation.sources.spans import listed_spans
from curation.store.rows import Decoded, named_source, unmeasured
from curation.tasks.look import LookRow, LookTask, MarkRow, PieceRow
from curation.tasks.measure import GroupDone, GroupTask, MeasuredSource, MeasureTask, SourceTask, SpanTask

_DECIDES_BY_VALUES = ("similarity", "content", "adaptive", "none")
_WARM_UP_SECONDS = 2.0  # before a span: longer than the step of any grid, and longer than any pair


def pick(sizes_bytes: Mapping[str, int], workers: int, config: Config) -> set[str]:
    """The ids of the sources that are too large to be measured by one worker.

    One worker would take longer for such a source than all workers together take to decode all sources twice.
    sizes_bytes: source_id -> size.
    """
    if config.run.segment_seconds is None or config.shots.detector not in _DECIDES_BY_VALUES:
        return set()
    fair_bytes = sum(sizes_bytes.values()) / max(1, workers)
    return {id_ for id_, size in sizes_bytes.items() if size > 2 * fair_bytes}


def set_apart(
    parts: Sequence[MeasureTask], workers: int, config: Config
) -> tuple[list[MeasureTask], dict[str, Long]]:
    """(the parts without their long sources, the long sources by source_id)."""
    sources = {part["part"]: part["sources"] for part in parts}
    new = [s for of_part in sources.values() for s in of_part if not s["rescore"]]
    if config.spans.by == "list":  # pieces are joined by their shots
        new = [s for s in new if not listed_spans(s["extra"])]
    chosen = pick({s["source_id"]: s["bytes"] or 0 for s in new}, workers, config)
    if not chosen:
        return list(parts), {}
    left: list[MeasureTask] = []
    long: dict[str, Long] = {}
    for part, of_part in sources.items():
        others = [s for s in of_part if s["source_id"] not in chosen]
        long |= {s["source_id"]: Long(part, s) for s in of_part if s["source_id"] in chosen}
        if others:
            left.append({"part": part, "sources": others})
    return left, long


def plan(info: VideoInfo, segment_seconds: float) -> list[tuple[float | None, float | None]]:
    """Pieces of nearly equal length, as (start, end) in seconds. A piece does not contain its end.

    None as a start means from the first frame, and None as an end means to the last frame.
    Raises `NotInPieces` if the source is too short for two pieces.
    """
    n = math.ceil((info.declared_duration_s or 0) / segment_seconds - 1e-6)
    if n < 2 or info.is_image:
        raise NotInPieces(f"it says that it is {info.declared_duration_s} s long")
    length_s = cast(float, info.declared_duration_s) / n
    bounds = [info.start_s + length_s * k for k in range(1, n)]
    return list(zip([None, *bounds], [*bounds, None], strict=True))


# ---- in one process


@dataclass(frozen=True)
class Piece:
    """The result of `look` for one piece (`answers.PieceAnswer`)."""

    info: VideoInfo
    time_base: Fraction
    before: MarkRow | None
    last: MarkRow
    last_duration_s: float | None
    times_s: np.ndarray
    stamps: np.ndarray
    values: bytes  # for each frame one of `ValueDetector.value_type`

    @classmethod
    def of(cls, row: PieceRow) -> Piece:
        return cls(
            VideoInfo(**row["info"]),
            Fraction(*row["time_base"]),
            row["before"],
            row["last"],
            row["last_duration_s"],
            np.frombuffer(row["times_s"], "f8"),
            np.frombuffer(row["stamps"], "i8"),
            row["values"],
        )


@dataclass
class Group:
    """Spans that one worker scores in one decode, and the time where the decode starts."""

    spans: list[Span] = field(default_factory=list)
    from_s: float | None = None  # null: from the start
    at: dict[str, float | None] = field(default_factory=dict)

    def task(self, number: int) -> GroupTask:
        spans: list[SpanTask] = [
            {"start_s": s.start_s, "end_s": s.end_s, "frames": s.frames} for s in self.spans
        ]
        return {"number": number, "spans": spans, "from_s": self.from_s, "at": self.at}


def join(pieces: Sequence[Piece], config: Config, group_seconds: float) -> tuple[Decoded, list[Group]]:
    """(the decoded columns of the source, groups of its spans), from all pieces in order.

    Raises `NotInPieces` if two neighbouring pieces do not join.
    """
    for one, other in itertools.pairwise(pieces):
        # Two decoders that started at different places must give the same picture at the join.
        if one.last != other.before or one.time_base != other.time_base:
            raise NotInPieces(f"its pieces do not join at {other.times_s[0]:.3f} s")
    info = pieces[0].info
    times = [float(t) for piece in pieces for t in piece.times_s]
    gaps_ms = Counter(round((b - a) * 1000) for a, b in itertools.pairwise(times))
    fps = frame_rate(times[0], times[-1], len(times), info.fps)
    end_s = times[-1] + shown_s(pieces[-1].last_duration_s, fps, gaps_ms)
    spans = _spans(pieces, config, info, end_s)
    row = source_row(info, fps, end_s - times[0], len(times), is_vfr=is_vfr(gaps_ms))
    return row, _groups(spans, times, config, info, group_seconds)


def _spans(pieces: Sequence[Piece], config: Config, info: VideoInfo, end_s: float) -> list[Span]:
    detector = cast(ValueDetector, detector_of(config, info.fps))
    scenes = Scenes(config, detector.lag_s, detector.lag_frames)
    spans: list[Span] = []
    for piece in pieces:
        values = np.frombuffer(piece.values, detector.value_type)
        of_frames = zip(piece.times_s.tolist(), piece.stamps.tolist(), values, strict=True)
        for time_s, pts, value in of_frames:
            spans += scenes.push(time_s, detector.decide(time_s, pts, piece.time_base, value))
    return spans + scenes.finish(end_s, detector.finish())


def _groups(
    spans: Sequence[Span], times_s: Sequence[float], config: Config, info: VideoInfo, group_seconds: float
) -> list[Group]:
    """Spans in groups of about `group_seconds`, each with the positions of the grids at its first frame."""
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
    """One long source, and its progress through `look`, `join` and `score`."""

    def __init__(self, part: str, source: SourceTask):
        self.part = part
        self.source = source
        self._pieces: dict[int, Piece | None] = {}  # None: a worker has not looked at the piece yet
        self._decoded: Decoded | None = None
        self._clips = 0
        self._groups_left: set[int] = set()
        self._failed = False
        self._seconds = 0.0  # seconds of work

    @property
    def uri(self) -> str:
        return self.source["uri"]

    def looks(self, info: VideoInfo, config: Config) -> list[LookTask]:
        """The tasks to look at each piece. Raises `NotInPieces`."""
        assert config.run.segment_seconds is not None
        bounds = plan(info, config.run.segment_seconds)
        self._pieces = dict.fromkeys(range(len(bounds)))
        id_ = self.source["source_id"]
        return [
            {"source_id": id_, "uri": self.uri, "index": i, "from_s": a, "until_s": b}
            for i, (a, b) in enumerate(bounds)
        ]

    def looked(self, found: LookRow, config: Config) -> list[MeasureTask] | None:
        """Add one piece, in any order. After the last piece, returns the tasks to score; before that, None.

        Raises `NotInPieces`.
        """
        index = found["index"]
        if index not in self._pieces or self._pieces[index] is not None:
            return None  # a task of a killed worker may give its result twice
        self._seconds += found["spent"]["seconds"]
        if found["piece"] is None:
            self._pieces = {}
            raise NotInPieces(found["error"])
        self._pieces[index] = Piece.of(found["piece"])
        if any(piece is None for piece in self._pieces.values()):
            return None
        assert config.run.segment_seconds is not None
        pieces = [piece for _, piece in sorted(self._pieces.items()) if piece is not None]
        self._pieces = {}  # frees the arrays of all frames before the next source needs memory
        self._decoded, groups = join(pieces, config, config.run.segment_seconds / 2)
        self._clips = sum(len(group.spans) for group in groups)
        self._groups_left = set(range(len(groups)))
        return [
            {"part": self.part, "sources": [{**self.source, "group": group.task(number)}]}
            for number, group in enumerate(groups)
        ]

    def scored(self, done: GroupDone) -> bool | None:
        """Add one group. After the last group, returns whether all groups succeeded; before that, None."""
        if done["number"] not in self._groups_left:
            return None
        self._groups_left.remove(done["number"])
        self._seconds += done["seconds"]
        self._failed |= done["error"] is not None
        return None if self._groups_left else not self._failed

    def measured(self, config: Config) -> MeasuredSource:
        """The row of the source, after all groups are scored."""
        assert self._decoded is not None
        row = unmeasured(
            named_source(self.source),
            "measured",
            clips=self._clips,
            seconds=self._seconds,
            config_hash=config.spans_hash(self._decoded["transfer"]),
        )
        return {**row, **self._decoded, "attempt": 0, "rescored": False}

    def whole(self) -> MeasureTask:
        """The task to measure the source as a whole. Clips that came in groups no longer count."""
        return {"part": self.part, "sources": [{**self.source, "attempts_before": 1}]}
