"""What became of each labelled shot in a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from curation.judging.labels import Stretch, reasons_of
from curation.judging.places import Clip, Placed, Places

NO_CLIP, UNJUDGED = "no clip", "not judged yet"


@dataclass(frozen=True)
class Outcome:
    """One labelled shot: the curator's judgement, and the dataset's verdict on the clip that decides.

    start_s and end_s count from where the file begins, as players do.
    """

    uri: str
    start_s: float
    end_s: float
    keep: bool
    reason: str  # the curator's
    accepted: bool
    rule: str | None  # the column that rejects the clip, or why there is no accepted clip
    message: str | None
    clip_id: str | None

    @property
    def reasons(self) -> list[str]:
        return reasons_of(self.reason)


@dataclass(frozen=True)
class LeftOut:
    """Numbers of shots that are not compared."""

    short: int = 0
    unjudged: int = 0


def common_s(a: Stretch, clip: Clip) -> float:
    """The seconds that a shot and a clip share."""
    return min(a.end, clip.end_s) - max(a.first, clip.start_s)


def belongs(shot: Stretch, clip: Clip) -> bool:
    """Do the clip and the shot share at least half of the shorter one?"""
    shorter = min(shot.end - shot.first, clip.end_s - clip.start_s)
    return common_s(shot, clip) >= shorter / 2 - 1e-6 and common_s(shot, clip) >= 0


def is_short(shot: Stretch, min_seconds: float) -> bool:
    """Is the shot left out? A still image has no length, and is not."""
    return 0 < shot.end - shot.first < min_seconds - 1e-6


def outcomes(places: Places, min_seconds: float) -> tuple[list[Outcome], LeftOut]:
    """The outcome of each judged shot of at least `min_seconds`, in the order of the labels."""
    found, short, unjudged = [], 0, 0
    for placed, shot, clips in _labelled(places):
        if shot.keep is None:
            unjudged += 1
        elif is_short(shot, min_seconds):
            short += 1
        else:
            found.append(_outcome(placed, shot, clips))
    return found, LeftOut(short, unjudged)


def _labelled(places: Places) -> Iterator[tuple[Placed, Stretch, Sequence[Clip]]]:
    for placed in places.sources:
        for shot in placed.shots:
            yield placed, shot, placed.clips
    for placed, clip, label in places.clips:
        yield placed, Stretch(clip.start_s, clip.end_s, label.keep, label.reason), [clip]


def _outcome(placed: Placed, shot: Stretch, clips: Sequence[Clip]) -> Outcome:
    accepted = [c for c in clips if _status(c) == "accepted" and belongs(shot, c)]
    others = [c for c in clips if _status(c) != "accepted"]
    touching = [c for c in others if belongs(shot, c)] or [c for c in others if common_s(shot, c) > 0]
    deciding = max(accepted or touching, key=lambda c: common_s(shot, c), default=None)
    rule, message = (None, None) if accepted else _why_not(placed, deciding)
    return Outcome(
        placed.uri,
        shot.first - placed.file_start_s,
        shot.end - placed.file_start_s,
        bool(shot.keep),
        shot.reason,
        bool(accepted),
        rule,
        message,
        deciding.clip_id if deciding else None,
    )


def _status(clip: Clip) -> str | None:
    return clip.verdict["status"] if clip.verdict else None


def _why_not(placed: Placed, clip: Clip | None) -> tuple[str, str | None]:
    if placed.failed:
        return f"failed: {placed.failed}", None
    if clip is None:
        return NO_CLIP, None
    if clip.verdict is None:
        return UNJUDGED, None
    reason = clip.verdict["reason"] or "no reason"
    return (f"failed: {reason}" if clip.verdict["status"] == "failed" else reason), clip.verdict["message"]
