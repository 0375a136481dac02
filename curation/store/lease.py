"""The lease: one build at a time works on a dataset.

`_lease.json` in the dataset names the process that works on it and carries its heartbeat. On a local file
system the file is locked (flock) as long as the lease is held: the kernel gives it up when the process dies,
so there is no race and nothing to wait for. On an object store, and on file systems without flock, the
heartbeat alone decides, which is a promise of politeness: two builds that start within the same second are
told apart by who wrote last, and a build that others gave up for dead stops at its next `check`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import psutil

from curation.store.dataset import LEASE, Dataset

_RECORD_BYTES = 1024  # always: a heartbeat then needs no new room on a full disk
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK}


class LeaseHeld(ValueError):
    """Somebody else works on the dataset; the message names them and says what to do."""


class LeaseLost(RuntimeError):
    """The lease is no longer ours: whoever has it now may write, and we may not."""


@dataclass(frozen=True)
class _Record:
    """The content of the lease file. Times are UTC, in ISO format."""

    host: str
    pid: int
    process_start: float  # seconds since 1970: a process id alone is soon given to another process
    command: str
    token: str
    started: str
    heartbeat: str

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES) + b"\n"

    @property
    def is_of_this_host(self) -> bool:
        return self.host == socket.gethostname()

    def age_seconds(self) -> float:
        """Since the last heartbeat. Below 0 when the other's clock is ahead."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.heartbeat)).total_seconds()

    def process_lives(self) -> bool:
        """Of a record of this host. A process that was stopped (Ctrl-Z) lives."""
        try:
            process = psutil.Process(self.pid)
            is_it = (
                abs(process.create_time() - self.process_start) < 2
            )  # the boot time may be set by a second
            return is_it and process.status() != psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"reelmill {self.command} (pid {self.pid} on {self.host}, since {self.started})"


def _decode(data: bytes) -> _Record | None:
    """None where it is no record: empty, or cut short by a kill or a full disk."""
    try:
        found = json.loads(data)
        record = _Record(
            host=str(found["host"]),
            pid=int(found["pid"]),
            process_start=float(found["process_start"]),
            command=str(found["command"]),
            token=str(found["token"]),
            started=str(found["started"]),
            heartbeat=str(found["heartbeat"]),
        )
        record.age_seconds()
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return record if 0 < record.pid < 1 << 31 else None


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat("T", precision)


class _File(Protocol):
    """Where the record is kept."""

    def read(self) -> bytes: ...  # raises FileNotFoundError
    def write(self, data: bytes) -> None: ...
    def remove(self) -> None: ...
    def close(self) -> None: ...


class _LockedFile:
    """A local file whose lock we hold. Raises BlockingIOError when another process does, and OSError of
    `_NO_FLOCK` where there are no locks."""

    def __init__(self, path: str):
        self._path = path
        while True:
            # Python's descriptors are not inherited by programs that we start: a daemon that outlives us
            # would keep the lock.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_its_place():
                    return
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)  # between our opening and locking it, its holder has removed it

    def _is_at_its_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def read(self) -> bytes:
        if not self._is_at_its_place():
            raise FileNotFoundError(self._path)
        return os.pread(self._fd, 16 * _RECORD_BYTES, 0)

    def write(self, data: bytes) -> None:
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))

    def remove(self) -> None:
        if self._is_at_its_place():
            os.unlink(self._path)

    def close(self) -> None:
        os.close(self._fd)


