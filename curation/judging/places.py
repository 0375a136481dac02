"""Finds the labelled sources in a dataset, and turns labels into presentation times."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from curation.config.schema import ConfigError
from curation.judging.labels import LabelFile, Labelled, Stretch
from curation.store.address import is_remote
from curation.store.dataset import Dataset
from curation.store.rows import SourceRow, VerdictRow

_COLUMNS = ["source_id", "uri", "status", "stage", "duplicate_of", "fps", "is_vfr", "duration_s", "frames"]


@dataclass(frozen=True)
class Clip:
    """One clip with its verdict. Times are presentation times."""

    clip_id: str
    source_id: str
    uri: str
    start_s: float
    end_s: float
    verdict: VerdictRow | None  # None: not judged yet


@dataclass(frozen=True)
class Placed:
    """The labels of one source, in presentation times, and the clips of the source by their start.

    frame_s: how long a frame is shown. exact: the times of frames are known, so that cuts can be compared.
    """

    uri: str
    file_start_s: float
    frame_s: float
    exact: bool
    shots: list[Stretch]
    cuts: list[float] | None
    gradual: list[Stretch]
    ambiguous: list[Stretch]
    failed: str | None = None  # the stage at which the source failed
    clips: list[Clip] = field(default_factory=list)


@dataclass(frozen=True)
class Places:
    """The labels that the dataset has something to say of, and the names that it does not know."""

    sources: list[Placed]
    clips: list[tuple[Placed, Clip, Stretch]]  # labels that name a clip
    unknown: list[str]


def place_labels(dataset: Dataset, labels: LabelFile, verdicts: Mapping[str, VerdictRow]) -> Places:
    """Raises `ConfigError` for a name that several sources have, and for frames without a rate."""
    rows = list(dataset.rows("sources", [*_COLUMNS, "file_start_s"]))
    find = _finder(rows, os.path.dirname(labels.name))
    by_id = {row["source_id"]: row for row in rows}
    named = [(labelled, find(labelled.name)) for labelled in labels.sources]
    placed: dict[str, Placed] = {}
    for labelled, id_ in named:
        if id_ is not None:
            of_name = placed_at(labelled, by_id[id_])
            placed[id_] = _joined(placed[id_], of_name) if id_ in placed else of_name
    of_label: dict[str, Clip] = {}
    for row in dataset.rows("clips", ["clip_id", "source_id", "uri", "start_s", "end_s"]):
        source_id, clip_id = row["source_id"], row["clip_id"]
        if source_id not in placed and clip_id not in labels.clips:
            continue
        verdict = verdicts.get(clip_id)
        clip = Clip(clip_id, source_id, row["uri"], row["start_s"], row["end_s"], verdict)
        if source_id in placed:
            placed[source_id].clips.append(clip)
        if clip_id in labels.clips:
            of_label[clip_id] = clip
    for found in placed.values():
        found.clips.sort(key=lambda clip: (clip.start_s, clip.end_s))
    by_clip = []
    for clip in of_label.values():
        home = placed_at(Labelled(clip.uri, in_frames=False), by_id[clip.source_id])
        by_clip.append((home, clip, labels.clips[clip.clip_id]))
    unknown = [labelled.name for labelled, id_ in named if id_ is None]
    unknown += [clip_id for clip_id in labels.clips if clip_id not in of_label]
    return Places(list(placed.values()), by_clip, unknown)


def _joined(one: Placed, other: Placed) -> Placed:
    """The labels of one source that was labelled under two names."""
    return replace(
        one,
        exact=one.exact and other.exact,
        shots=[*one.shots, *other.shots],
        cuts=one.cuts if other.cuts is None else sorted({*(one.cuts or ()), *other.cuts}),
        gradual=[*one.gradual, *other.gradual],
        ambiguous=[*one.ambiguous, *other.ambiguous],
    )


def _finder(rows: Sequence[SourceRow], folder: str) -> Callable[[str], str | None]:
    """Finds the source_id for a labelled path: the uri itself, the path beside the labels, or the end of one
    uri. A copy stands for its original."""
    by_uri: dict[str, list[SourceRow]] = defaultdict(list)
    by_name: dict[str, list[SourceRow]] = defaultdict(list)
    for row in rows:
        by_uri[row["uri"]].append(row)
        by_name[row["uri"].rpartition("/")[2]].append(row)

    def find(name: str) -> str | None:
        path = name if is_remote(name) else os.path.abspath(os.path.join(folder, name))
        ending = "/" + os.path.normpath(name).lstrip("/")
        ends = [r for r in by_name[name.rpartition("/")[2]] if ("/" + r["uri"]).endswith(ending)]
        found = by_uri.get(name) or by_uri.get(path) or ends
        ids = {row["duplicate_of"] or row["source_id"] for row in found}
        if len(ids) > 1:
            uris = sorted(row["uri"] for row in found)
            raise ConfigError(
                f"the labelled path {name} is that of {len(ids)} sources: {', '.join(uris[:3])}; write "
                "more of it"
            )
        return next(iter(ids), None)

    return find


def placed_at(labelled: Labelled, row: SourceRow) -> Placed:
    """The labels of one source in presentation times."""
    begins = row["file_start_s"] or 0.0
    frame_s, exact = _frame_s(labelled, row)
    whole_end = begins + (row["duration_s"] or 0.0)

    def time_of(place: float) -> float:
        if math.isinf(place):
            return begins if place < 0 else whole_end
        if not labelled.in_frames:
            return begins + place
        if times := labelled.times_s:
            index = int(place)
            return times[index] if index < len(times) else times[-1] + (index - len(times) + 1) * frame_s
        return (begins if labelled.start_s is None else labelled.start_s) + place * frame_s

    def timed(parts: Sequence[Stretch]) -> list[Stretch]:
        return [Stretch(time_of(p.first), time_of(p.end), p.keep, p.reason) for p in parts]

    return Placed(
        row["uri"],
        begins,
        frame_s,
        exact,
        timed(labelled.shots),
        None if labelled.cuts is None else [time_of(cut) for cut in labelled.cuts],
        timed(labelled.gradual),
        timed(labelled.ambiguous),
        row["stage"] if row["status"] == "failed" else None,
    )


def _frame_s(labelled: Labelled, row: SourceRow) -> tuple[float, bool]:
    """(the duration of a frame, whether the times of all frames follow from the labels).

    At a variable rate a frame lasts as long as the mean frame: good enough to find a shot, not a cut.
    """
    varies = row["is_vfr"] if labelled.variable_rate is None else labelled.variable_rate
    if varies and labelled.in_frames and row["frames"] and row["duration_s"]:
        return row["duration_s"] / row["frames"], bool(labelled.times_s)
    fps = labelled.fps or row["fps"]
    if fps:
        return 1 / fps, not varies or bool(labelled.times_s)
    if labelled.in_frames and row["status"] == "measured":
        raise ConfigError(
            f"{labelled.name} is labelled by frames, and its rate is not known; add fps to the labels"
        )
    return 1 / 25, False
