"""A verdict is a pure function of scores, failures and rules. Judging a whole dataset takes seconds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from curation.captions.chosen import Captions, with_checks
from curation.store.dataset import Dataset
from curation.store.failures import current_failures
from curation.store.rows import ClipRow, FailureRow, Scores, VerdictRow
from curation.store.schema import CAPTION_COLUMNS, VERDICTS
from filters.rules import Rule, Verdict, verdict


def applicable(rules: Mapping[str, Rule], *, is_image: bool) -> dict[str, Rule]:
    """The rules that apply to the medium. A still image has no motion, so its motion score is not missing."""
    media = "image" if is_image else "video"
    return {column: rule for column, rule in rules.items() if media in rule.applies_to}


def judge(
    scores: Scores, rules: Mapping[str, Rule], failure: FailureRow | None, *, is_image: bool
) -> Verdict:
    """The verdict on one clip. `scores` holds its scores and the checks of its caption.

    `failure` is the clip's row of `failures`, if there is a row. A rule on captions applies only to a checked
    caption. It does not apply to a clip without a caption, or to a caption that people wrote.
    """
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
) -> Iterator[VerdictRow]:
    """One row of `verdicts` per committed clip, in the order of the clips."""
    for _, row in _judged(dataset, rules, failure_keys, captions):
        yield row


def _judged(
    dataset: Dataset,
    rules: Mapping[str, Rule],
    failure_keys: Collection[str],
    captions: Captions | None,
    columns: Collection[str] = (),
) -> Iterator[tuple[ClipRow, VerdictRow]]:
    failures = current_failures(dataset, failure_keys)
    for clip in dataset.rows("clips", [*dict.fromkeys(("clip_id", "fps", *dataset.score_columns, *columns))]):
        id_, is_image = clip["clip_id"], clip["fps"] is None
        v = judge(with_checks(clip, captions), rules, failures.get(id_), is_image=is_image)
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
) -> list[ClipRow]:
    """Rewrite verdicts.parquet. Returns the accepted clips, in the order of the clips.

    Each returned row has the scores of the clip, and `columns` of `clips`.
    """
    accepted: list[ClipRow] = []
    rows: list[VerdictRow] = []
    for clip, row in _judged(dataset, rules, failure_keys, captions, columns):
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
