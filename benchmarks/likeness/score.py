"""Found cuts and transitions against those that people labelled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.likeness.shots import Labels
from curation.decode.shots.base import Cut

SLACK = 2  # frames between a found cut and a labelled one
OVERLAP = 0.5  # of a found range and a labelled one: their common frames over all their frames


@dataclass
class Score:
    """Frame numbers, and ranges as (first, last)."""

    hits: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    touched: list[tuple[int, int]] = field(default_factory=list)  # labelled ranges with any finding in them
    found: list[tuple[int, int]] = field(default_factory=list)  # labelled ranges
    unfound: list[tuple[int, int]] = field(default_factory=list)
    false_ranges: list[tuple[int, int]] = field(default_factory=list)

    def __iadd__(self, other: Score) -> Score:
        for name in vars(self):
            getattr(self, name).extend(getattr(other, name))
        return self


def score(cuts: Sequence[Cut], labels: Labels, apart: float) -> Score:
    """apart: frames. Labelled cuts that are closer to the one before are neither missed nor false.

    A cut within a gradual transition (one frame of slack) is neither a hit nor false, and findings in ranges
    where people disagree are ignored.
    """
    hard = [c.index for c in cuts if not c.frames]
    ranges = [(c.index, c.index + c.frames - 1) for c in cuts if c.frames]
    wanted = [k for k, before in zip(labels.cuts, [-1e9, *labels.cuts], strict=False) if k - before >= apart]
    result = Score()
    for k in wanted:
        (result.hits if any(abs(c - k) <= SLACK for c in hard) else result.missed).append(k)
    for c in hard:
        near = any(abs(c - k) <= SLACK for k in labels.cuts)
        if not near and not _within(c, labels.gradual) and not _within(c, labels.ignored):
            result.false.append(c)
    for of in labels.gradual:
        if any(_within(c, [of]) for c in hard) or any(overlap(of, r) for r in ranges):
            result.touched.append(of)
        (result.found if any(overlap(of, r) >= OVERLAP for r in ranges) else result.unfound).append(of)
    for r in ranges:
        ignored = any(overlap(r, i) for i in labels.ignored)
        if not ignored and not any(overlap(r, of) >= OVERLAP for of in labels.gradual):
            result.false_ranges.append(r)
    return result


def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Common frames over all frames of two ranges."""
    common = min(a[1], b[1]) - max(a[0], b[0]) + 1
    return max(0, common) / (max(a[1], b[1]) - min(a[0], b[0]) + 1)


def _within(frame: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first - 1 <= frame <= last + 1 for first, last in ranges)
