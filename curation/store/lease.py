"""The lease: one command at a time writes to a folder, be it a dataset, a run or an export.

`_lease.json` in the folder names the process that works there and carries its heartbeat. On a local file
system the file is locked (flock) as long as the lease is held: the kernel gives it up when the process dies,
so there is no race and nothing to wait for. On an object store, and on file systems without flock, a lease
whose heartbeat has stopped is taken over, and no other. There the store sees to it that of two who begin, or
take over, one is refused (`conditional`). On a store that cannot, it is a promise of politeness: the two are
told apart by who wrote last. A command that others gave up for dead stops at its next `check`, and so do its
workers, who look for its token (`fence`).
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import psutil

from curation.store.conditional import StoredFile
from curation.store.dataset import LEASE, Dataset, DatasetError

_RECORD_BYTES = 1024  # always: a heartbeat then needs no new room on a full disk
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_FLOCK = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK}


class LeaseHeld(ValueError):
    """Somebody else works in the folder; the message names them and says what to do."""


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
    # A host's name may be that of many machines: of containers, and of copies of one image.
    kernel: str  # its boot
    processes: str  # the namespace in which `pid` is a number

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(_RECORD_BYTES) + b"\n"

    @property
    def is_of_this_kernel(self) -> bool:
        return self.kernel == _kernel()

    @property
    def is_of_this_host(self) -> bool:
        """Whether its process can be asked for."""
        return self.is_of_this_kernel and self.processes == _processes()

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
            kernel=str(found.get("kernel", "")),  # version 0.1.0 wrote none
            processes=str(found.get("processes", "")),
        )
        record.age_seconds()
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return record if 0 < record.pid < 1 << 31 else None


def _now(precision: str = "seconds") -> str:
    return datetime.now(UTC).isoformat("T", precision)


def _kernel() -> str:
    """Of this machine, since it was started."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _processes() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "of the machine"


class _File(Protocol):
    """Where the record is kept."""

    def read(self) -> bytes: ...  # raises FileNotFoundError
    def write(self, data: bytes) -> None: ...  # raises FileExistsError when another was quicker
    def remove(self) -> None: ...
    def close(self) -> None: ...


class _LockedFile:
    """A local file whose lock we hold. Raises BlockingIOError when another process does, and OSError of
    `_NO_FLOCK` where there are no locks."""

    def __init__(self, path: str):
        self._path = path
        while True:
            # Python's descriptors are not inherited by programs that we start: a daemon that outlives us
            # would keep the lock. A link is not followed: somebody else's dataset could have one to any file
            # of this machine, which we would overwrite.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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


class _UnlockedFile:
    """On a local file system without locks."""

    def __init__(self, dataset: Dataset, name: str):
        self._dataset = dataset
        self._name = name

    def read(self) -> bytes:
        return self._dataset.read(self._name)

    def write(self, data: bytes) -> None:
        self._dataset.write(self._name, data)

    def remove(self) -> None:
        self._dataset.remove(self._name)

    def close(self) -> None:
        pass


def _without_lock(dataset: Dataset, name: str = LEASE) -> _File:
    return _UnlockedFile(dataset, name) if dataset.is_local else StoredFile(dataset.address(name))


def _found(file: _File) -> _Record | None:
    try:
        return _decode(file.read())
    except FileNotFoundError:
        return None


