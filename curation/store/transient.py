"""Read errors that may pass by themselves, and waiting for that."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A network or a disk that is away for a moment, and too many open files. EAGAIN: a network file system's
# lock. Everything else (no such file, no permission, a loop of links ...) will be the same the next time.
_TRANSIENT = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENFILE,
        getattr(errno, "EREMOTEIO", errno.EIO),  # Linux only
    }
)


def is_transient(error: BaseException) -> bool:
    """Might the same read succeed in a moment?"""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def retrying(call: Callable[[], T], retries: int = 3, retry_seconds: float = 1.0) -> T:
    """What `call` returns. After a transient error it is called again, `retries` times at the most:
    `retry_seconds` later, and then twice as long after each time."""
    for attempt in range(retries):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(retry_seconds * 2**attempt)
    return call()
