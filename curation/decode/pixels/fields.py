"""Fields: the two halves of a frame, its even lines (top) and odd lines (bottom), and what they say.

Of interlaced video the two fields of a frame show two moments, and edges of what moves are combs. Of
telecined film each picture lies in two or three fields, so that some frames hold fields of two pictures.

`compare` looks at two neighbouring frames where both fields have moved. It measures how much the lines of one
field stand out from their neighbours of the other field, in the frames as they are, and in the two frames
that are woven with one field of each. Where both frames are progressive, a strange field stands out more
than the own one, and equally in both weaves. Of interlaced frames one of the strange fields is nearer in time
than the other, and as near as the own one. Fine stripes, bricks and noise stand out in all of them alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import av
import cv2
import numpy as np

MOVED_LEVELS = 10  # of 255: a pixel that changes by more has moved
MARGIN_LEVELS = 4  # by which a pixel stands out more in one weave than in the other, to count
SEEN_COLUMNS = 240  # about so many columns of the picture are looked at
LEAST_LINES = 32  # of a picture whose fields are looked at
LEAST_MOVED = 0.002  # of the seen pixels: fewer are no evidence
APART = 1.3  # how many more pixels must say that one field is the first than that the other one is
LEAST_SHARE = 0.2  # of the moved pixels must say so
LEAST_SAYING = 40  # pixels must say so
DEVIATIONS = 4  # by which they outnumber the others, as if each pixel said its word by chance
COMBS = 0.25  # how much the own fields stand out, of how much the strange ones do: less is not seen
STRANGE = 0.8  # the own fields of progressive frames stand out by less than this part of strange ones
WHOLE = (
    2.5  # where own fields stand out by so much more than strange ones, the strange ones are the right ones
)
REPEATED = 0.3  # a field is repeated if at most this part of the pixels move that move in the other one

_PLANAR = ("gray", "nv12", *(f"yuv{j}{n}p" for j in ("", "j") for n in (410, 411, 420, 422, 440, 444)))

Kind = Literal["progressive", "interlaced", "telecined"]
Field = Literal["top", "bottom"]


@dataclass(frozen=True)
class Fields:
    """The fields of one frame: some columns of its luma, as (H/2, W) uint8."""

    top: np.ndarray
    bottom: np.ndarray


def fields_of(frame: av.VideoFrame) -> Fields:
    """The fields of a decoded frame, by its luma."""
    luma = _luma(frame)
    height, width = luma.shape
    step = max(1, width // SEEN_COLUMNS)
    seen = luma[: height // 2 * 2, step // 2 :: step]
    if seen.dtype != np.uint8:
        seen = (seen >> (frame.format.components[0].bits - 8)).astype(np.uint8)
    return Fields(np.ascontiguousarray(seen[0::2]), np.ascontiguousarray(seen[1::2]))


def _luma(frame: av.VideoFrame) -> np.ndarray:
    """(H, W) of the first plane, with 8 bits or more, without a copy if it is planar."""
    name = frame.format.name
    wide = name.startswith("yuv") and name.endswith("le")
    if not wide and name not in _PLANAR:
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    data = np.frombuffer(cast(Any, plane), "<u2" if wide else np.uint8)
    return data.reshape(plane.height, plane.line_size // data.itemsize)[:, : plane.width]


@dataclass(frozen=True)
class Pair:
    """Two neighbouring frames, by the pixels that have moved in both fields.

    count: their number. moved: their part of the seen pixels.
    top, bottom: the part of them that says that the top field, or the bottom field, is the earlier one: where
        the weave of what would then be neighbours in time stands out less than the other one.
    combs: how much these pixels stand out in the frames themselves, of how much they do in the worse weave.
    strange: how much the own fields stand out, of how much strange ones do.
    repeats: the field that both frames share: "top", "bottom", "both" or None.
    """

    count: int
    moved: float
    top: float
    bottom: float
    combs: float
    strange: float
    repeats: Field | Literal["both"] | None

    @property
    def tells(self) -> bool:
        """Has enough moved to say something?"""
        return self.repeats is None and self.moved >= LEAST_MOVED

    @property
    def order(self) -> Field | None:
        """The field that comes first: "top", "bottom". None: the frames do not say that one does."""
        low, high = sorted((self.top, self.bottom))
        if not self.tells or high < max(LEAST_SHARE, APART * low) or high * self.count < LEAST_SAYING:
            return None
        if (high - low) * self.count < DEVIATIONS * ((high + low) * self.count) ** 0.5:
            return None
        return "top" if self.top > self.bottom else "bottom"

    @property
    def combed(self) -> bool:
        """Do both frames show combs?"""
        return self.order is not None and self.combs > COMBS

    @property
    def progressive(self) -> bool:
        """Do both frames show that their fields are of one moment?"""
        return self.tells and self.order is None and self.strange < STRANGE


def compare(one: Fields, two: Fields) -> Pair:
    """The pair of two neighbouring frames of one size."""
    tops, bottoms = _moved(one.top, two.top), _moved(one.bottom, two.bottom)
    repeats = _repeats(cv2.countNonZero(tops), cv2.countNonZero(bottoms), tops.size)
    # A line of one field counts where it has moved together with a neighbour of the other field.
    below = cv2.bitwise_and(bottoms[:-1], cv2.max(tops[:-1], tops[1:]))
    above = cv2.bitwise_and(tops[1:], cv2.max(bottoms[:-1], bottoms[1:]))
    mask = np.concatenate([below, above])
    count = cv2.countNonZero(mask)
    moved = count / mask.size
    if repeats or moved < LEAST_MOVED:
        return Pair(count, moved, 0, 0, 0, 0, repeats)

    def out(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.concatenate([_out(bottom[:-1], top[:-1], top[1:]), _out(top[1:], bottom[:-1], bottom[1:])])

    early, late = out(two.top, one.bottom), out(one.top, two.bottom)
    own = cv2.max(out(one.top, one.bottom), out(two.top, two.bottom))
    top, bottom = _more(late, early, mask), _more(early, late, mask)
    tops_say, bottoms_say = cv2.countNonZero(top), cv2.countNonZero(bottom)
    says, worse = (top, late) if tops_say > bottoms_say else (bottom, early)
    return Pair(
        count=count,
        moved=moved,
        top=tops_say / count,
        bottom=bottoms_say / count,
        combs=_sum(own, says) / max(1.0, _sum(worse, says)),
        strange=_sum(own, mask) / max(1.0, min(_sum(early, mask), _sum(late, mask))),
        repeats=None,
    )


def _moved(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return cv2.threshold(cv2.absdiff(one, two), MOVED_LEVELS, 255, cv2.THRESH_BINARY)[1]


def _out(here: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """How much each pixel is darker than both, or lighter than both, of the pixels above and below it."""
    return cv2.add(cv2.subtract(here, cv2.max(above, below)), cv2.subtract(cv2.min(above, below), here))


def _more(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    more = cv2.threshold(cv2.subtract(one, other), MARGIN_LEVELS, 255, cv2.THRESH_BINARY)[1]
    return cv2.bitwise_and(more, mask)


def _sum(values: np.ndarray, mask: np.ndarray) -> float:
    return cv2.mean(values, mask)[0] * cv2.countNonZero(mask)


def _repeats(tops: int, bottoms: int, size: int) -> Field | Literal["both"] | None:
    if max(tops, bottoms) < LEAST_MOVED * size:
        return "both"
    if tops < REPEATED * bottoms:
        return "top"
    return "bottom" if bottoms < REPEATED * tops else None


# ---- of a source


@dataclass(frozen=True)
class Found:
    """What a source is, and which of its fields comes first.

    matched: of an interlaced source, the combed frames hold fields of two progressive pictures, whose other
        fields are in the neighbouring frames. So the pictures can be put together again.
    """

    kind: Kind
    first: Field = "top"
    matched: bool = False


def decide(runs: Sequence[Sequence[Pair]], *, flagged: bool) -> Found:
    """What a source is, from the pairs of neighbouring frames of some of its places.

    flagged: the stream says that its frames are interlaced. The frames decide: progressive pictures are often
    flagged, and woven ones often are not. The flag only lowers the bar.
    """
    moving = [sum(pair.repeats != "both" for pair in run) for run in runs]
    cadences = [cadence(run) for run in runs]
    firsts = [first for first in cadences if first]
    film = sum(n for n, first in zip(moving, cadences, strict=True) if first)
    if film >= FILM_SHARE * sum(moving) and film:
        return Found("telecined", max(firsts, key=firsts.count))
    telling = [pair for run in runs for pair in run if pair.tells]
    combed = Counter(pair.order for pair in telling if pair.combed)
    tops, bottoms = combed["top"], combed["bottom"]
    least, share = (3, 0.03) if flagged else (5, 0.1)
    if abs(tops - bottoms) >= max(least, share * len(telling)):
        whole = sum(pair.strange > WHOLE for pair in telling if pair.combed)
        matched = whole >= FILM_SHARE * (tops + bottoms)
        return Found("interlaced", "top" if tops > bottoms else "bottom", matched)
    return Found("progressive")


FILM_SHARE = 0.8  # of the moving pairs of a telecined source are within the cadence
_CYCLE = 5  # frames that hold four pictures


def cadence(run: Sequence[Pair]) -> Field | None:
    """The first field of a run of telecined film. None: the run does not have its cadence.

    Of each five pairs one repeats the top field and one the bottom field. The field that comes first is
    repeated first: with 2:3 the other one follows two pairs later, with 2:3:3:2 one pair later.
    """
    seen = [Counter(pair.repeats or "none" for pair in run[phase::_CYCLE]) for phase in range(_CYCLE)]
    top, bottom = (max(range(_CYCLE), key=lambda p: seen[p][field]) for field in ("top", "bottom"))
    hits = seen[top]["top"] + seen[bottom]["bottom"]
    moving = [sum(n for kind, n in of.items() if kind != "both") for of in seen]
    others = [p for p in range(_CYCLE) if p not in (top, bottom)]
    strays = sum(seen[p]["top"] + seen[p]["bottom"] for p in others)
    if top == bottom or min(seen[top]["top"], seen[bottom]["bottom"]) < 2:
        return None
    if hits < 0.8 * (moving[top] + moving[bottom]) or strays > 0.3 * sum(moving[p] for p in others):
        return None
    return "top" if (bottom - top) % _CYCLE in (1, 2) else "bottom"
