"""Rows out of Ray Data streams, and errors out of Ray's wrapping."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from curation.store.lease import LeaseLost
from curation.tasks.arrow import rows_of, table_of


def stream_of(tasks: Sequence[Mapping[str, Any]], schema: pa.Schema) -> ray.data.Dataset:
    """A stream with a block for each task: a worker takes one at a time."""
    return ray.data.from_arrow([table_of([task], schema) for task in tasks])


def pool(workers: int, tasks: int, *, elastic: bool = True) -> ray.data.ActorPoolStrategy:
    """So many workers, but no more than tasks; an elastic pool grows onto nodes that join while it works."""
    start = min(workers, tasks)
    return ray.data.ActorPoolStrategy(
        min_size=start,
        max_size=tasks if elastic else start,
        max_tasks_in_flight_per_actor=2,  # the next one is there; the others wait for whoever is free first
    )


def made_with(*arguments: Any) -> dict[str, Any]:
    """What a worker is made with. It takes one row at a time, as a table."""
    return {"fn_constructor_args": arguments, "batch_format": "pyarrow", "batch_size": 1}


def rows(stream: ray.data.Dataset) -> Iterator[Any]:
    """Rows of a type of `curation.tasks` as they come; what a killed worker had in hand may come twice."""
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            yield from rows_of(batch)
    except ray.exceptions.RayError as error:
        raise _raised_by_worker(error) from error


def _raised_by_worker(error: ray.exceptions.RayError) -> Exception:
    """The error itself, where it is one that the driver has an answer to, out of Ray's wrapping."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.OutOfDiskError) or isinstance(cause, ray.exceptions.OutOfDiskError):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
    if not isinstance(cause, OSError | ValueError | LeaseLost):
        return error
    # Ray appends advice on its own settings; in an OSError it comes to stand for the file's name.
    texts = [a.partition("Failed to apply UDF")[0].rstrip() if isinstance(a, str) else a for a in cause.args]
    cause.args = tuple(a for a in texts if a != "")
    return OSError(*cause.args) if isinstance(cause, OSError) else cause
