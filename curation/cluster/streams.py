"""Makes Ray Data streams, and gets rows and plain errors out of them."""

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
    """A stream with one block for each task. A worker takes one block at a time."""
    return ray.data.from_arrow([table_of([task], schema) for task in tasks])


def pool(workers: int, tasks: int, *, elastic: bool = True) -> ray.data.ActorPoolStrategy:
    """A pool of `workers`, at most one per task. An elastic pool grows when nodes join the cluster."""
    start = min(workers, tasks)
    return ray.data.ActorPoolStrategy(
        min_size=start,
        max_size=tasks if elastic else start,
        max_tasks_in_flight_per_actor=2,  # one runs and one is ready; the rest wait for a free worker
    )


def made_with(*arguments: Any) -> dict[str, Any]:
    """The constructor arguments of a worker, and its batch options: one row at a time, as a table."""
    return {"fn_constructor_args": arguments, "batch_format": "pyarrow", "batch_size": 1}


def rows(stream: ray.data.Dataset) -> Iterator[Any]:
    """Yield rows of a type of `curation.tasks` as they come. Rows of a killed worker may come twice."""
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            yield from rows_of(batch)
    except ray.exceptions.RayError as error:
        raise _raised_by_worker(error) from error


def _raised_by_worker(error: ray.exceptions.RayError) -> Exception:
    """The original error without Ray's wrapping, if the driver can handle that kind of error."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.OutOfDiskError) or isinstance(cause, ray.exceptions.OutOfDiskError):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
    if not isinstance(cause, OSError | ValueError | LeaseLost):
        return error
    # Ray appends advice on its own settings. In an OSError, this advice takes the place of the file's name.
    texts = [a.partition("Failed to apply UDF")[0].rstrip() if isinstance(a, str) else a for a in cause.args]
    cause.args = tuple(a for a in texts if a != "")
    return OSError(*cause.args) if isinstance(cause, OSError) else cause
