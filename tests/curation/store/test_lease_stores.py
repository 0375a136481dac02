"""The lease on each kind of store: exclusive, also when puts are slow, and a fence for workers."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from curation.cluster.cutter import Cutter
from curation.config.load import load_config
from curation.decode.answers import EncodedAnswer
from curation.driver.manifest import write_manifest
from curation.store.conditional import StoredFile
from curation.store.dataset import LEASE, Dataset
from curation.store.lease import Lease, LeaseHeld, LeaseLost, fence
from curation.store.schema import SCORE_COLUMNS
from curation.tasks.arrow import table_of
from curation.tasks.cut import CUT_TASKS
from tests.curation.store.stores import s3, store
from tests.curation.store.test_lease import QUICK, ago, of_this_machine, put, record, until, written

__all__ = ["s3", "store"]

SLOW_SECONDS = 1.0  # longer than two that write at the same moment wait for each other


def late_puts(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[threading.Thread]]:
    """Puts of leases by the threads of the list arrive late; the event: one of them is under way."""
    write, under_way, slow = StoredFile.write, threading.Event(), list[threading.Thread]()

    def late(file: StoredFile, data: bytes) -> None:
        if threading.current_thread() in slow:
            under_way.set()
            time.sleep(SLOW_SECONDS)
        write(file, data)

    monkeypatch.setattr(StoredFile, "write", late)
    return under_way, slow


@pytest.mark.parametrize("before", ["nothing", "a dead holder's"])
def test_of_two_the_one_whose_put_arrives_late_is_refused(
    store: Dataset, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.is_local or (before != "nothing" and "s3" not in store.location):
        pytest.skip("a lock, or a store that replaces a file whatever is in it")
    if before != "nothing":
        put(store, record(heartbeat=ago(3600)))
    under_way, slow = late_puts(monkeypatch)
    outcomes: list[Any] = []

    def take() -> None:
        try:
            outcomes.append(Lease(store, "build", **QUICK).__enter__())
        except LeaseHeld as error:
            outcomes.append(error)

    thread = threading.Thread(target=take)
    slow.append(thread)
    thread.start()
    assert under_way.wait(10)
    with Lease(store, "select", **QUICK) as first:
        thread.join()
        (outcome,) = outcomes
        assert isinstance(outcome, LeaseHeld)
        assert "reelmill select" in str(outcome)
        until(lambda: written(store)["command"] == "select")
        first.check()
    assert not store.exists(LEASE)


def test_a_renewal_does_not_write_over_who_took_over(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our reading of the lease and our writing of it, another has taken it."""
    store = Dataset(f"{s3}/renewed")
    write = StoredFile.write
    with Lease(store, "build", **{**QUICK, "heartbeat_seconds": 60}) as lease:

        def overtaken(file: StoredFile, data: bytes) -> None:
            monkeypatch.setattr(StoredFile, "write", write)
            put(store, record())
            file.write(data)

        monkeypatch.setattr(StoredFile, "write", overtaken)
        lease._beat()
        assert written(store)["token"] == "theirs"
        with pytest.raises(LeaseLost, match="pid 4711 on elsewhere"):
            lease.check()


