"""The flow on Ray: sources are measured and scored, accepted clips are cut into shards.

The same code runs on a laptop and on a cluster. Workers are pure, but for shards, which each appear whole
under a planned name; everything else is committed by the driver, once, whatever is retried underneath.
Ray Data replaces a worker that was killed, and gives what it had in hand to another one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pyarrow as pa
import ray
import ray.data
import ray.exceptions

from curation.captions.makers import is_local, make_rewriter
from curation.cluster.caption_workers import ClipReader, ModelCaptioner, Step
from curation.cluster.workers import Cutter, Looker, Measurer, ModelScorer, note, probed, source_row
from curation.config.schema import Config, ConfigError
from curation.decode import segments
from curation.progress import Stopped
from curation.sandbox.parent import SourceFailed
from curation.store.lease import LeaseLost

Row = dict[str, Any]


def measured(parts: list[Row], config: Config, location: str) -> Iterator[Row]:
    """Rows of `workers.STREAM`: the candidate clips of each part with their scores, and its sources."""
    parts, long = segments.set_apart(parts, _cpu_shares(config).measure_workers, config)
    if parts:
        yield from _rows(_measuring(parts, config, location))
    if long:
        yield from _in_pieces(long, config, location)


def _measuring(parts: list[Row], config: Config, location: str) -> ray.data.Dataset:
    plain = config.model_dump(mode="json")
    shares = _cpu_shares(config)
    stream = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        Measurer,
        fn_constructor_args=(plain, location),
        batch_format="pyarrow",
        batch_size=1,  # a part: a few sources
        num_cpus=shares.measure_cpus,
        compute=_pool(shares.measure_workers, len(parts), elastic=config.run.measure_workers is None),
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
    return stream


def _in_pieces(long: dict[str, segments.Long], config: Config, location: str) -> Iterator[Row]:
    """The same rows for sources that several workers take apart: all look for cuts, then all score."""
    looks, parts = [], []
    for source in long.values():
        try:
            looks += source.looks(probed(source.uri, config), config)
        except (SourceFailed, segments.NotInPieces) as error:
            yield note(f"measured in one piece, as {error}: {source.uri}")
            parts.append(source.whole())
    for row in _rows(_looking(looks, config)) if looks else ():
        yield {"part": "", "kind": "spent", "data": row["spent"]}
        try:
            parts += long[row["source_id"]].looked(row, config) or []
        except segments.NotInPieces as error:
            yield note(f"measured in one piece, as {error}: {long[row['source_id']].uri}")
            parts.append(long[row["source_id"]].whole())
    again = []
    for row in _rows(_measuring(parts, config, location)):
        if row["kind"] != "group":
            yield row
            continue
        done = json.loads(row["data"])
        source = long[done["source_id"]]
        if (went_well := source.scored(done)) is not None:
            if went_well:
                yield {"part": source.part, **source_row(source.source, source.measured(), config, 0)}
            else:
                again.append(source.whole())
    if again:
        yield from _rows(_measuring(again, config, location))


def _looking(looks: list[Row], config: Config) -> ray.data.Dataset:
    shares = _cpu_shares(config)
    return ray.data.from_items(looks, override_num_blocks=len(looks)).map_batches(
        Looker,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_format="pyarrow",
        batch_size=1,  # a piece of a source
        num_cpus=shares.measure_cpus,
        compute=_pool(shares.measure_workers, len(looks), elastic=config.run.measure_workers is None),
    )


def cut(tasks: list[Row], config: Config, location: str, config_hash: str) -> Iterator[Row]:
    """One row per shard that was written: name, rows, bytes, seconds of video, failures."""
    workers = max(1, int(_cluster("CPU") // config.run.cut_cpus))
    stream = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        Cutter,
        fn_constructor_args=(config.model_dump(mode="json"), location, config_hash),
        batch_format="pyarrow",
        batch_size=1,  # a shard
        num_cpus=config.run.cut_cpus,
        compute=_pool(workers, len(tasks)),
    )
    yield from _rows(stream)


def captioned(tasks: list[Row], config: Config, location: str, step: Step) -> Iterator[Row]:
    """Rows of `caption_workers.ANSWERS`: the captions of each clip of `caption.tasks`."""
    plain = config.model_dump(mode="json")
    shares = _caption_shares(config, step)
    stream = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        ClipReader,
        fn_constructor_args=(plain, location, step),
        batch_format="pyarrow",
        batch_size=1,  # a few batches of clips
        num_cpus=shares.reader_cpus,
        compute=ray.data.ActorPoolStrategy(size=min(shares.readers, len(tasks))),
    )
    stream = stream.map_batches(
        ModelCaptioner,
        fn_constructor_args=(plain, step),
        batch_format="pyarrow",
        batch_size=1,  # a batch of clips
        num_cpus=shares.cpus,
        num_gpus=shares.gpus,
        compute=ray.data.ActorPoolStrategy(size=shares.workers),
    )
    yield from _rows(stream)


def _pool(workers: int, tasks: int, *, elastic: bool = True) -> ray.data.ActorPoolStrategy:
    """So many workers, but no more than tasks; an elastic pool grows onto nodes that join while it works."""
    start = min(workers, tasks)
    return ray.data.ActorPoolStrategy(
        min_size=start,
        max_size=tasks if elastic else start,
        max_tasks_in_flight_per_actor=2,  # the next one is there; the others wait for whoever is free first
    )


def _rows(stream: ray.data.Dataset) -> Iterator[Row]:
    """Rows as they come; what a killed worker had in hand may come twice."""
    try:
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            assert isinstance(batch, pa.Table)
            yield from batch.to_pylist()
    except ray.exceptions.RayError as error:
        raise _raised_by_worker(error) from error


def _raised_by_worker(error: ray.exceptions.RayError) -> Exception:
    """The error itself, where it is one that the driver has an answer to, out of Ray's wrapping."""
    cause = getattr(error, "cause", None)
    if isinstance(error, ray.exceptions.OutOfDiskError) or isinstance(cause, ray.exceptions.OutOfDiskError):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
    if not isinstance(cause, OSError | ValueError):
        return error
    # Ray appends advice on its own settings; in an OSError it comes to stand for the file's name.
    texts = [a.partition("Failed to apply UDF")[0].rstrip() if isinstance(a, str) else a for a in cause.args]
    cause.args = tuple(a for a in texts if a != "")
    return OSError(*cause.args) if isinstance(cause, OSError) else cause


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


