"""`reelmill select`: other rules over what is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from curation.commands.common import finish, ready, would_accept
from curation.config.schema import Config
from curation.driver.manifest import write_manifest
from curation.driver.prepare import settle
from curation.pipeline import select
from curation.progress import Progress
from curation.store.dataset import Dataset


def reselect(
    dataset: Dataset, config: Config, progress: Progress, session: Callable[[], AbstractContextManager[None]]
) -> None:
    """`select`: other rules over what is measured. A session is opened only if there is something to cut."""
    settle(dataset)
    with ready(dataset, config, session, would_accept(dataset, config)):
        write_manifest(dataset, config)
        finish(dataset, select(dataset, config), config, progress, session)
