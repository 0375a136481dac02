"""One writer at a time in a folder, on one machine.

The lock is on the file that the commands lock (`_lease.json`), so that a call from Python and a command
exclude each other, too. A command sees more: writers on other machines, and who they are. `jobs` therefore
passes a lock of its own to the functions of `generation.api`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

LEASE = "_lease.json"


class Lock(Protocol):
    """Takes a folder for one command. `name` is the lock's file: another one than `_lease.json` where the
    work is one file of the folder. The context yields a function that raises when the lock was lost."""

    def __call__(
        self, folder: Path, command: str, name: str = LEASE
    ) -> AbstractContextManager[Callable[[], None]]: ...


@contextlib.contextmanager
def alone(folder: Path, command: str, name: str = LEASE) -> Iterator[Callable[[], None]]:
    """The `Lock` of calls from Python. Raises `ValueError` when another process works in the folder.

    A folder that was made for the lock goes with it, unless something was written there. A file system
    without locks lets everybody in.
    """
    if folder.is_file():
        raise ValueError(
            f"{folder}: the folder cannot be made, because a file has this name; name another folder"
        )
    made = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file = _locked(path, folder)
    try:
        yield lambda: None
    finally:
        if _is_at(path, file):
            path.unlink()
        os.close(file)
        with contextlib.suppress(OSError):  # it is not empty
            for new in made:
                new.rmdir()


def _locked(path: Path, folder: Path) -> int:
    """The file descriptor of the locked file."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ValueError(f"{_holder(path)} works on {folder}: run this again when it has ended") from None
        except OSError:
            return file
        if _is_at(path, file):
            return file
        os.close(file)  # its holder has removed it between our opening and locking it


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_bytes())
        return f"reelmill {found['command']} (pid {found['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
