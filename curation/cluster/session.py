"""A Ray to work on: the caller's, the cluster's, or a quiet local one of which nothing is left afterwards."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
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
import ray
import ray.data
import ray.exceptions

from curation.cluster.shares import check_shares
from curation.config.load import validated
from curation.config.schema import Config, ConfigError
from curation.decode.shots.scenes import detector_of
from curation.progress import Stopped
from curation.store.lease import LeaseLost
from filters.find import is_import_path


def nodes() -> int:
    """How many machines are in the cluster at hand."""
    if not ray.is_initialized():
        return 1
    return sum(node["Alive"] for node in ray.nodes())


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
    # Since 2.60 Ray ends a run in which no block has moved for 30 minutes. One source may take hours, and has
    # a deadline of its own.
    context.execution_no_progress_timeout_s = -1
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # an error that ends the build is raised, too
    if ray.is_initialized():
        _check(config)
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
        _check(config)
        yield
    finally:
        ray.shutdown()


def _check(config: Config) -> None:
    """Raises `ConfigError` where workers take what no machine has, or do not find a class of your own."""
    check_shares(config)
    plain = config.for_workers()
    names = [*plain["filters"], plain["captions"]["captioner"], plain["shots"]["detector"]]
    if not any(map(is_import_path, names)):
        return
    # Many workers would fail one after another, and each with a traceback.
    error = ray.get(ray.remote(num_cpus=0)(_error_of).remote(plain))
    if error:
        raise ConfigError(f"a worker of the cluster cannot use this configuration: {error}")


def _error_of(plain: dict[str, Any]) -> str | None:
    try:
        detector_of(validated(plain), None)
    except ValueError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _local_ray(config: Config) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _session_folder() as folder:
        try:
            _start_local_ray(config, folder)
            _check(config)
            yield
        except (OSError, ValueError, LeaseLost, Stopped):
            raise
        except Exception:
            _keep_logs(folder)
            raise
        finally:
            _end_local_ray(folder)


def _start_local_ray(config: Config, folder: str) -> None:
    """Ray gives itself 30 seconds to start, which a busy machine may not keep: it is started twice at most.
    Raises `Stopped` when that did not help."""
    for attempt in range(_STARTS):
        try:
            with _quiet_start():
                ray.init(
                    address="local",
                    num_cpus=_cpus(),
                    object_store_memory=config.run.object_store_mb << 20,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=os.path.join(folder, _RAY),
                )
            return
        except Exception as error:  # Ray has no type of its own for this
            no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if no_room or isinstance(error, ValueError):  # which no second attempt changes
                raise
            if attempt == _STARTS - 1:
                raise Stopped(
                    f"Ray did not start on this machine in {_STARTS} attempts ({_one_line(error)}), as "
                    "happens where the machine is busy or short of memory; run the same command again when "
                    "less is going on"
                ) from error
            _end_local_ray(folder)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


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


_STARTS = 2
_FOLDERS = "reelmill-"
_MARKER = "driver"
_RAY = "r"
# What is appended for Ray's sockets, whose names may have 107 bytes.
_SOCKET = f"/{_RAY}/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@contextlib.contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for a local Ray's sockets, logs and spilled objects.

    Only this user can enter it. Ray's own folder is `_RAY` inside, since Ray opens that one, with the sockets
    in it, to all users. A lock on a file is held until the driver ends, however it ends: a folder that nobody
    holds is one of a killed driver, and the next one removes it.
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
        logs = os.path.join(folder, _RAY, "session_latest", "logs")
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
