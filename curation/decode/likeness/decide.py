"""Probabilities become cuts and ranges of frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LONGEST = 256  # frames of a range; a longer one is divided
_NEAR = 4  # frames: of two cuts nearer than this, the more probable one counts
_GAP = 2  # frames of a gradual transition that may be improbable
_SHORTEST = 3  # frames of a gradual transition
_QUIET = 9  # more frames than this without a probable change: what is before and after is decided apart


@dataclass(frozen=True)
class Change:
    """The frames `first` to `last`, which show two shots. A hard cut has none: `last` is `first` - 1."""

    first: int
    last: int


def changes(found: np.ndarray, hard: float, gradual: float) -> list[Change]:
    """Changes in order, without overlap. found: (n, 2), see `Network`; hard, gradual: thresholds."""
    cuts = _cuts(found[:, 0], hard)
    ranges = [part for a, b in _ranges(found[:, 1] > gradual) for part in _apart(a, b, cuts)]
    both = [Change(k, k - 1) for k in cuts] + [Change(a, b) for a, b in ranges]
    return sorted(both, key=lambda change: (change.first, change.last))


def _cuts(probable: np.ndarray, threshold: float) -> list[int]:
    cuts: list[int] = []
    for k in np.flatnonzero(probable > threshold).tolist():
        around = probable[max(0, k - _NEAR) : k + _NEAR + 1]
        if probable[k] == around.max() and (not cuts or k - cuts[-1] > _NEAR):
            cuts.append(k)
    return cuts


def _ranges(inside: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of each run of frames that are inside, over gaps of at most `_GAP` frames."""
    frames = np.flatnonzero(inside)
    if not len(frames):
        return
    for run in np.split(frames, np.flatnonzero(np.diff(frames) > _GAP + 1) + 1):
        if run[-1] - run[0] + 1 >= _SHORTEST:
            yield int(run[0]), int(run[-1])


def _apart(first: int, last: int, cuts: list[int]) -> Iterator[tuple[int, int]]:
    """The parts of a range between the cuts within it."""
    bounds = [first, *(k for k in cuts if first < k <= last), last + 1]
    for a, b in itertools.pairwise(bounds):
        if b - a >= _SHORTEST:
            yield a, b - 1


class Decider:
    """Decides while probabilities come in. The result is that of `changes` over all frames at once."""

    def __init__(self, hard: float, gradual: float):
        self._hard, self._gradual = hard, gradual
        self._open = np.empty((0, 2), np.float32)  # probabilities of the frames that are not decided yet
        self.first = 0  # the number of the first of them

    def push(self, found: np.ndarray) -> list[Change]:
        """Add the probabilities (n, 2) of the next frames. Returns the changes that are certain by now."""
        if self.first == 0 and not len(self._open) and len(found):
            found = found.copy()
            found[0, 0] = 0  # nothing comes before the first frame
        self._open = np.concatenate([self._open, found])
        busy = np.flatnonzero((self._open > (self._hard, self._gradual)).any(1))
        before, after = np.append(-_QUIET - 1, busy), np.append(busy, len(self._open))
        end = int(after[after - before > _QUIET].max(initial=0))  # of the last quiet stretch
        if len(self._open) - end > LONGEST:
            end = len(self._open)
        return self._decide(end)

    def finish(self) -> list[Change]:
        """The changes of the frames that are left."""
        return self._decide(len(self._open))

    def _decide(self, end: int) -> list[Change]:
        found = changes(self._open[:end], self._hard, self._gradual)
        first, self.first, self._open = self.first, self.first + end, self._open[end:]
        return [Change(c.first + first, c.last + first) for c in found]
