"""The lease: one build at a time, whatever happens to its holder. Real processes, real kills."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from curation.store.conditional import StoredFile
from curation.store.dataset import LEASE, Dataset, DatasetError
from curation.store.lease import Lease, LeaseHeld, LeaseLost, _kernel, _processes, holder

ROOT = Path(__file__).parents[3]
QUICK: dict[str, Any] = {"heartbeat_seconds": 0.05, "takeover_seconds": 0.6, "settle_seconds": 0.1}

# Does what each line says and answers with one line. `no_flock`: as on a file system without locks.
BUILDER = """
import errno, fcntl, json, os, subprocess, sys, time
from curation.store.dataset import Dataset
from curation.store.lease import Lease, LeaseHeld, LeaseLost

def no_flock(*_):
    raise OSError(errno.ENOTSUP, "no locks here")

def answer(text):
    print(json.dumps(text), flush=True)

lease = None
answer("ready")
for line in sys.stdin:
    word, *arguments = json.loads(line)
    if word == "no_flock":
        fcntl.flock = no_flock
        answer("ok")
    elif word == "take":
        location, at, options = arguments
        time.sleep(max(0, at - time.time()))
        lease = Lease(Dataset(location), "build", **options)
        try:
            lease.__enter__()
            answer("taken")
        except LeaseHeld as error:
            answer(str(error))
    elif word == "check":
        try:
            lease.check()
            answer("ours")
        except LeaseLost as error:
            answer(str(error))
    elif word == "leave":
        lease.__exit__(None, None, None)
        answer("left")
    elif word == "start_daemon":
        daemon = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False, start_new_session=True
        )
        answer(daemon.pid)
"""


class Builder:
    """Another process that takes and leaves the lease as told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILDER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "ready"

    def say(self, *words: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, *words: Any) -> Any:
        self.say(*words)
        return self.answer()

    def take(self, dataset: Dataset) -> str:
        return str(self.ask("take", dataset.location, 0, QUICK))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def builders() -> Iterator[Callable[[], Builder]]:
    started: list[Builder] = []

    def start() -> Builder:
        started.append(Builder())
        return started[-1]

    yield start
    for builder in started:
        builder.close()


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "dataset"))


@pytest.fixture
def remote() -> Iterator[Dataset]:
    """An object store; it lives in this process, so its builders are threads."""
    location = f"memory://{uuid.uuid4().hex}"
    yield Dataset(location)
    filesystem, root = fsspec.url_to_fs(location)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


@pytest.fixture
def unlocked(local: Dataset, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A local folder on a file system without locks."""

    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    return local


@pytest.fixture(params=["local", "unlocked", "remote"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Dataset)
    return found


def record(**changes: Any) -> dict[str, Any]:
    """What another host's living build would have written."""
    now = datetime.now(UTC).isoformat("T", "seconds")
    return {
        "host": "elsewhere",
        "pid": 4711,
        "process_start": 1.7e9,
        "command": "build",
        "token": "theirs",
        "started": now,
        "heartbeat": now,
        **changes,
    }


def of_this_machine(**changes: Any) -> dict[str, Any]:
    return record(host=socket.gethostname(), kernel=_kernel(), processes=_processes(), **changes)


def put(dataset: Dataset, content: dict[str, Any] | bytes) -> None:
    dataset.write(LEASE, content if isinstance(content, bytes) else json.dumps(content).encode())


def written(dataset: Dataset) -> dict[str, Any]:
    found = json.loads(dataset.read(LEASE))
    assert isinstance(found, dict)
    return found


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------
# Taking and leaving
# ---------------------------------------------------------------------------------------------------


def test_it_says_who_holds_it_beats_and_leaves_nothing(dataset: Dataset) -> None:
    with Lease(dataset, "build", **QUICK) as lease:
        first = written(dataset)
        assert (first["host"], first["pid"], first["command"]) == (socket.gethostname(), os.getpid(), "build")
        assert first["process_start"] == psutil.Process().create_time()
        assert abs((datetime.now(UTC) - datetime.fromisoformat(first["heartbeat"])).total_seconds()) < 5
        until(lambda: written(dataset)["heartbeat"] > first["heartbeat"])
        assert written(dataset) == {**first, "heartbeat": written(dataset)["heartbeat"]}
        lease.check()
        assert f"pid {os.getpid()} on {socket.gethostname()}" in str(holder(dataset))
    assert not dataset.exists(LEASE)
    assert holder(dataset) is None
    assert [t.name for t in threading.enumerate() if t.name == "lease"] == []


def test_a_second_one_is_refused_and_told_who_the_first_is(dataset: Dataset) -> None:
    with Lease(dataset, "build", **QUICK) as lease:
        with pytest.raises(LeaseHeld) as refusal, Lease(dataset, "select", **QUICK):
            pass
        for word in (
            "reelmill build",
            str(os.getpid()),
            socket.gethostname(),
            written(dataset)["started"],
            dataset.location,
        ):
            assert word in str(refusal.value)
        lease.check()
    with Lease(dataset, "select", **QUICK):
        assert written(dataset)["command"] == "select"


def test_an_error_inside_gives_it_back(dataset: Dataset) -> None:
    with pytest.raises(KeyboardInterrupt), Lease(dataset, "build", **QUICK):
        raise KeyboardInterrupt
    assert not dataset.exists(LEASE)


def test_asking_who_holds_it_creates_nothing(dataset: Dataset) -> None:
    assert holder(dataset) is None
    assert not dataset.exists("")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"host": "x"', b"\x00" * 1024, b"[1]", b"null", b"\xff\xfe{}"]
)
def test_a_file_that_says_nothing_does_not_block(dataset: Dataset, content: bytes) -> None:
    put(dataset, content)
    assert holder(dataset) is None
    with Lease(dataset, "build", **QUICK) as lease:
        assert written(dataset)["pid"] == os.getpid()
        lease._file.write(content)
        until(lambda: holder(dataset) is not None)  # the next heartbeat mends it
        lease.check()


