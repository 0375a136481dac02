"""Files that appear whole or not at all: on a local disk, and on every store that fsspec knows."""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, BinaryIO

import fsspec

_CHUNK_BYTES = 8 << 20


def whole_file(
    fs: fsspec.AbstractFileSystem, path: str, *, is_local: bool, guard: Callable[[], None] | None = None
) -> Whole:
    """A binary file that appears at `path` when the block ends without an error. `guard` is asked before the
    file is opened, and once more before it appears; it raises when this process may write no more."""
    return (_Renamed if is_local else _Put)(fs, path, guard)


class Whole:
    """What is written is kept aside. When it is complete, it takes its place in one step."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, guard: Callable[[], None] | None):
        self._fs = fs
        self._target = path
        self._guard = guard or _nothing
        self._file: Any = None
        self._guard()

    def __enter__(self) -> Any:
        self._file = self._opened()
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            self._end()

    def _opened(self) -> Any:
        raise NotImplementedError

    def _complete(self) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class _Renamed(Whole):
    """A local file: written beside its place, and renamed."""

    def _opened(self) -> Any:
        folder, base = posixpath.split(self._target)
        self._fs.makedirs(folder, exist_ok=True)
        self._aside = posixpath.join(folder, f"_tmp-{uuid.uuid4().hex[:8]}-{base}")
        return self._fs.open(self._aside, "wb")

    def _complete(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())  # or a power cut could leave the name without the content
        self._file.close()  # may find the disk full
        self._guard()
        os.replace(self._aside, self._target)

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._aside)


class _Put(Whole):
    """A file of a store: written to a temporary file of this machine, and put when it is complete.

    Writing to the store itself cannot be given up everywhere: the files of some stores are committed,
    cut short, when they are closed or forgotten.
    """

    def _opened(self) -> Any:
        return tempfile.NamedTemporaryFile(prefix="reelmill-")

    def _complete(self) -> None:
        self._file.flush()  # may find the disk full
        self._file.seek(0)
        self._guard()
        _put(self._fs, self._file, self._target)

    def _end(self) -> None:
        with contextlib.suppress(OSError):  # what is left in its buffer may not fit on the disk
            self._file.close()


def _put(fs: fsspec.AbstractFileSystem, spool: Any, path: str) -> None:
    """By the store's own way to put a file, which is whole by itself, where it has one."""
    if not _is_inherited(fs, "put_file"):  # S3, Google, Azure
        fs.put_file(spool.name, path)
    elif not _is_inherited(fs, "pipe_file"):  # memory
        fs.pipe_file(path, spool.read())
    else:
        _upload(fs, spool, path)


def _is_inherited(fs: fsspec.AbstractFileSystem, name: str) -> bool:
    return getattr(getattr(fs, name), "__func__", None) is getattr(fsspec.AbstractFileSystem, name)


def _upload(fs: fsspec.AbstractFileSystem, spool: BinaryIO, path: str) -> None:
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    file = fs.open(path, "wb")
    try:
        shutil.copyfileobj(spool, file, _CHUNK_BYTES)
        file.close()
    except BaseException:
        file.closed = (
            True  # a file of fsspec commits what it has when it is closed or forgotten, unless it was
        )
        raise


def _nothing() -> None:
    pass
