"""Compares a build of the rendered corpus with the corpus's truth:

python -m tests.jobs.corpus_figures CORPUS DATASET
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.corpus.draw import DEFECTS
from curation.store.dataset import Dataset

# The rules that a defect may break first. Overexposed light breaks one of two rules.
RULES = {
    "static": {"motion.speed"},
    "fast": {"motion.speed"},
    "text": {"text.area"},
    "dark": {"quality.brightness", "quality.dark"},
    "bright": {"quality.brightness", "quality.blown"},
    "flat": {"quality.contrast"},
    "blurred": {"quality.sharpness"},
    "letterboxed": {"borders.fraction"},
    "short": {"duration.seconds"},
    "small": {"resolution.short_side"},
}
MIDDLE = {"static": 0.3, "fast": 0.3, "dark": 0.5, "bright": 0.5}  # which bound of the rule was broken
Row = dict[str, Any]


@dataclass
class Counts:
    found: int = 0
    planted: int = 0
    right: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.planted if self.planted else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.found + self.planted) if self.found + self.planted else 0.0

    def __str__(self) -> str:
        shares = f"precision {self.precision:.3f} recall {self.recall:.3f}"
        return f"planted {self.planted:4} found {self.found:4} {shares}"


@dataclass
class Figures:
    cuts: Counts = field(default_factory=Counts)
    dissolves: Counts = field(default_factory=Counts)  # only recall; `found` is not used
    by_shots: int = 0  # found dissolves that the shot detector found
    defects: dict[str, Counts] = field(default_factory=dict)
    transition: Counts = field(default_factory=Counts)  # rejected clips; right: beside or over a change
    captions: Counts = field(default_factory=Counts)  # planted: accepted clips of one scene
    wrong: list[str] = field(default_factory=list)  # a line for each disagreement
    reasons: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by kind

    def lines(self) -> list[str]:
        kinds = [f"{kind:12} {counts}" for kind, counts in self.defects.items()]
        table = [f"  {kind:12} {dict(counts)}" for kind, counts in self.reasons.items()]
        return [
            f"cuts         {self.cuts} F1 {self.cuts.f1:.4f}",
            f"dissolves    planted {self.dissolves.planted:4} recall {self.dissolves.recall:.3f}, "
            f"{self.by_shots} as cuts",
            f"transition   {self.transition.right} of {self.transition.found} rejected hold a change",
            *kinds,
            f"captions     {self.captions.right} of {self.captions.planted} right",
            "first reasons by kind:",
            *table,
            *self.wrong,
        ]


def figures(corpus: Path, dataset: Dataset) -> Figures:
    truth = json.loads((corpus / "truth.json").read_text())
    names = {str(corpus / f["file"]): f for f in truth["files"] if f["file"].startswith("videos/")}
    sources = {s["uri"]: s for s in dataset.rows("sources")}
    assert sources.keys() == names.keys()
    clips: dict[str, list[Row]] = defaultdict(list)
    for clip in dataset.rows("clips"):
        clips[clip["uri"]].append(clip)
    verdicts = {v["clip_id"]: v for v in dataset.verdicts()}
    captions = {row["clip_id"]: row["caption"] for row in dataset.rows("shards")}
    found = Figures(defects={kind: Counts() for kind in (*DEFECTS, "identical", "broken")})
    for uri, file in names.items():
        _count_source(found, file, sources[uri], sources)
        if sources[uri]["status"] == "measured" and not sources[uri]["duplicate_of"] and not file["broken"]:
            spans = sorted(clips[uri], key=lambda c: c["start_s"])
            _count_changes(found, file, spans, verdicts)
            for clip in spans:
                _count_clip(found, file, clip, verdicts[clip["clip_id"]], captions.get(clip["clip_id"]))
    return found


def _count_source(found: Figures, file: Row, source: Row, sources: dict[str, Row]) -> None:
    identical, broken = found.defects["identical"], found.defects["broken"]
    identical.planted += file["copy_of"] is not None
    broken.planted += file["broken"] is not None
    if source["duplicate_of"]:
        identical.found += 1
        original = next(s for s in sources.values() if s["source_id"] == source["duplicate_of"])
        identical.right += bool(file["copy_of"]) and original["uri"].endswith(file["copy_of"])
    if source["status"] == "failed":
        broken.found += 1
        broken.right += file["broken"] is not None
    elif file["broken"]:
        found.wrong.append(f"{file['file']}: {file['broken']}, and measured")


def _count_changes(found: Figures, file: Row, spans: list[Row], verdicts: dict[str, Row]) -> None:
    """Compare changes of scene. Cuts lie between two clips, which are both trimmed. A dissolve is found if a
    cut lies in it, or if `transition.distance` rejects the clip with the dissolve."""
    fps = file["fps"]
    between = [(round(a["end_s"] * fps), round(b["start_s"] * fps)) for a, b in itertools.pairwise(spans)]
    between = [(a, b) for a, b in between if b > a]  # parts of one long scene touch
    used = set()
    for change in file["transitions"]:
        start, end = change["start_frame"], change["end_frame"]
        cut = next(
            (k for k, (a, b) in enumerate(between) if k not in used and _is_at(a, b, start, end)), None
        )
        if change["type"] == "cut":
            found.cuts.planted += 1
            found.cuts.right += cut is not None
            if cut is None:
                found.wrong.append(f"{file['file']}: no cut at frame {start}")
        else:
            held = [c for c in spans if c["start_s"] * fps < start and c["end_s"] * fps > end]
            seen = bool(held) and all(verdicts[c["clip_id"]]["reason"] == "transition.distance" for c in held)
            found.dissolves.planted += 1
            found.dissolves.right += cut is not None or seen
            found.by_shots += cut is not None
        if cut is not None:
            used.add(cut)
            found.cuts.found += change["type"] == "cut"
    for k, (a, b) in enumerate(between):
        if k not in used:
            found.cuts.found += 1
            found.wrong.append(f"{file['file']}: a cut between frames {a} and {b} where none is")


def _is_at(last: int, first: int, start: int, end: int) -> bool:
    """Whether the gap between two clips, frames `last` to `first`, contains a change from `start` to `end`.

    The gap consists of the cut and the trimmed frames on both sides. A hard cut is exactly in its middle.
    """
    if start == end:
        return abs((last + first) / 2 - start) <= 0.5
    return last <= end and first >= start


def _count_clip(found: Figures, file: Row, clip: Row, verdict: Row, caption: str | None) -> None:
    inside = [s for s in file["scenes"] if _overlap(clip, s) > 0.35 * min(_length(clip), _length(s))]
    reason = verdict["reason"] or verdict["status"]
    changes = [
        t for t in file["transitions"] if t["start_s"] < clip["end_s"] and t["end_s"] > clip["start_s"]
    ]
    if reason == "transition.distance":
        found.transition.found += 1
        found.transition.right += bool(changes)
    if len(inside) != 1 or (changes and reason == "transition.distance"):  # counted with the changes
        found.reasons[" + ".join(s["kind"] for s in inside) + " with a change"][reason] += 1
        return
    scene = inside[0]
    kind = scene["kind"]
    found.reasons[kind][reason] += 1
    for defect, rules in RULES.items():
        planted, named = kind == defect, reason in rules
        if named and defect in MIDDLE:
            named = (verdict["value"] > MIDDLE[defect]) == (defect in ("fast", "bright"))
            if reason in ("quality.dark", "quality.blown"):
                named = True
        counts = found.defects[defect]
        counts.planted += planted
        counts.found += named
        counts.right += planted and named
    expected = RULES.get(kind, {"accepted"})
    if reason not in expected:
        where = f"{clip['start_s']:.2f}-{clip['end_s']:.2f} s"
        found.wrong.append(f"{file['file']} {where}: {kind}, {scene['caption']}: {reason} {verdict['value']}")
    if verdict["status"] == "accepted":
        found.captions.planted += 1
        found.captions.right += caption == scene["caption"]


def _length(span: Row) -> float:
    return float(span["end_s"] - span["start_s"])


def _overlap(one: Row, other: Row) -> float:
    return float(min(one["end_s"], other["end_s"]) - max(one["start_s"], other["start_s"]))


if __name__ == "__main__":
    from jobs.common import leave

    leave(lambda: print("\n".join(figures(Path(sys.argv[1]).absolute(), Dataset(sys.argv[2])).lines())))