@pytest.mark.parametrize(
    "changes", [{"pid": -1}, {"pid": 2**80}, {"pid": "x"}, {"heartbeat": "soon"}, {"heartbeat": "2026-01-01"}]
)
def test_a_file_with_nonsense_in_it_does_not_block(dataset: Dataset, changes: dict[str, Any]) -> None:
    put(dataset, record(**changes))
    assert holder(dataset) is None
    with Lease(dataset, "build", **QUICK):
        assert written(dataset)["pid"] == os.getpid()


# ---------------------------------------------------------------------------------------------------
# Processes of this host
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_builders_exactly_one_wins(
    tmp_path: Path, builders: Callable[[], Builder], locks: bool
) -> None:
    pair = [builders(), builders()]
    rng = random.Random(0)
    if not locks:
        assert [b.ask("no_flock") for b in pair] == ["ok", "ok"]
    winners = set()
    for i in range(40 if locks else 8):
        location = str(tmp_path / str(i % 4))  # new folders, and such as were used before
        at = time.time() + 0.02
        for builder in rng.sample(pair, 2):
            builder.say("take", location, at, QUICK)
        answers = [b.answer() for b in pair]
        assert answers.count("taken") == 1, answers
        winner = pair[answers.index("taken")]
        loser = next(b for b in pair if b is not winner)
        assert str(winner.process.pid) in answers[pair.index(loser)]
        winners.add(winner.process.pid)
        assert winner.ask("check") == "ours"
        assert winner.ask("leave") == "left"
    assert len(winners) == 2 or not locks