class Lease:
    """`with Lease(dataset, "build") as lease:` and `lease.check()` before every write. Any folder will do.

    Raises `LeaseHeld` on entering when another process works there, and `DatasetError` where the folder
    cannot be written. `takeover_seconds` without a
    heartbeat is a dead holder, where there are no locks; `settle_seconds` is what two commands
    that write at the same moment need to see each other's record on a store. `say` is told of a wait.
    `name` is the lease's file: another one than `_lease.json` where the work is one file of the folder.
    A folder that was made for the lease goes with it, unless something was written there.
    """

    def __init__(
        self,
        dataset: Dataset,
        command: str,
        *,
        heartbeat_seconds: float = 10.0,
        takeover_seconds: float = 60.0,
        settle_seconds: float = 2.0,
        say: Callable[[str], None] = lambda text: None,
        name: str = LEASE,
    ):
        self._dataset = Dataset(dataset.location)  # its own: the caller's may ask `check` before each write
        self._heartbeat_seconds = heartbeat_seconds
        self._takeover_seconds = takeover_seconds
        self._settle_seconds = settle_seconds
        self._say = say
        self._name = name
        self._made: list[str] = []  # folders, the innermost first
        self._record = _Record(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_start=psutil.Process().create_time(),
            command=command,
            token=uuid.uuid4().hex,
            started=_now(),
            heartbeat=_now("milliseconds"),
            kernel=_kernel(),
            processes=_processes(),
        )
        self._file: _File
        self._lost = ""  # why, once it is
        self._failure = ""  # of the last heartbeat
        self._beaten = (time.monotonic(), time.time())
        self._beating = threading.Lock()
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def token(self) -> str:
        """For workers: see `fence`."""
        return self._record.token

    def __enter__(self) -> Lease:
        try:
            self._file = self._open()
            try:
                self._take()
            except BaseException:
                self._file.close()
                self._remove_folders()
                raise
        except (LeaseHeld, DatasetError):
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
        self._remove_folders()

    def check(self) -> None:
        """Raises `LeaseLost` when another build has taken over, or may have."""
        # The thread may not have run for long: a stopped process goes on here first.
        if not self._lost and self._silence_seconds() > 2 * self._heartbeat_seconds:
            self._beat()
            silence = self._silence_seconds()
            if not self._lost and not self._is_locked and silence > self._takeover_seconds:
                self._lost = f"no heartbeat could be written for {silence:.0f} s ({self._failure})"
        if self._lost:
            raise LeaseLost(f"this process has lost {self._dataset.address(self._name)}: {self._lost}")

    @property
    def _is_locked(self) -> bool:
        return isinstance(self._file, _LockedFile)

    def _open(self) -> _File:
        if not self._dataset.is_local:
            return _without_lock(self._dataset, self._name)
        path = self._dataset.path(self._name)
        self._make_folders(os.path.dirname(path))
        try:
            return _LockedFile(path)
        except BlockingIOError:
            raise LeaseHeld(self._refusal(self._wait_for_name())) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DatasetError(
                    f"{path} is a link, where a file of reelmill should be; remove it"
                ) from error
            if error.errno not in _NO_FLOCK:
                raise
            return _without_lock(self._dataset, self._name)

    def _make_folders(self, folder: str) -> None:
        above = folder
        while not os.path.isdir(above):
            self._made.append(above)
            above = os.path.dirname(above)
        os.makedirs(folder, exist_ok=True)

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in self._made:
                os.rmdir(folder)

    def _wait_for_name(self) -> _Record | None:
        """Who holds the lock: in the first moments the file is empty, or still names a dead process."""
        found = None
        for _ in range(20):
            found = _found(_without_lock(self._dataset, self._name))
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
        except (
            FileExistsError
        ):  # or it is our own first put, repeated by the store's library: the token tells
            pass
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
        if self._is_locked and found.is_of_this_kernel:
            return False  # which has given its lock away
        if found.is_of_this_host:
            if found.process_lives():
                return True
            # Copies of a virtual machine share all that names it, and its workers may live on for a while.
            rest = min(self._takeover_seconds, self._takeover_seconds - found.age_seconds())
            if rest > 1:
                place = self._dataset.location
                self._say(f"{found} has ended and left {place} behind: it is free in {rest:.0f} s")
        elif abs(found.age_seconds()) < self._takeover_seconds:
            return True
        else:
            rest = 0.0
        # Old by our clock, which may differ from the other's: does the heart beat?
        time.sleep(max(rest, 1.5 * self._heartbeat_seconds))
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
            try:
                if not self._renewed():
                    self._renewed()  # whoever was quicker is there to be read
            except FileNotFoundError:
                self._lost = "it was removed, so another build may run, or may have run"
            except Exception as error:  # a store's client library may raise anything
                self._failure = f"{type(error).__name__}: {error}"

    def _renewed(self) -> bool:
        """False when another has written since we read."""
        clocks = (time.monotonic(), time.time())
        found = _decode(self._file.read())
        if found is not None and found.token != self._record.token:
            self._lost = f"{found} took over"
            return True
        try:
            self._file.write(self._stamped())
        except FileExistsError:
            return False
        self._beaten = clocks
        return True

    def _silence_seconds(self) -> float:
        # The one clock stands still while a laptop sleeps, the other may be set.
        monotonic, wall = self._beaten
        return max(time.monotonic() - monotonic, time.time() - wall)


def holder(dataset: Dataset, *, takeover_seconds: float = 60.0) -> str | None:
    """Who works on the dataset now, if anybody does. Changes nothing."""
    found = _found(_without_lock(dataset))
    if found is None:
        return None
    if found.is_of_this_host:
        lives = found.process_lives()
    else:
        lives = abs(found.age_seconds()) < takeover_seconds
    return f"{found} is running" if lives else None


def fence(dataset: Dataset, token: str) -> Callable[[], None]:
    """The guard of a worker. It raises `LeaseLost` when the command that the worker works for holds the lease
    no longer: it has ended, or others took it for dead."""
    file = _without_lock(Dataset(dataset.location))

    def check() -> None:
        try:
            found = _decode(file.read())
        except FileNotFoundError:
            if not dataset.exists():
                return  # on a disk that this machine does not share; the driver will say so
            raise LeaseLost(f"{dataset.address(LEASE)} was removed: the command has ended") from None
        if found is not None and found.token != token:
            raise LeaseLost(f"{found} took over {dataset.location}")

    return check
