"""Puts that a store refuses where somebody else was quicker: the lease stands on them where there are no
locks.

Google's and S3's stores create a file only where there is none. S3 also replaces a file only as it was when
it was read. A store that knows neither takes every put: the last one wins.
"""

from __future__ import annotations

import errno
from typing import Any, cast

import fsspec

_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}  # as S3 says it


class StoredFile:
    """A small file of a store. `write` puts it in the place of what the last `read` has found, and of nothing
    else, as far as the store can tell. Raises `FileExistsError` where it can, and another was quicker."""

    def __init__(self, address: str):
        self._fs, self._path = fsspec.url_to_fs(address)
        self._is_s3 = "s3" in self._fs.protocol
        self._found = False
        self._tag: str | None = None  # S3's, of the content that was read

    def read(self) -> bytes:
        """Raises `FileNotFoundError`."""
        self._found = False
        # First the tag: a content that is newer than it is then not written over.
        self._tag = self._fs.info(self._path, refresh=True)["ETag"] if self._is_s3 else None
        data = self._fs.cat_file(self._path)
        self._found = True
        return cast(bytes, data)

    def write(self, data: bytes) -> None:
        condition: dict[str, Any] = {} if self._found else {"mode": "create"}
        if self._found and self._tag:
            condition = {"IfMatch": self._tag}
        try:
            self._fs.pipe_file(self._path, data, **condition)
        except OSError as error:
            if _is_refused(error):
                raise FileExistsError(self._path) from error
            if error.errno != errno.ENOSYS:  # so says a store of S3's kind that knows no conditions
                raise
            self._fs.pipe_file(self._path, data)

    def remove(self) -> None:
        self._fs.rm_file(self._path)

    def close(self) -> None:
        pass


def _is_refused(error: OSError) -> bool:
    said = getattr(error.__cause__, "response", None)  # of botocore
    return isinstance(error, FileExistsError) or (
        isinstance(said, dict) and said.get("Error", {}).get("Code") in _REFUSED
    )
