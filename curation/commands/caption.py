"""`reelmill caption`: other captions for what is there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from curation.captions.people import read_sidecars_again
from curation.captions.wanted import STEPS
from curation.commands.common import finish, ready, would_accept
from curation.config.schema import Config
from curation.driver.apply import apply_rules
from curation.driver.manifest import write_manifest
from curation.driver.prepare import settle
from curation.pipeline import caption
from curation.progress import Progress
from curation.shards.plan import captions_in
from curation.store.dataset import Dataset
from curation.store.failures import commit_failures, forget_failures


def recaption(
    dataset: Dataset,
    config: Config,
    progress: Progress,
    session: Callable[[], AbstractContextManager[None]],
    *,
    retry_failed: bool = False,
) -> None:
    """`caption`: other captions for what is there. Nothing is measured; only what is accepted anew, and so in
    no shard, is cut.

    What is in the shards is captioned (or rewritten) first, before anything else is written: a captioner that
    turns out not to work leaves the dataset as it was, and clips keep their old caption until there is a new
    one.
    """

    def begin() -> None:
        write_manifest(dataset, config)
        if retry_failed:
            forget_failures(dataset, ("caption", "rewrite"))

    settle(dataset)
    before = captions_in(dataset)
    expected = would_accept(dataset, config, retry_failed=retry_failed)
    with ready(dataset, config, session, expected, retry_failed=retry_failed):
        options: dict[str, Any] = {"among": expected, "retry_failed": retry_failed, "begin": begin}
        # What was captioned just now is judged before it is rewritten.
        if not any(caption(dataset, config, s, progress, **options) for s in STEPS):
            begin()
        accepted = apply_rules(dataset, config)
        if config.captions.captioner == "sidecar":
            changed, failures = read_sidecars_again(dataset, accepted, config, progress.say)
            commit_failures(dataset, failures)
            if changed or failures:
                accepted = apply_rules(dataset, config)
        finish(dataset, accepted, config, progress, session)
    after = captions_in(dataset)
    other = sum(before[clip_id] != after[clip_id] for clip_id in before.keys() & after.keys())
    progress.say(f"{other} clips have another caption than before" if other else "no caption changed")
