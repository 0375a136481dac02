"""Read errors that may pass without any action, and retries after such errors."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A network or a disk that is missing for a moment, and too many open files. EAGAIN: the lock of a network
# file system. Every other error (no such file, no permission, a loop of links ...) would happen again.
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
    """Could the same read succeed a moment later?"""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT


def retrying(call: Callable[[], T], retries: int = 3, retry_seconds: float = 1.0) -> T:
    """The result of `call`. After a transient error `call` is called again, at most `retries` times.

    The first retry waits `retry_seconds`, and each later retry waits twice as long as the one before.
    Raises the error of the last call, and every error that is not transient.
    """
    for attempt in range(retries):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(retry_seconds * 2**attempt)
    return call()
