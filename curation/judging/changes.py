"""Labelled cuts and gradual transitions beside the boundaries of clips.

A dataset keeps clips, not cuts. Each edge of a scene loses `spans.trim_seconds`, so two clips with a gap
between them are of two scenes, and clips that follow each other without a gap are parts of one scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from curation.judging.places import Clip, Placed

CUT_FRAMES = 2  # how far a cut may lie outside of a gap
GRADUAL_FRAMES = 1  # how far a gap may lie outside of a gradual transition
_HELD_FRAMES = 2.5  # a label's ends are good to two frames
_ABUT_S = 1e-3


@dataclass(frozen=True)
class Spot:
    """A place in a source, in seconds since the file begins."""

    uri: str
    time_s: float
    what: str = ""


@dataclass
class Changes:
    """Counts over all sources with labelled cuts. `elsewhere` is None if it cannot be known."""

    sources: int = 0
    cuts: int = 0
    gradual: int = 0
    found: int = 0
    gradual_found: int = 0
    boundaries: int = 0
    ignored: int = 0  # boundaries in ambiguous ranges
    missed: list[Spot] = field(default_factory=list)
    gradual_missed: list[Spot] = field(default_factory=list)
    elsewhere: list[Spot] | None = field(default_factory=list)  # boundaries at no label
    inexact: list[str] = field(default_factory=list)  # sources whose frames have no known times
    accepted: int = 0  # accepted clips of these sources
    holding_cuts: list[Spot] = field(default_factory=list)  # accepted clips with a labelled cut inside
    holding_gradual: list[Spot] = field(default_factory=list)  # accepted clips with frames of a transition


def compare(sources: Iterable[Placed], *, trim_seconds: float, by_list: bool) -> Changes:
    """by_list: the clips are spans of a list, so that their boundaries say nothing of cuts."""
    result = Changes()
    if trim_seconds <= 0 or by_list:
        result.elsewhere = None
    for placed in sources:
        if placed.cuts is None or placed.failed:
            continue
        if not placed.exact:
            result.inexact.append(placed.uri)
            continue
        result.sources += 1
        result.cuts += len(placed.cuts)
        result.gradual += len(placed.gradual)
        _held(result, placed)
        if not by_list:
            _count(result, placed, gaps(placed.clips, trimmed=trim_seconds > 0))
    return result


def gaps(clips: Sequence[Clip], *, trimmed: bool) -> list[tuple[float, float]]:
    """From the end of a clip to the start of the next one, where a cut may lie in between."""
    pairs = ((a.end_s, b.start_s) for a, b in itertools.pairwise(clips))
    return [(end, start) for end, start in pairs if not trimmed or start - end > _ABUT_S]


def _count(result: Changes, placed: Placed, found: list[tuple[float, float]]) -> None:
    cuts = placed.cuts or []
    of_cut = matched(cuts, found, CUT_FRAMES * placed.frame_s + 1e-6)
    used = set(of_cut.values())
    result.boundaries += len(found)
    result.found += len(of_cut)
    result.missed += [_spot(placed, cut) for k, cut in enumerate(cuts) if k not in of_cut]
    slack = GRADUAL_FRAMES * placed.frame_s + 1e-6
    rest = [gap for k, gap in enumerate(found) if k not in used]
    for part in placed.gradual:
        touching = [gap for gap in rest if gap[1] >= part.first - slack and gap[0] <= part.end + slack]
        result.gradual_found += bool(touching)
        if not touching:
            result.gradual_missed.append(_spot(placed, part.first, part.reason))
    for low, high in rest:
        if any(high >= p.first - slack and low <= p.end + slack for p in placed.gradual):
            continue
        if any(high >= p.first - slack and low <= p.end + slack for p in placed.ambiguous):
            result.ignored += 1
        elif result.elsewhere is not None:
            result.elsewhere.append(_spot(placed, (low + high) / 2))


def matched(cuts: Sequence[float], found: Sequence[tuple[float, float]], slack: float) -> dict[int, int]:
    """Number of a cut -> number of its gap. A gap finds one cut at most; the nearest pairs come first."""
    near = [
        (abs(cut - (low + high) / 2), i, k)
        for i, cut in enumerate(cuts)
        for k, (low, high) in enumerate(found)
        if low - slack <= cut <= high + slack
    ]
    pairs: dict[int, int] = {}
    used: set[int] = set()
    for _, i, k in sorted(near):
        if i not in pairs and k not in used:
            pairs[i] = k
            used.add(k)
    return pairs


def _held(result: Changes, placed: Placed) -> None:
    """Count the accepted clips that hold a labelled cut, or frames of a gradual transition."""
    half = placed.frame_s / 2
    for clip in placed.clips:
        if clip.verdict is None or clip.verdict["status"] != "accepted":
            continue
        result.accepted += 1
        inside = [c for c in placed.cuts or () if clip.start_s + half < c < clip.end_s - half]
        if inside:
            at = ", ".join(f"{cut - placed.file_start_s:.2f} s" for cut in inside)
            result.holding_cuts.append(_spot(placed, clip.start_s, f"cut at {at}"))
        shared = [
            (min(p.end, clip.end_s) - max(p.first, clip.start_s), p.reason or "transition")
            for p in placed.gradual
        ]
        held = [(s, what) for s, what in shared if s > _HELD_FRAMES * placed.frame_s]
        if held:
            words = ", ".join(f"{round(s / placed.frame_s)} frames of a {what}" for s, what in held)
            result.holding_gradual.append(_spot(placed, clip.start_s, words))


def _spot(placed: Placed, time_s: float, what: str = "") -> Spot:
    return Spot(placed.uri, time_s - placed.file_start_s, what)