def test_a_store_that_answers_that_it_knows_no_conditions(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = StoredFile(f"{s3}/unconditional/x.json")
    pipe_file = file._fs.pipe_file

    def simple(path: str, data: bytes, **options: Any) -> Any:
        if options:
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        return pipe_file(path, data)

    monkeypatch.setattr(file._fs, "pipe_file", simple)
    with pytest.raises(FileNotFoundError):
        file.read()
    for data in (b"1", b"2"):
        file.write(data)
        assert file.read() == data


def test_another_machine_of_the_same_name_holds_it(store: Dataset) -> None:
    """Its process cannot be asked for, so that its heartbeat counts."""
    put(store, of_this_machine() | {"kernel": "another"})
    with pytest.raises(LeaseHeld, match=f"pid 4711 on {socket.gethostname()}"):
        Lease(store, "build", **{**QUICK, "takeover_seconds": 60}).__enter__()


def test_a_process_of_another_container_cannot_be_asked_for(store: Dataset) -> None:
    put(store, of_this_machine() | {"processes": "pid:[1]"})
    if store.is_local:  # but the lock is the kernel's, which is the same
        with Lease(store, "build", **QUICK) as lease:
            lease.check()
        return
    with pytest.raises(LeaseHeld, match="pid 4711"):
        Lease(store, "build", **{**QUICK, "takeover_seconds": 60}).__enter__()


def test_without_a_lock_only_a_heartbeat_that_has_stopped_is_taken_over(store: Dataset) -> None:
    """Of a process that has ended here, too: a copy of this machine would have the same names."""
    if store.is_local:
        pytest.skip("it has a lock")
    put(store, of_this_machine(process_start=1.0, heartbeat=ago(0)))
    began, said = time.monotonic(), list[str]()
    options = {**QUICK, "takeover_seconds": 3.0}
    with Lease(store, "build", **options, say=said.append) as lease:
        assert time.monotonic() - began >= 2.5
        lease.check()
    (line,) = said
    assert "pid 4711" in line
    assert "free in 3 s" in line


def test_folders_that_were_made_for_it_go_with_it(store: Dataset) -> None:
    inner = Dataset(f"{store.location}/a/b")
    with Lease(inner, "train", **QUICK):
        assert inner.exists(LEASE)
    assert not store.exists("")
    with Lease(inner, "train", **QUICK):
        inner.write("kept", b"")
    assert inner.exists("kept")


# --- workers --------------------------------------------------------------------------------------


def test_the_fence_of_a_worker(store: Dataset) -> None:
    store.write("dataset.json", b"{}")
    with Lease(store, "build", **QUICK) as lease:
        check = fence(Dataset(store.location), lease.token)
        check()
        put(store, record())
        with pytest.raises(LeaseLost, match="pid 4711 on elsewhere"):
            check()
    store.remove(LEASE)
    with pytest.raises(LeaseLost, match="was removed: the command has ended"):
        check()
    put(store, b"{")  # says nothing, as of a holder whose disk is full
    check()
    store.remove(LEASE)
    store.remove("dataset.json")
    check()  # a disk that this machine does not share: the driver misses the shard, and says so


@pytest.mark.parametrize("after", ["cutting", "writing"])
def test_a_worker_writes_no_shard_when_the_lease_is_lost(
    store: Dataset, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it cut, or while it wrote: both take minutes."""
    write_manifest(store, load_config(""))
    clip: dict[str, Any] = {"clip_id": "c", "source_id": "s", "uri": "u", "start_s": 0.0, "end_s": 1.0}
    clip |= {"frames": 2, "fps": 2.0, "width": 2, "height": 2, "scores": dict.fromkeys(SCORE_COLUMNS)}
    clip |= {"caption": None, "captions": [], "extra": None}
    clip["source"] = {"uri": "u", "bytes": 1, "mtime_or_etag": None, "fingerprint": None}
    encoded = EncodedAnswer("c", 2, 2, 2.0, 2, 1.0, b"mp4")

    def lost() -> None:
        put(Dataset(store.location), record())

    def cut(*_: Any) -> Any:
        yield clip, encoded
        if after == "cutting":
            lost()

    write = pa.parquet.ParquetWriter.write_table

    def written_slowly(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        lost()

    monkeypatch.setattr(Cutter, "_cut", cut)
    if after == "writing":
        monkeypatch.setattr(pa.parquet.ParquetWriter, "write_table", written_slowly)
    cutter = Cutter(load_config("").model_dump(mode="json"), store.location, "hash")
    with Lease(store, "build", **{**QUICK, "heartbeat_seconds": 60}) as lease:
        task = {"name": "shard-00000", "clips": [clip], "token": lease.token}
        with pytest.raises(LeaseLost, match="pid 4711 on elsewhere"):
            cutter(table_of([task], CUT_TASKS))
    assert store.parts("shards") == []
    store.remove(LEASE)
    with Lease(store, "build", **QUICK) as lease:
        monkeypatch.undo()
        monkeypatch.setattr(Cutter, "_cut", lambda *_: iter([(clip, encoded)]))
        cutter(table_of([{**task, "token": lease.token}], CUT_TASKS))
    assert store.parts("shards") == ["shard-00000"]
