"""The findings of `reelmill advise` as lines to print."""

from __future__ import annotations

from collections.abc import Iterator

from curation.judging.findings import Findings, Labels, setting
from curation.judging.fitted import LEAST_LABELS, Fitted
from curation.judging.share import Share
from curation.report.charts import bounds
from curation.report.words import duration, share


def lines(found: Findings) -> Iterator[str]:
    part = found.passing / found.clips if found.clips else 0.0
    yield (
        f"clips {found.clips} ({duration(found.seconds)}), {found.passing} pass all rules ({share(part)}; "
        f"{duration(found.passing_s)})"
    )
    yield from _costs(found)
    if found.share is not None:
        yield from _share(found, found.share)
    if found.labels is not None:
        yield from _labels(found, found.labels)


def _costs(found: Findings) -> Iterator[str]:
    if found.costs:
        yield "what each rule rejects alone, and what it rejects last: clips that no other rule rejects"
    wide = max((len(c.column) for c in found.costs), default=0)
    for c in found.costs:
        line = (
            f"  {c.column:{wide}}  {bounds(found.rules[c.column]):>16}  alone {c.alone} of {c.scored} "
            f"({duration(c.alone_s)}), last {c.last} ({duration(c.last_s)})"
        )
        line += f", of these {c.last_unscored} lack a score of another rule" if c.last_unscored else ""
        yield line + (f"; not scored {c.missing}" if c.missing else "")


def _share(found: Findings, asked: Share) -> Iterator[str]:
    now = f"to keep {share(asked.wanted)} of the {found.by} (now {share(asked.now)})"
    kept = f"{share(asked.kept)}, {asked.kept_clips} clips"
    if asked.unscored:
        kept += f" and a part of {asked.unscored} that a build has yet to score"
    if asked.rules:
        yield f"{now}: bounds {'loosened' if asked.t > 0 else 'tightened'} together keep {kept}"
    else:
        yield f"{now}: the bounds of now are the tightest that keep as much: {kept}"
    yield from (f"  --set {line}" for line in found.settings)
    if asked.held:
        yield f"  not moved: {', '.join(asked.held)}"
    if not asked.is_reached:
        yield "  more cannot be kept: the rest breaks rules that were not moved, is not scored, or is refused"


def _labels(found: Findings, labels: Labels) -> Iterator[str]:
    kept = sum(labels.keep.values())
    yield f"{len(labels.keep)} labelled clips: {kept} to keep, {len(labels.keep) - kept} to reject"
    if labels.conflicts:
        yield f"  {labels.conflicts} more hold shots with both judgements, and are left out"
    if labels.unknown:
        more = f" and {len(labels.unknown) - 3} more" if len(labels.unknown) > 3 else ""
        yield f"  labelled, and not in the dataset: {', '.join(labels.unknown[:3])}{more}"
    for fitted in found.clear:
        yield f"  --set {setting(fitted.column, fitted.bound, fitted.value)}"
        yield f"    {_said(fitted)}"
    if found.clear:
        yield "  each is the best one alone; reelmill judge with --set says what several do together"
    others = [f for f in found.fitted if not f.is_clear]
    if others:
        yield "  the best of other bounds, which may help by chance alone, or not at all:"
    for fitted in others:
        yield f"    {fitted.column}.{fitted.bound} {fitted.value:g}: {_said(fitted)}"
    if not found.fitted:
        yield (
            f"  no bound to find: it takes labels of both judgements, and {LEAST_LABELS} or more of scored "
            "clips"
        )


def _said(f: Fitted) -> str:
    low, high = f.agreement_95
    said = (
        f"90 % of draws: {f.low:.4g} to {f.high:.4g}; agrees with {share(f.agreement)} of {f.labels} labels "
        f"(95 %: {share(low)} to {share(high)}), with {share(f.held_out)} of those that did not choose it; "
        f"without a bound {share(f.baseline)}"
    )
    if f.unsure:
        said += f"; {share(f.unsure)} of draws find none"
    return said if f.now is None else f"{said}; now {f.now:g}: {share(f.now_agreement or 0.0)}"
