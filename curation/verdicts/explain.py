"""Lines that say what a build would do, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from curation.captions.chosen import Captions, failure_keys, with_checks
from curation.config.changes import changes
from curation.config.load import stored_config
from curation.config.schema import Config
from curation.shards.plan import sharded_clips
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.store.failures import current_failures
from curation.store.rows import NamedSource
from curation.verdicts.judge import judge, refused_hdr
from curation.verdicts.stale import Staleness
from curation.verdicts.todo import Todo, source_row


def describe(todo: Todo, listed: Sequence[Source]) -> Iterator[str]:
    """Yield lines that say what a build would do with the sources."""
    again = f", {len(todo.rescore)} to score again" if todo.rescore else ""
    measured = todo.sources - len(todo.rescore)
    yield f"{len(listed)} sources named: {measured} to measure{again}, {todo.done} done before"
    for reason, n in sorted(Counter(todo.reasons.values()).items()):
        yield f"  {n} {reason}"
    yield from notes(todo)


def notes(todo: Todo) -> Iterator[str]:
    """Yield lines about sources that need the user's attention, such as changed or unreadable sources."""
    found: list[tuple[Iterable[NamedSource], str]] = [
        (todo.pruned, "are not named, or have changed, and are removed with their clips (--prune)"),
        (todo.mended, "failed, and another file is there now: their rows are removed"),
        (todo.unlisted, "were not named; they stay (--prune removes them)"),
        (
            todo.changed,
            "have changed since they were measured; the clips of the old files stay (--prune removes them)",
        ),
        (todo.vanished, "cannot be read now but were before; they stay as they were measured"),
        (
            [source_row(s) for s in todo.copies],
            "are copies of other sources, so the spans that the list gives of them are no clips",
        ),
        ([source_row(s) for s in todo.barred], "were removed with reelmill remove; they are left out"),
    ]
    for rows, what in found:
        uris = sorted(row["uri"] for row in rows)
        if uris:
            more = f" and {len(uris) - 3} more" if len(uris) > 3 else ""
            yield f"sources that {what}: {len(uris)} ({', '.join(uris[:3])}{more})"
    if todo.extras:
        yield f"sources whose other list columns have changed: {len(todo.extras)}; the new values are used"


def explain(dataset: Dataset, listed: Sequence[Source], config: Config, todo: Todo) -> Iterator[str]:
    """Yield lines that say what a build under `config` would do, and why. `status --explain` prints them."""
    stored = stored_config(dataset.manifest(), dataset.location)
    for line in changes(stored, config):
        yield f"configuration: {line}"
    yield from describe(todo, listed)
    staleness = Staleness(config)
    gone = [row["source_id"] for row in (*todo.pruned, *todo.mended)]
    again = set(todo.reasons) - todo.rescore | set(gone)
    accepted: set[str] = set()
    rejected: set[str] = set()
    unknown = spared = outdated = 0
    rules = config.verdict_rules
    failures = current_failures(dataset, failure_keys(config))
    captions, hdr = Captions.read(dataset, config), refused_hdr(dataset, config)
    for clip in dataset.rows("clips", ["clip_id", "source_id", "fps", "keys", *dataset.score_columns]):
        if clip["source_id"] in again:
            continue
        if staleness.wanted(clip):
            unknown += 1
            continue
        outdated += staleness.holds_old_values(clip)
        spared += bool(staleness.outdated(clip))
        cleared = with_checks(staleness.cleared(clip), captions)
        failed = failures.get(clip["clip_id"])
        refused = hdr.get(clip["source_id"])
        verdict = judge(cleared, rules, failed, is_image=clip["fps"] is None, hdr=refused)
        (accepted if verdict.status == "accepted" else rejected).add(clip["clip_id"])
    if spared:
        yield f"{spared} clips skip an expensive score: a cheaper rule rejects them"
    if outdated:
        yield f"{outdated} clips would lose scores of another version or other parameters"
    before = {v["clip_id"] for v in dataset.verdicts() if v["status"] == "accepted"}
    yield (
        f"{len(accepted)} clips are known to be accepted, {len(accepted - before)} of them newly; "
        f"{len(before & rejected)} that were accepted would be rejected"
    )
    there = set(sharded_clips(dataset))
    if stored.cut_hash() != config.cut_hash():
        yield f"{len(accepted)} clips are known to be encoded again: the settings of cut changed"
    else:
        yield f"{len(accepted - there)} clips are known to be encoded; {len(accepted & there)} are in shards"
    if config.captions.by_model:
        captioned = sum(captions.has(i) for i in accepted)
        yield (
            f"{len(accepted) - captioned} of them are to be captioned by {config.captions.captioner}; "
            f"{captioned} have its caption"
        )
    if unknown:
        inside = len(there - accepted - rejected)
        yield f"{unknown} clips would be judged after they were scored; {inside} of them are in shards now"
    if len(again) > len(gone):
        yield f"the clips of {len(again) - len(gone)} sources are known only after measuring"
