"""The contract of a store: a file appears whole or not at all, and readers see the old one until then."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from s3fs.core import S3FileSystem

from curation.store.dataset import Dataset
from curation.store.schema import CLIPS
from curation.store.whole_file import Whole
from tests.curation.store.stores import PlainFile, files, noise, s3, store

__all__ = ["s3", "store"]

SIZES = [0, 100, 60_000]  # nothing, less than a block of the plain store, and several blocks


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_there_when_it_is_whole(store: Dataset, size: int) -> None:
    store.write("shards/x.parquet", b"old")
    with store.writing("shards/x.parquet") as file:
        file.write(noise(size))
        file.flush()
        assert store.read("shards/x.parquet") == b"old"
        assert store.parts("shards") == ["x"]  # what is not finished is no part
    assert files(store) == {"shards/x.parquet": noise(size)}


def write_some(store: Dataset, name: str, data: bytes, error: type[BaseException]) -> None:
    with store.writing(name) as file:
        file.write(data)
        raise error


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_is_given_up_leaves_nothing(
    store: Dataset, size: int, error: type[BaseException]
) -> None:
    store.write("clips/old.parquet", b"old")
    for name in ("clips/old.parquet", "clips/new.parquet"):
        with pytest.raises(error):
            write_some(store, name, noise(size), error)
    gc.collect()  # a file that fsspec has forgotten is closed, and so committed
    assert files(store) == {"clips/old.parquet": b"old"}


def test_half_a_table_is_no_table(store: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(table: Any, file: Any, **_: Any) -> None:
        file.write(b"PAR1 half of a table")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.write_table("clips/p.parquet", [], CLIPS)
    gc.collect()
    assert files(store) == {}


def test_a_put_that_is_given_up_leaves_the_old_file(store: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the upload: the store has received a part of the file."""
    store.write("x.bin", b"old")
    sent: list[int] = []

    def some(file: Any, final: bool = False) -> bool:
        sent.append(1)
        if len(sent) == 2:
            raise KeyboardInterrupt
        file.sent += file.buffer.getvalue()
        return True

    def refused(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    async def refused_later(*_: object, **__: object) -> None:
        raise KeyError  # asyncio ends at an interrupt

    monkeypatch.setattr(PlainFile, "_upload_chunk", some)
    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(S3FileSystem, "_call_s3", refused_later)
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", refused)
    with pytest.raises((KeyboardInterrupt, KeyError)):
        store.write("x.bin", noise(60_000))
    gc.collect()
    monkeypatch.undo()
    assert files(store) == {"x.bin": b"old"}


def test_who_reads_while_others_write_sees_whole_files(store: Dataset) -> None:
    contents = [bytes([i]) * 20_000 for i in range(10)]
    store.write("x.bin", contents[0])
    done, seen = threading.Event(), set[bytes]()

    def read() -> None:
        while not done.is_set():
            seen.add(store.read("x.bin"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for content in contents:
            store.write("x.bin", content)
    finally:
        done.set()
        reader.join()
    assert seen <= set(contents)


def test_a_full_temporary_disk_is_told_and_leaves_nothing(
    store: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`jobs.common.user_errors` makes exit code 3 of it."""
    if store.is_local:
        pytest.skip("a local file is written on its own disk; tests/jobs/test_no_room.py fills that")
    store.write("x.bin", b"old")
    made = tempfile.NamedTemporaryFile

    def full(**options: Any) -> Any:
        file = made(**options)
        # The device is there to be full.
        os.dup2(os.open("/dev/full", os.O_RDWR), file.fileno())
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(OSError) as error:
        store.write("x.bin", noise(60_000))
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert files(store) == {"x.bin": b"old"}


def test_the_temporary_file_goes(store: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    store.write("x.bin", noise(100))
    with pytest.raises(OSError):
        write_some(store, "x.bin", noise(100), OSError)
    assert os.listdir(tmp_path / "tmp") == []


def test_a_guard_is_asked_before_a_file_appears(store: Dataset) -> None:
    """A write takes minutes, in which the right to it may be lost."""
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise PermissionError

    store.guard = guard
    with pytest.raises(PermissionError):
        store.write("x.bin", b"new")
    assert len(asked) == 2
    assert files(store) == {}
    assert isinstance(store.writing("x.bin"), Whole)


def test_a_large_file_passes_by_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not through memory: as much as a block at a time."""
    store, sizes = Dataset("plain://large"), list[int]()
    copy = shutil.copyfileobj

    def counted(source: Any, target: Any, length: int) -> None:
        class Target:
            def write(self, data: bytes) -> int:
                sizes.append(len(data))
                return int(target.write(data))

        copy(source, Target(), length)

    monkeypatch.setattr(shutil, "copyfileobj", counted)
    with store.writing("x.bin") as file:
        for _ in range(30):
            file.write(noise(1 << 20))
    assert sum(sizes) == 30 << 20
    assert max(sizes) <= 8 << 20
    assert len(store.read("x.bin")) == 30 << 20
