"""`reelmill select`: other rules over what is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from curation.captions.chosen import Captions
from curation.captions.wanted import STEPS, wanted
from curation.commands.common import finish, ready, would_accept
from curation.config.schema import Config
from curation.driver.captions import command
from curation.driver.manifest import write_manifest
from curation.driver.prepare import settle
from curation.pipeline import select
from curation.progress import Progress
from curation.shards.plan import sharded_clips
from curation.store.dataset import Dataset


def reselect(
    dataset: Dataset, config: Config, progress: Progress, session: Callable[[], AbstractContextManager[None]]
) -> None:
    """`select`: other rules over what is measured. A session is opened only if there is something to cut.

    A query: no model is asked about a clip that was accepted before. Raises `ConfigError` where one would be
    asked about a new clip and a dataset alone says which.
    """
    settle(dataset)
    accepted = would_accept(dataset, config)
    new = _new(dataset, config, accepted)
    with ready(dataset, config, session, accepted, among=new):
        write_manifest(dataset, config)
        finish(dataset, select(dataset, config, progress.say), config, progress, session, new)
    left = {i for step in STEPS for clips in wanted(dataset, config, step).values() for i in clips}
    if left:
        progress.say(
            f"{len(left)} clips that were accepted before wait for captions of the present captioner; "
            f"{command(dataset)} makes them"
        )


def _new(dataset: Dataset, config: Config, accepted: Collection[str]) -> set[str]:
    """Those that are in no shard; and those that are, without any caption: a `select` that was killed had
    cut them. Of these a captioner is asked only if the user said which."""
    there = sharded_clips(dataset)
    new = {i for i in accepted if i not in there}
    if config.unsaid:
        return new
    captions = Captions.read(dataset, config)
    return new | {i for i in accepted if not captions.has_any(i)}
