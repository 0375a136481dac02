"""What `select` and `caption` have in common: a Ray session only where there is work for one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from curation.captions.chosen import Captions, failure_keys
from curation.captions.wanted import STEPS, check_captioner, is_needed, wanted
from curation.config.schema import Config
from curation.driver.apply import apply_rules
from curation.pipeline import caption, cut
from curation.progress import Progress
from curation.shards.plan import sharded_clips
from curation.store.dataset import Dataset
from curation.store.rows import AcceptedClip
from curation.verdicts.judge import verdict_rows


def caption_by_models(
    dataset: Dataset, config: Config, progress: Progress, among: Collection[str] | None = None
) -> None:
    """Caption the clips in the shards (those `among` which they are to be, where that is said), rewrite the
    captions, and bring verdicts and shards in line with what they are like. What the rules do not like is
    not rewritten."""
    for step in STEPS:
        if caption(dataset, config, step, progress, among=among):
            apply_rules(dataset, config)


def would_accept(dataset: Dataset, config: Config, *, retry_failed: bool = False) -> set[str]:
    """The clips that `select` would accept. Nothing is written."""
    captions = Captions.read(dataset, config)
    return {
        row["clip_id"]
        for row in verdict_rows(dataset, config.verdict_rules, failure_keys(config), captions)
        if row["status"] == "accepted"
        or (retry_failed and (row["status"], row["reason"]) == ("failed", "caption"))
    }


@contextmanager
def ready(
    dataset: Dataset,
    config: Config,
    session: Callable[[], AbstractContextManager[None]],
    accepted: Collection[str],
    *,
    among: Collection[str] | None = None,
    retry_failed: bool = False,
) -> Iterator[None]:
    """Look for what captioning these clips takes, and open a session if there is work for one, before
    anything is written. Of those clips a captioner is asked about the ones `among` which they are to be,
    where that is said. Raises `captioning.base.CaptionerMissing`, and `ConfigError` where a dataset alone
    says which server or model is asked."""
    asked = accepted if among is None else among
    to_caption = is_needed(dataset, config, asked, retry_failed=retry_failed)
    # What an edited sidecar says now is seen later, and would be rewritten.
    if to_caption or (config.captions.captioner == "sidecar" and config.captions.rewrite and asked):
        check_captioner(config)
    there = sharded_clips(dataset)
    with session() if to_caption or any(i not in there for i in accepted) else nullcontext():
        yield


def finish(
    dataset: Dataset,
    accepted: Sequence[AcceptedClip],
    config: Config,
    progress: Progress,
    session: Callable[[], AbstractContextManager[None]],
    among: Collection[str] | None = None,
) -> None:
    """Cut and caption, in a session that is opened only if there is something to do. `among`: see `ready`."""
    there = sharded_clips(dataset)
    to_caption = any(wanted(dataset, config, step, among=among) for step in STEPS)
    if to_caption or any(c["clip_id"] not in there for c in accepted):
        with session():
            cut(dataset, accepted, config, progress)
            caption_by_models(dataset, config, progress, among)