class _caption_shares:
    """CPUs and GPUs for captioning: the model first, what decodes pictures for it beside it."""

    def __init__(self, config: Config, step: Step):
        run = config.run
        total, gpus = max(1.0, _cluster("CPU")), _cluster("GPU")
        local = is_local(config, step)
        # One actor holds a server's bound on concurrent requests.
        self.workers = run.caption_workers if local else 1
        share = min(1.0, gpus / self.workers)
        self.gpus = (share if run.caption_gpus is None else run.caption_gpus) if local else 0.0
        self.cpus = min(run.caption_cpus, total / 2 / self.workers)
        left = total - self.cpus * self.workers
        self.reader_cpus = min(1.0, left)
        # Four decode about as fast as any model that one GPU holds looks, or any server answers.
        self.readers = min(
            run.caption_readers or 4 * self.workers, max(1, int(left / self.reader_cpus + 1e-6))
        )


def check_shares(config: Config) -> None:
    """Raises `ConfigError` where a worker takes more than any machine has: Ray would wait for ever for one
    that does."""
    steps: list[Step] = ["caption"] if config.captions.by_model else []
    if make_rewriter(config) is not None:
        steps.append("rewrite")
    asked = []
    for step in steps:
        shares = _caption_shares(config, step)
        remedy = "run.caption_gpus=0 captions on CPUs; null takes what is there"
        asked.append(("caption_gpus", "GPU", shares.gpus, "each captioning worker", remedy))
        asked.append(("caption_cpus", "CPU", shares.cpus, "each captioning worker", "set it to at most that"))
    if config.model_scorers:
        remedy = "run.model_gpus=0 scores on CPUs; null takes what is there"
        who = f"each worker of {', '.join(config.model_scorers)}"
        asked.append(("model_gpus", "GPU", _cpu_shares(config).model_gpus, who, remedy))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for key, resource, taken, who, remedy in asked:
        most = max((float(node.get(resource, 0.0)) for node in nodes), default=0.0)
        if taken > most:
            raise ConfigError(
                f"run.{key}: {who} takes {taken:g} {resource}s, and no machine of this cluster has more than "
                f"{most:g} (all together: {_cluster(resource):g}); {remedy}"
            )


def nodes() -> int:
    """How many machines are in the cluster at hand."""
    if not ray.is_initialized():
        return 1
    return sum(node["Alive"] for node in ray.nodes())


def _cluster(resource: str) -> float:
    return float(ray.cluster_resources().get(resource, 0.0))