def test_the_lock_of_a_file_that_its_holder_has_just_removed_is_worth_nothing(
    local: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(local, of_this_machine(pid=1))
    flock, files = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not files:
            os.unlink(local.path(LEASE))
        files.append(fd)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lease(local, "build", **QUICK) as lease:
        assert len(files) == 2
        assert written(local)["pid"] == os.getpid()
        lease.check()
        with pytest.raises(LeaseHeld, match=str(os.getpid())), Lease(local, "build", **QUICK):
            pass


@pytest.mark.parametrize("locks", [True, False])
def test_a_killed_holder_does_not_block(
    local: Dataset, builders: Callable[[], Builder], locks: bool, request: pytest.FixtureRequest
) -> None:
    first = builders()
    if not locks:
        request.getfixturevalue("unlocked")
        first.ask("no_flock")
    for _ in range(3):
        assert first.take(local) == "taken"
        with pytest.raises(LeaseHeld, match=str(first.process.pid)), Lease(local, "build", **QUICK):
            pass
        daemon = first.ask("start_daemon")  # it outlives its parent, as Ray's may; the lock must not
        first.kill()
        try:
            assert local.exists(LEASE)
            assert holder(local) is None
            began = time.monotonic()
            with Lease(local, "build", **QUICK) as lease:
                lease.check()
                assert psutil.pid_exists(daemon)
            assert time.monotonic() - began < 1
        finally:
            os.kill(daemon, signal.SIGKILL)
        first = builders()
        if not locks:
            first.ask("no_flock")


def test_a_killed_holder_that_nobody_has_reaped_is_dead(
    local: Dataset, unlocked: Dataset, builders: Callable[[], Builder]
) -> None:
    first = builders()
    first.ask("no_flock")
    assert first.take(local) == "taken"
    first.process.send_signal(signal.SIGKILL)
    until(lambda: psutil.Process(first.process.pid).status() == psutil.STATUS_ZOMBIE)
    with Lease(unlocked, "build", **QUICK):
        pass


def test_a_process_that_was_given_the_same_number_is_not_the_holder(unlocked: Dataset) -> None:
    start = psutil.Process().create_time()
    put(unlocked, of_this_machine(pid=os.getpid(), process_start=start - 60))
    assert holder(unlocked) is None
    with Lease(unlocked, "build", **QUICK):
        pass


@pytest.mark.parametrize("locks", [True, False])
def test_a_paused_holder_keeps_it(
    local: Dataset, builders: Callable[[], Builder], locks: bool, request: pytest.FixtureRequest
) -> None:
    first = builders()
    if not locks:
        request.getfixturevalue("unlocked")
        first.ask("no_flock")
    assert first.take(local) == "taken"
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * QUICK["takeover_seconds"])
    with pytest.raises(LeaseHeld, match=str(first.process.pid)), Lease(local, "build", **QUICK):
        pass
    first.process.send_signal(signal.SIGCONT)
    assert first.ask("check") == "ours"
    assert first.ask("leave") == "left"


def test_a_paused_holder_notices_that_another_host_took_over(
    local: Dataset, builders: Callable[[], Builder]
) -> None:
    """Before its first write: `check` may come before the heartbeat thread does."""
    first = builders()
    first.ask("no_flock")
    assert first.take(local) == "taken"
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(4 * QUICK["heartbeat_seconds"])
    put(local, record())
    first.process.send_signal(signal.SIGCONT)
    assert "build (pid 4711 on elsewhere" in first.ask("check")
    assert first.ask("leave") == "left"
    assert written(local)["token"] == "theirs"


# ---------------------------------------------------------------------------------------------------
# Other hosts
# ---------------------------------------------------------------------------------------------------


def test_a_fresh_heartbeat_of_another_host_holds_even_if_we_got_the_lock(dataset: Dataset) -> None:
    put(dataset, record())
    assert "pid 4711 on elsewhere" in str(holder(dataset))
    with pytest.raises(LeaseHeld, match="pid 4711 on elsewhere"), Lease(dataset, "build"):
        pass
    assert written(dataset) == record(
        started=written(dataset)["started"], heartbeat=written(dataset)["heartbeat"]
    )


@pytest.mark.parametrize("age", [3600, -3600])
def test_an_old_heartbeat_of_another_host_is_watched_then_taken_over(dataset: Dataset, age: float) -> None:
    put(dataset, record(heartbeat=ago(age)))
    assert holder(dataset) is None
    began = time.monotonic()
    with Lease(dataset, "build", **QUICK) as lease:
        assert time.monotonic() - began >= QUICK["heartbeat_seconds"]
        assert written(dataset)["host"] == socket.gethostname()
        lease.check()


@pytest.mark.parametrize("skew", [3600, -3600])
def test_a_clock_that_differs_does_not_cost_a_living_holder_its_lease(dataset: Dataset, skew: float) -> None:
    put(dataset, record(heartbeat=ago(skew)))
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.1):
            content = json.dumps(record(heartbeat=ago(skew))).encode()
            if dataset.is_local:  # in place, as it does
                with open(dataset.path(LEASE), "r+b") as file:
                    file.write(content)
            else:
                dataset.write(LEASE, content)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match="elsewhere"):
            Lease(dataset, "build", heartbeat_seconds=0.4, settle_seconds=0.1).__enter__()
    finally:
        done.set()
        thread.join()