class _Object:
    """A file without a lock: on an object store, or a file system that has none."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def read(self) -> bytes:
        return self._dataset.read(LEASE)

    def write(self, data: bytes) -> None:
        self._dataset.write(LEASE, data)

    def remove(self) -> None:
        self._dataset.remove(LEASE)

    def close(self) -> None:
        pass


def _found(file: _File) -> _Record | None:
    try:
        return _decode(file.read())
    except FileNotFoundError:
        return None


class Lease:
    """`with Lease(dataset, "build") as lease:` and `lease.check()` before every write.

    Raises `LeaseHeld` on entering when another process works on the dataset, and `DatasetError` where it
    cannot be written. `takeover_seconds` without a
    heartbeat is a dead holder, where its process cannot be asked for; `settle_seconds` is what two builds
    that write at the same moment need to see each other's record on an object store.
    """

    def __init__(
        self,
        dataset: Dataset,
        command: str,
        *,
        heartbeat_seconds: float = 10.0,
        takeover_seconds: float = 60.0,
        settle_seconds: float = 2.0,
    ):
        self._dataset = Dataset(dataset.location)  # its own: the caller's may ask `check` before each write
        self._heartbeat_seconds = heartbeat_seconds
        self._takeover_seconds = takeover_seconds
        self._settle_seconds = settle_seconds
        self._record = _Record(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=psutil.Process().create_time(),
            command=command,
            token=uuid.uuid4().hex,
            started=_now(),
            heartbeat=_now("milliseconds"),
        )
        self._file: _File
        self._lost = ""  # why, once it is
        self._failure = ""  # of the last heartbeat
        self._beaten = (time.monotonic(), time.time())
        self._beating = threading.Lock()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            self._file = self._open()
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
        except LeaseHeld:
            raise
        except Exception as error:  # what object stores raise is not always an OSError
            if self._dataset.is_local and (not isinstance(error, OSError) or error.errno in _NO_ROOM):
                raise
            raise self._dataset.refused("written", error) from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()
        self._beat()  # is it still ours?
        if not self._lost:
            # A file that stays does no harm: it names a process that has ended.
            with contextlib.suppress(OSError):
                self._file.remove()
        self._file.close()

    def check(self) -> None:
        """Raises `LeaseLost` when another build has taken over, or may have."""
        # The thread may not have run for long: a stopped process goes on here first.
        if not self._lost and self._silence_seconds() > 2 * self._heartbeat_seconds:
            self._beat()
            silence = self._silence_seconds()
            if not self._lost and not self._is_locked and silence > self._takeover_seconds:
                self._lost = f"no heartbeat could be written for {silence:.0f} s ({self._failure})"
        if self._lost:
            raise LeaseLost(f"this process has lost {self._dataset.address(LEASE)}: {self._lost}")

    @property
    def _is_locked(self) -> bool:
        return isinstance(self._file, _LockedFile)

    def _open(self) -> _File:
        if not self._dataset.is_local:
            return _Object(self._dataset)
        path = self._dataset.path(LEASE)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            return _LockedFile(path)
        except BlockingIOError:
            raise LeaseHeld(self._refusal(self._wait_for_name())) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return _Object(self._dataset)

    def _wait_for_name(self) -> _Record | None:
        """Who holds the lock: in the first moments the file is empty, or still names a dead process."""
        found = None
        for _ in range(20):
            found = _found(_Object(self._dataset))
            if found is not None and (not found.is_of_this_host or found.process_lives()):
                break
            time.sleep(0.05)
        return found

    def _take(self) -> None:
        found = _found(self._file)
        # Locks on network file systems may be known to one host only, so other hosts are asked for theirs.
        if found is not None and self._blocks(found):
            raise LeaseHeld(self._refusal(found))
        try:
            self._file.write(self._stamped())
        except OSError as error:
            if not self._is_locked or error.errno not in _NO_ROOM:
                raise
        if self._is_locked:
            return
        time.sleep(self._settle_seconds)
        found = _found(self._file)
        if found is None or found.token != self._record.token:
            raise LeaseHeld(self._refusal(found))

    def _blocks(self, found: _Record) -> bool:
        if found.is_of_this_host:
            return not self._is_locked and found.process_lives()
        if abs(found.age_seconds()) < self._takeover_seconds:
            return True
        # Old by our clock, which may differ from the other's: does the heart beat?
        time.sleep(1.5 * self._heartbeat_seconds)
        again = _found(self._file)
        return again is not None and (again.token, again.heartbeat) != (found.token, found.heartbeat)

    def _refusal(self, found: _Record | None) -> str:
        place = self._dataset.location
        if found is None:
            return f"another process has just begun to work on {place}: run this again when it has ended"
        text = f"{found} works on {place}: run this again when it has ended"
        if found.is_of_this_host:
            return f"{text}, or end it (kill {found.pid}; of a Ray job, ray job stop)"
        return (
            f"{text}. Should it be dead, {place} is free {self._takeover_seconds:.0f} s after its last sign"
        )

    def _stamped(self) -> bytes:
        self._record = replace(self._record, heartbeat=_now("milliseconds"))
        return self._record.encode()

    def _keep(self) -> None:
        while not self._leaving.wait(self._heartbeat_seconds) and not self._lost:
            self._beat()

    def _beat(self) -> None:
        """See whether the lease is ours, and write a sign of life. Raises nothing: time tells."""
        with self._beating:
            if self._lost:
                return
            clocks = (time.monotonic(), time.time())
            try:
                found = _decode(self._file.read())
                if found is not None and found.token != self._record.token:
                    self._lost = f"{found} took over"
                else:
                    self._file.write(self._stamped())
                    self._beaten = clocks
            except FileNotFoundError:
                self._lost = "it was removed, so another build may run, or may have run"
            except Exception as error:  # a store's client library may raise anything
                self._failure = f"{type(error).__name__}: {error}"

    def _silence_seconds(self) -> float:
        # The one clock stands still while a laptop sleeps, the other may be set.
        monotonic, wall = self._beaten
        return max(time.monotonic() - monotonic, time.time() - wall)


def holder(dataset: Dataset, *, takeover_seconds: float = 60.0) -> str | None:
    """Who works on the dataset now, if anybody does. Changes nothing."""
    found = _found(_Object(dataset))
    if found is None:
        return None
    if found.is_of_this_host:
        lives = found.process_lives()
    else:
        lives = abs(found.age_seconds()) < takeover_seconds
    return f"{found} is running" if lives else None
