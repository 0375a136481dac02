"""Watches the resident memory of the decoding child.

A limit on addresses (`RLIMIT_AS`) counts what a library reserves and never fills, and Linux does not obey a
limit on resident memory (`RLIMIT_RSS`). So the parent looks, several times a second.
"""

from __future__ import annotations

import time
from pathlib import Path

_LOOK_SECONDS = 0.04


class TooLarge(Exception):
    """The child has more memory than it may have. The text is the number of megabytes."""


class Watch:
    """Looks at the memory of the process `pid`. A call raises `TooLarge` above `max_bytes`.

    Without `/proc`, which only Linux has, nothing is seen.
    """

    def __init__(self, pid: int, max_bytes: int):
        self._status = Path(f"/proc/{pid}/status")
        self._max_bytes = max_bytes
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        held = resident_bytes(self._status)
        if held > self._max_bytes:
            raise TooLarge(f"{held >> 20}")


def resident_bytes(status: Path) -> int:
    """Memory of its own that a process holds: not of files that it shares with others. 0 if it has ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    held = {name: int(rest.split()[0]) for name, _, rest in (s.partition(":") for s in lines) if name in _OWN}
    return 1024 * sum(held.values())


_OWN = {"RssAnon", "RssShmem", "VmSwap"}  # in kB
