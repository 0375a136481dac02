"""The part of the frames of a clip that show combs: `quality.combing`."""

from __future__ import annotations

from dataclasses import dataclass

import av

from curation.decode.pixels.fields import LEAST_LINES, Field, compare, fields_of

_PER_SECOND = 10  # pairs of neighbouring frames that are looked at


@dataclass(frozen=True)
class _Seen:
    start_s: float
    end_s: float  # the times of the two frames
    order: Field | None  # None: they show no combs


class Combs:
    """Takes every frame once (`offer`), and knows which pairs show combs that were not forgotten."""

    def __init__(self, *, is_image: bool):
        self._is_image = is_image
        self._before: tuple[float, av.VideoFrame] | None = None
        self._pairs: list[_Seen] = []

    def offer(self, time_s: float, frame: av.VideoFrame) -> None:
        if self._is_image or frame.height < LEAST_LINES:
            return
        before, self._before = self._before, (time_s, frame)
        # Which pairs are chosen depends on their times alone: a decode from another place chooses the same.
        if before is None or int(before[0] * _PER_SECOND) == int(time_s * _PER_SECOND):
            return
        pair = compare(fields_of(before[1]), fields_of(frame))
        self._pairs.append(_Seen(before[0], time_s, pair.order if pair.combed else None))

    def part(self, start_s: float, end_s: float) -> float:
        """The part of the pairs with `start_s` <= time < `end_s` that show combs, from 0 to 1.

        The frames of one clip have one field first. Patterns that move down may look like combs of either
        order in turn: such pairs count against each other.
        """
        pairs = [p for p in self._pairs if p.start_s >= start_s - 1e-6 and p.end_s < end_s - 1e-6]
        tops, bottoms = (sum(p.order == field for p in pairs) for field in ("top", "bottom"))
        return abs(tops - bottoms) / max(1, len(pairs))

    def forget(self, before_s: float) -> None:
        self._pairs = [p for p in self._pairs if p.start_s >= before_s - 1e-6]