def test_a_place_that_cannot_be_written_is_told_in_a_line() -> None:
    says = r"^/proc/nowhere cannot be written: .*; check who may write there$"
    with pytest.raises(DatasetError, match=says):
        Lease(Dataset("/proc/nowhere"), "build").__enter__()


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_link_in_its_place_is_not_followed(local: Dataset, tmp_path: Path, there: bool) -> None:
    """A dataset of somebody else could have any file of this machine overwritten."""
    precious = tmp_path / "precious"
    if there:
        precious.write_text("of the user" * 500)
    os.makedirs(local.path(""), exist_ok=True)
    os.symlink(precious, local.path(LEASE))
    with pytest.raises(DatasetError, match=r"_lease\.json is a link.*; remove it$"):
        Lease(local, "build", **QUICK).__enter__()
    assert precious.exists() == there
    assert not there or precious.read_text() == "of the user" * 500


def test_of_many_builders_on_an_object_store_one_wins(remote: Dataset) -> None:
    outcomes: list[Lease | LeaseHeld] = []
    together = threading.Barrier(8)

    def take() -> None:
        lease = Lease(Dataset(remote.location), "build", **QUICK)
        together.wait()
        try:
            outcomes.append(lease.__enter__())
        except LeaseHeld as error:
            outcomes.append(error)

    for _ in range(5):
        outcomes.clear()
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        won = [o for o in outcomes if isinstance(o, Lease)]
        assert (len(won), len(outcomes)) == (1, 8)
        won[0].check()
        won[0].__exit__()


# ---------------------------------------------------------------------------------------------------
# Losing it
# ---------------------------------------------------------------------------------------------------


def test_another_token_in_the_file_is_a_lost_lease(dataset: Dataset) -> None:
    with Lease(dataset, "build", **QUICK) as lease:
        lease._file.write(json.dumps(record()).encode())
        until(lambda: is_lost(lease))
        with pytest.raises(LeaseLost, match="pid 4711 on elsewhere"):
            lease.check()
    assert written(dataset)["token"] == "theirs"  # not ours to remove, or to write over


def test_a_file_that_was_removed_is_a_lost_lease(dataset: Dataset) -> None:
    with Lease(dataset, "build", **QUICK) as lease:
        dataset.remove(LEASE)
        until(lambda: is_lost(lease))
        with Lease(dataset, "build", **QUICK) as second:
            second.check()
            with pytest.raises(LeaseLost, match=LEASE):
                lease.check()
            lease.__exit__()
            second.check()
            assert dataset.exists(LEASE)
        lease._file.close = lambda: None  # type: ignore[method-assign]


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except LeaseLost:
        return True
    return False


def test_a_full_disk_does_not_cost_a_lock(local: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with Lease(local, "build", **QUICK) as lease:
        time.sleep(2 * QUICK["takeover_seconds"])
        lease.check()
        with pytest.raises(LeaseHeld, match="just begun"), Lease(local, "build", **QUICK):
            pass
    assert not local.exists(LEASE)


def test_a_dataset_that_asks_before_it_writes_does_not_ask_the_heartbeat(remote: Dataset) -> None:
    with Lease(remote, "build", **QUICK) as lease:
        remote.guard = lease.check
        with lease._beating:  # no heartbeat for long, as after a pause
            time.sleep(4 * QUICK["heartbeat_seconds"])
        remote.write("dataset.json", b"{}")
        assert remote.read("dataset.json") == b"{}"


def test_a_store_that_takes_no_heartbeat_costs_the_lease_when_others_may_take_over(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(remote, "build", **QUICK) as lease:

        def broken(*_: object) -> None:
            raise ConnectionError("no route to the store")

        monkeypatch.setattr(StoredFile, "write", broken)
        began = time.monotonic()
        time.sleep(3 * QUICK["heartbeat_seconds"])
        lease.check()  # a few failures do not matter
        until(lambda: is_lost(lease))
        assert time.monotonic() - began >= 0.8 * QUICK["takeover_seconds"]
        with pytest.raises(LeaseLost, match="no route to the store"):
            lease.check()
        monkeypatch.undo()
