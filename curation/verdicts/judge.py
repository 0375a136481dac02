"""A verdict is a pure function of scores, failures and rules. Judging a whole dataset takes seconds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from curation.captions.chosen import Captions, with_checks
from curation.config.hdr import hdr_name
from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.failures import current_failures
from curation.store.rows import ClipRow, FailureRow, Scores, VerdictRow
from curation.store.schema import CAPTION_COLUMNS, VERDICTS
from filters.rules import Rule, Verdict, verdict

HDR_REASON = "source.hdr"


def applicable(rules: Mapping[str, Rule], *, is_image: bool) -> dict[str, Rule]:
    """The rules that apply to the medium. A still image has no motion, so its motion score is not missing."""
    media = "image" if is_image else "video"
    return {column: rule for column, rule in rules.items() if media in rule.applies_to}


def refused_hdr(dataset: Dataset, config: Config) -> dict[str, str]:
    """source_id -> HLG or PQ, of the sources whose clips are rejected for it."""
    if config.cut.hdr != "reject":
        return {}
    rows = dataset.rows("sources", ["source_id", "transfer"])
    return {row["source_id"]: name for row in rows if (name := hdr_name(row["transfer"]))}


def judge(
    scores: Scores,
    rules: Mapping[str, Rule],
    failure: FailureRow | None,
    *,
    is_image: bool,
    hdr: str | None = None,
) -> Verdict:
    """The verdict on one clip. `scores` holds its scores and the checks of its caption.

    `hdr`: the transfer of its source, if that is a reason to reject the clip (`refused_hdr`).
    `failure` is the clip's row of `failures`, if there is a row. A rule on captions applies only to a checked
    caption. It does not apply to a clip without a caption, or to a caption that people wrote.
    """
    if hdr is not None:
        return Verdict("rejected", HDR_REASON, None, f"the source is HDR ({hdr}), and cut.hdr is reject")
    on_it = applicable(rules, is_image=is_image)
    found = verdict(
        scores, {c: r for c, r in on_it.items() if c not in CAPTION_COLUMNS or scores.get(c) is not None}
    )
    if found.status == "accepted" and failure is not None:
        return Verdict("failed", failure["stage"], None, f"{failure['error']}: {failure['message']}")
    return found


def verdict_rows(
    dataset: Dataset,
    rules: Mapping[str, Rule],
    failure_keys: Collection[str],
    captions: Captions | None = None,
    hdr: Mapping[str, str] | None = None,
) -> Iterator[VerdictRow]:
    """One row of `verdicts` per committed clip, in the order of the clips. hdr: what `refused_hdr` gives."""
    for _, row in _judged(dataset, rules, failure_keys, captions, hdr=hdr):
        yield row


def _judged(
    dataset: Dataset,
    rules: Mapping[str, Rule],
    failure_keys: Collection[str],
    captions: Captions | None,
    columns: Collection[str] = (),
    hdr: Mapping[str, str] | None = None,
) -> Iterator[tuple[ClipRow, VerdictRow]]:
    failures = current_failures(dataset, failure_keys)
    wanted = dict.fromkeys(("clip_id", "source_id", "fps", *dataset.score_columns, *columns))
    for clip in dataset.rows("clips", [*wanted]):
        id_, is_image = clip["clip_id"], clip["fps"] is None
        refused = (hdr or {}).get(clip["source_id"])
        v = judge(with_checks(clip, captions), rules, failures.get(id_), is_image=is_image, hdr=refused)
        yield (
            clip,
            {"clip_id": id_, "status": v.status, "reason": v.reason, "value": v.value, "message": v.message},
        )


def write_verdicts(
    dataset: Dataset,
    rules: Mapping[str, Rule],
    failure_keys: Collection[str],
    captions: Captions | None = None,
    columns: Collection[str] = (),
    hdr: Mapping[str, str] | None = None,
) -> list[ClipRow]:
    """Rewrite verdicts.parquet. Returns the accepted clips, in the order of the clips.

    Each returned row has the scores of the clip, and `columns` of `clips`. hdr: what `refused_hdr` gives.
    """
    accepted: list[ClipRow] = []
    rows: list[VerdictRow] = []
    for clip, row in _judged(dataset, rules, failure_keys, captions, columns, hdr):
        rows.append(row)
        if row["status"] == "accepted":
            accepted.append(clip)
    dataset.write_table("verdicts.parquet", rows, VERDICTS)
    return accepted


def spared(scores: Scores, rules: Mapping[str, Rule], columns: Iterable[str], *, is_image: bool) -> bool:
    """Does a clip fail a rule on one of `columns` (cheap scores)? Then an expensive score can be skipped."""
    known = set(columns)
    cheap = {column: rule for column, rule in rules.items() if column in known}
    return verdict(scores, applicable(cheap, is_image=is_image)).status != "accepted"
