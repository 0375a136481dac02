"""Finds processes, shared memory and temporary files that a command with Ray leaves behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_MARK = "REELMILL_TEST"


def environment(mark: str, **more: str) -> dict[str, str]:
    """The environment of a command that starts its own Ray and whose processes are found by `mark`."""
    own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    return {**own, _MARK: mark, **more}


def processes(mark: str) -> list[psutil.Process]:
    """All processes of the command, also without their parent. They have the command's environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                found.append(process)
        except psutil.Error:  # the process ended (a zombie has no environment), or belongs to another user
            continue
    return found


def shared_memory() -> set[str]:
    """The files of every Ray on this machine."""
    folder = Path("/dev/shm")
    return {str(path) for path in folder.glob("*plasma*")} if folder.is_dir() else set()


def left(mark: str, temp: Path, shared_before: set[str]) -> list[str]:
    """Processes, shared memory and temporary files that still exist."""
    # PyTorch makes a folder for compiled code.
    files = [str(p) for p in temp.iterdir() if not p.name.startswith("torchinductor_")]
    return [*map(str, processes(mark)), *(shared_memory() - shared_before), *files]


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait until a condition holds. Returns the waiting time in seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began