@contextlib.contextmanager
def session(config: Config) -> Iterator[None]:
    """A Ray to work on: the caller's, the cluster's (in a Ray job, or by address), or a quiet local one,
    of which nothing is left afterwards. Raises `ConfigError` where workers take what no machine has."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Rows carry pictures: small blocks keep what is under way in memory small.
    context.target_max_block_size = 16 << 20
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = 3  # killed while they started
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error that ends the build is raised, too
    if ray.is_initialized():
        check_shares(config)
        yield
        return
    address = config.run.ray_address or os.environ.get("RAY_ADDRESS")
    if not address:
        with _local_ray(config):
            yield
        return
    try:
        with _quiet_start():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        raise ConfigError(
            f"no Ray cluster lets us in at {address} (RAY_ADDRESS, or run.ray_address): {error}; one with "
            "tokens wants RAY_AUTH_MODE=token, and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
        ) from error
    try:
        check_shares(config)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _local_ray(config: Config) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _session_folder() as folder:
        try:
            with _quiet_start():
                ray.init(
                    address="local",
                    num_cpus=_cpus(),
                    object_store_memory=config.run.object_store_mb << 20,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
            check_shares(config)
            yield
        except (OSError, ValueError, LeaseLost, Stopped):
            raise
        except Exception:
            _keep_logs(folder)
            raise
        finally:
            _end_local_ray(folder)


def _end_local_ray(folder: str) -> None:
    """Shut Ray down and see all its processes go. When interrupted, they are killed and not waited for.

    A driver that is killed takes them along, too: the kernel kills Ray's daemons with it, and workers end
    when they have lost those.
    """
    processes = _processes(folder)
    try:
        ray.shutdown()
        _wait(processes, 3)
    finally:
        processes |= _processes(folder)  # what had just been started
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _wait(processes, 1)


def _processes(folder: str) -> set[psutil.Process]:
    """Ray's daemons that work in the folder, whoever their parent is by now, and all that they started."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        # Some end while we look, others are not ours to look at.
        with contextlib.suppress(psutil.Error):
            if any(a.startswith("--") and folder + "/" in a for a in process.cmdline()):
                found |= {process, *process.children(recursive=True)}
    return found


def _wait(processes: set[psutil.Process], seconds: float) -> None:
    end = time.monotonic() + seconds
    while any(map(_lives, processes)) and time.monotonic() < end:
        time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:  # in a container nobody may reap the dead
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


_FOLDERS = "reelmill-"
_MARKER = "driver"
# What Ray appends for its sockets; their names may have 107 bytes.
_SOCKET = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@contextlib.contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for a local Ray's sockets, logs and spilled objects.

    A lock on a file in it is held until the driver ends, however it ends: a folder that nobody holds is one
    of a killed driver, and the next one removes it.
    """
    place = tempfile.gettempdir()
    if len(os.fsencode(place + "/" + _FOLDERS + "12345678" + _SOCKET)) > 107:
        place = "/tmp"
    _sweep(place)
    folder = tempfile.mkdtemp(prefix=_FOLDERS, dir=place)
    try:
        # It gets its name when it is locked: until then a sweep leaves the folder alone.
        with open(os.path.join(folder, "_"), "w") as marker:
            with contextlib.suppress(OSError):  # without locks nothing is swept
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(marker.name, os.path.join(folder, _MARKER))
            marker.write(f"{os.getpid()}\n")
            marker.flush()
            yield folder
    finally:
        _remove_folder(folder)


def _sweep(place: str) -> None:
    for folder in glob.glob(os.path.join(glob.escape(place), _FOLDERS + "*")):
        # Somebody else's, in use, on its way out, or not such a folder: not ours to remove.
        with contextlib.suppress(OSError):
            if os.lstat(folder).st_uid == os.getuid():
                with open(os.path.join(folder, _MARKER), "r+") as marker:
                    fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not _processes(folder):  # still dying, they would write again
                        _remove_folder(folder)


def _remove_folder(folder: str) -> None:
    # The marker goes last: should a dying daemon still have written something, the next sweep finds it.
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        elif name != _MARKER:
            os.unlink(path)
    if os.listdir(folder) == [_MARKER]:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_logs(folder: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full, or Ray may not have come so far
        logs = os.path.join(folder, "session_latest", "logs")
        if os.path.isdir(logs):
            kept = shutil.copytree(logs, tempfile.mkdtemp(prefix=_FOLDERS + "logs-"), dirs_exist_ok=True)
            print(f"Ray's logs are kept in {kept}", file=sys.stderr)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """While Ray starts: it announces the log level (what goes wrong is raised), and takes SIGTERM."""
    of_driver = signal.getsignal(signal.SIGTERM)
    try:
        with _muted_stderr():
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, of_driver)


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
