"""`reelmill select` applies other rules to the measured clips."""

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
    """Apply other rules to the measured clips. A session is opened only if there is work for one.

    No model is asked about a clip that was accepted before. Raises `ConfigError` if a new clip needs a
    captioner that only the dataset, and not the user, names.
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
    """The accepted clips that are in no shard, and those in a shard without any caption.

    A `select` that was killed may have cut clips and left them without a caption. These clips count as new
    only if the user has confirmed all settings. Only then may a captioner be asked about them.
    """
    there = sharded_clips(dataset)
    new = {i for i in accepted if i not in there}
    if config.unsaid:
        return new
    captions = Captions.read(dataset, config)
    return new | {i for i in accepted if not captions.has_any(i)}
