"""The flow on Ray: sources are measured and scored, accepted clips are cut into shards.

The same code runs on a laptop and on a cluster. Workers are pure, but for shards, which each appear whole
under a planned name; everything else is committed by the driver, once, whatever is retried underneath.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data

from curation.config import Config
from curation.workers import Cutter, Measurer, ModelScorer

Row = dict[str, Any]


def measured(parts: list[Row], config: Config, location: str) -> Iterator[Row]:
    """Rows of `workers.STREAM`: the candidate clips of each part with their scores, and its sources."""
    plain = config.model_dump(mode="json")
    shares = _cpu_shares(config)
    stream = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        Measurer,
        fn_constructor_args=(plain, location),
        batch_format="pyarrow",
        batch_size=1,  # a part: a few sources
        num_cpus=shares.measure_cpus,
        compute=ray.data.ActorPoolStrategy(size=min(shares.measure_workers, len(parts))),
    )
    for name in config.model_scorers:
        stream = stream.map_batches(
            ModelScorer,
            fn_constructor_args=(plain, name),
            batch_format="pyarrow",
            batch_size=config.run.model_batch_clips,
            num_cpus=shares.model_cpus,
            num_gpus=shares.model_gpus,
            compute=ray.data.ActorPoolStrategy(size=config.run.model_workers),
        )
    yield from _rows(stream)


def cut(tasks: list[Row], config: Config, location: str, config_hash: str) -> Iterator[Row]:
    """One row per shard that was written: name, rows, bytes, seconds of video, failures."""
    workers = max(1, int(_cluster("CPU") // config.run.cut_cpus))
    stream = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        Cutter,
        fn_constructor_args=(config.model_dump(mode="json"), location, config_hash),
        batch_format="pyarrow",
        batch_size=1,  # a shard
        num_cpus=config.run.cut_cpus,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(tasks))),
    )
    yield from _rows(stream)


def _rows(stream: ray.data.Dataset) -> Iterator[Row]:
    for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        assert isinstance(batch, pa.Table)
        yield from batch.to_pylist()


class _cpu_shares:
    """CPUs per worker, so that measuring and every model fit on the cluster side by side."""

    def __init__(self, config: Config):
        run = config.run
        total = max(1.0, _cluster("CPU"))
        models = len(config.model_scorers)
        gpus = _cluster("GPU")
        share = gpus / max(1, models * run.model_workers)  # of the GPUs there are, if any
        self.model_gpus = run.model_gpus if run.model_gpus is not None else min(1.0, share)
        # On a machine with fewer CPUs than stages each stage takes a part of one.
        self.model_cpus = min(run.model_cpus, total / (models + 1) / run.model_workers)
        left = total - self.model_cpus * models * run.model_workers
        self.measure_cpus = min(run.measure_cpus, left)
        self.measure_workers = run.measure_workers or max(1, int(left / self.measure_cpus + 1e-6))


def _cluster(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0.0))


@contextlib.contextmanager
def session(config: Config) -> Iterator[None]:
    """A Ray to work on: the caller's, the cluster's (in a Ray job, or by address), or a quiet local one."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Rows carry pictures: small blocks keep what is under way in memory small.
    context.target_max_block_size = 16 << 20
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    address = config.run.ray_address or os.environ.get("RAY_ADDRESS")
    with _muted_stderr():  # Ray announces the log level there; what goes wrong is raised
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=_cpus(),
                object_store_memory=config.run.object_store_mb << 20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        yield
    finally:
        ray.shutdown()


def _cpus() -> int:
    """CPUs that this process may use: fewer than the machine has, in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Send file descriptor 2 to nowhere for a moment: native code does not know `sys.stderr`."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
