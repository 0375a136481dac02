"""What a command that starts Ray leaves behind: processes, shared memory, temporary files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

_MARK = "REELMILL_TEST"


def environment(mark: str, **more: str) -> dict[str, str]:
    """For a command whose processes are to be known by `mark`, and that is to start a Ray of its own."""
    own = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    return {**own, _MARK: mark, **more}


def processes(mark: str) -> list[psutil.Process]:
    """All that descend from the command: they have its environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                found.append(process)
        except psutil.Error:  # ended (a zombie has no environment), or not ours to look at
            continue
    return found


def shared_memory() -> set[str]:
    """Of every Ray on this machine."""
    folder = Path("/dev/shm")
    return {str(path) for path in folder.glob("*plasma*")} if folder.is_dir() else set()


def left(mark: str, temp: Path, shared_before: set[str]) -> list[str]:
    """Processes, shared memory and temporary files that are still there."""
    # PyTorch makes itself a folder for what it compiles.
    files = [str(p) for p in temp.iterdir() if not p.name.startswith("torchinductor_")]
    return [*map(str, processes(mark)), *(shared_memory() - shared_before), *files]


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait for it. Returns how long it took, in seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic() - began
