"""`reelmill caption` makes other captions for the existing clips."""

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
    """Make other captions for the existing clips. Nothing is measured.

    A clip is cut only if it is newly accepted, and so is in no shard yet.

    The clips in the shards are captioned (or rewritten) before anything else is written. So a captioner that
    does not work leaves the dataset as it was. A clip keeps its old caption until it has a new one.
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
        # A new caption is judged before it is rewritten.
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
