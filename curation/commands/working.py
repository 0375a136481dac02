"""The context of commands that write to a dataset: one at a time, and ended in order."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from curation.config.schema import ConfigError
from curation.progress import complain
from curation.store.dataset import LEASE, Dataset
from curation.store.lease import Lease


@contextlib.contextmanager
def working(dataset: Dataset, command: str) -> Iterator[None]:
    """One command at a time writes to a dataset. SIGTERM acts like Ctrl-C. Raises `LeaseHeld`."""
    with ended_in_order(), Lease(dataset, command, say=complain) as lease:
        dataset.guard, dataset.token = lease.check, lease.token
        try:
            yield
        except OSError as error:
            # Ray and its workers end. Their unfinished shards may fill the disk, so they are removed.
            if no_room(error):
                with contextlib.suppress(OSError):
                    dataset.clean()
            raise
        finally:
            dataset.guard = dataset.token = None


@contextlib.contextmanager
def one_writer(folder: str | Path, command: str, name: str = LEASE) -> Iterator[Lease]:
    """The context of commands that fill a folder without a dataset: one command at a time. SIGTERM acts like
    Ctrl-C. Raises `LeaseHeld`, and `ConfigError` for a file. name: see `curation.store.lease.Lease`."""
    if os.path.isfile(folder):
        raise ConfigError(
            f"{folder}: the folder cannot be made, because a file has this name; name another folder"
        )
    with ended_in_order(), Lease(Dataset(str(folder)), command, say=complain, name=name) as lease:
        yield lease


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within this context SIGTERM has the effect of Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    # `docker stop`, the time limit of a job and `ray job stop` send SIGTERM.
    raise KeyboardInterrupt


def no_room(error: OSError) -> bool:
    """Whether the disk is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
