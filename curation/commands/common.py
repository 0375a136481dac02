"""The common part of `select` and `caption`: a Ray session is opened only if there is work for one."""

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
from curation.verdicts.judge import refused_hdr, verdict_rows


def caption_by_models(
    dataset: Dataset, config: Config, progress: Progress, among: Collection[str] | None = None
) -> None:
    """Caption the clips in the shards, rewrite the captions, and update verdicts and shards.

    `among` limits the clips; None takes all. A caption that the rules reject is not rewritten.
    """
    for step in STEPS:
        if caption(dataset, config, step, progress, among=among):
            apply_rules(dataset, config)


def would_accept(dataset: Dataset, config: Config, *, retry_failed: bool = False) -> set[str]:
    """The ids of the clips that `select` would accept. Nothing is written."""
    captions, hdr = Captions.read(dataset, config), refused_hdr(dataset, config)
    return {
        row["clip_id"]
        for row in verdict_rows(dataset, config.verdict_rules, failure_keys(config), captions, hdr)
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
    """Check the captioner, and open a session if there is work for one, before anything is written.

    `accepted`: the clips that will be accepted. `among`: the clips that may be captioned; None means all of
    `accepted`. Raises `captioning.base.CaptionerMissing`. Raises `ConfigError` if only the dataset, and not
    the user, names the server or model.
    """
    asked = accepted if among is None else among
    to_caption = is_needed(dataset, config, asked, retry_failed=retry_failed)
    # An edited sidecar is read only later, and its text would then be rewritten.
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
    """Cut and caption. A session is opened only if there is work for one. `among`: see `ready`."""
    there = sharded_clips(dataset)
    to_caption = any(wanted(dataset, config, step, among=among) for step in STEPS)
    if to_caption or any(c["clip_id"] not in there for c in accepted):
        with session():
            cut(dataset, accepted, config, progress)
            caption_by_models(dataset, config, progress, among)
