"""The result of `reelmill judge` as lines to print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from curation.judging.agreement import wilson
from curation.judging.changes import CUT_FRAMES, Changes, Spot
from curation.judging.result import Result
from curation.judging.shots import Outcome
from curation.report.words import clock, duration, share


def lines(judged: Result) -> list[str]:
    return [*_counts(judged), *_by_reason(judged), *_lists(judged), *_changes(judged.changes)]


def _counts(judged: Result) -> Iterator[str]:
    a, out = judged.agreement, judged.left_out
    yield (
        f"{a.labels} labelled shots in {judged.sources} sources; left out: {out.short} shorter than "
        f"{judged.min_seconds:g} s, {out.unjudged} without a judgement"
    )
    if judged.unknown:
        more = f" and {len(judged.unknown) - 3} more" if len(judged.unknown) > 3 else ""
        yield f"labelled, and not in the dataset: {', '.join(judged.unknown[:3])}{more}"
    if not a.labels:
        return
    yield "                   accepted  not accepted"
    yield f"  curator keeps  {a.both_keep:10d}{a.false_rejects:14d}"
    yield f"  curator rejects{a.false_accepts:10d}{a.both_reject:14d}"
    low, high = wilson(a.both_keep + a.both_reject, a.labels)
    kappa = "not defined: all say the same" if a.kappa is None else f"{a.kappa:.2f}"
    yield f"agreement {_part(a.share)} (95 %: {share(low)} to {share(high)}), Cohen's kappa {kappa}"
    yield f"precision {_part(a.precision)} (of the accepted), recall {_part(a.recall)} (of those to keep)"
    s = judged.seconds
    yield (
        f"seconds of accepted clips: {s.keep:.1f} in shots to keep, {s.reject:.1f} in shots to reject, "
        f"{s.unlabelled:.1f} in neither"
    )


def _part(value: float | None) -> str:
    return "–" if value is None else share(value)


def _by_reason(judged: Result) -> Iterator[str]:
    if judged.by_reason:
        yield "shots to reject, by the curator's reason (a shot counts under each of its reasons):"
    for reason, (shots, accepted) in judged.by_reason.items():
        yield f"  {reason}: {shots}, of these {accepted} accepted"
    if judged.by_rule:
        yield "shots that are not accepted, by what rejects them:"
    for rule, (shots, kept) in judged.by_rule.items():
        yield f"  {rule}: {shots}, of these {kept} to keep"


def _lists(judged: Result) -> Iterator[str]:
    for name, found in (("false accepts", judged.false_accepts), ("false rejects", judged.false_rejects)):
        if found:
            yield f"{name}:"
        for outcome in found:
            yield f"  {_shot(outcome)}"


def _shot(outcome: Outcome) -> str:
    where = f"{outcome.uri} {clock(outcome.start_s)} + {duration(outcome.end_s - outcome.start_s)}"
    curator = f"the curator {'keeps' if outcome.keep else 'rejects'} it"
    curator += f" ({outcome.reason})" if outcome.reason else ""
    if outcome.accepted:
        return f"{where}: {curator}"
    said = outcome.rule if outcome.message is None else f"{outcome.rule} ({outcome.message})"
    return f"{where}: {said}; {curator}"


def _changes(of: Changes) -> Iterator[str]:
    if of.inexact:
        yield (
            f"cuts are not compared in {len(of.inexact)} sources of a variable frame rate "
            f"({', '.join(of.inexact[:3])}): add times_s to their labels"
        )
    if not of.sources:
        return
    if of.boundaries or of.elsewhere is not None:
        yield (
            f"hard cuts: {of.found} of {of.cuts} lie in a gap between two clips, or within {CUT_FRAMES} "
            "frames of one"
        )
        yield f"gradual transitions: {of.gradual_found} of {of.gradual} touch a gap between two clips"
        if of.elsewhere is None:
            yield (
                "  without spans.trim_seconds parts of one scene look like two scenes, so a cut may be found "
                "by chance, and false cuts cannot be counted"
            )
        else:
            yield (
                f"  gaps between clips: {of.boundaries}; {len(of.elsewhere)} at no labelled change, "
                f"{of.ignored} at ambiguous ones"
            )
        yield from _spots("cuts not found", of.missed)
        yield from _spots("gradual transitions not found", of.gradual_missed)
        yield from _spots("gaps at no labelled change", of.elsewhere or ())
    else:
        yield "the clips are spans of a list: their boundaries say nothing of cuts"
    yield f"{len(of.holding_cuts)} of {of.accepted} accepted clips hold a labelled hard cut"
    yield from (f"  {spot.uri} {clock(spot.time_s)}: {spot.what}" for spot in of.holding_cuts)
    yield f"{len(of.holding_gradual)} of {of.accepted} accepted clips hold frames of a gradual transition"
    yield from (f"  {spot.uri} {clock(spot.time_s)}: {spot.what}" for spot in of.holding_gradual)


def _spots(title: str, spots: Sequence[Spot]) -> Iterator[str]:
    by_uri: dict[str, list[str]] = {}
    for spot in spots:
        by_uri.setdefault(spot.uri, []).append(f"{spot.time_s:.2f} s")
    for uri, times in by_uri.items():
        yield f"  {title}: {uri} {', '.join(times)}"
