"""One input: its address, its fingerprint, and the reason why the input cannot be used."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass, field
from typing import Any

BAD_NAME = "BadName"


class SourcesError(ValueError):
    """A name from the user cannot be listed. The message gives the reason."""


class NotAFile(OSError):
    """The path exists, but is not a file with an end: for example a folder, a pipe or a device."""


@dataclass(frozen=True)
class Source:
    """One input. If the file could not be read, `fingerprint` is None and `error` gives the reason."""

    uri: str
    extra: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None
    mtime_or_etag: str | None = None
    fingerprint: str | None = None
    duplicate_of: str | None = None  # source_id of an identical source that comes before this one
    error: tuple[str, str] | None = None  # kind and message

    @property
    def source_id(self) -> str:
        text = f"{self.uri}\n{self.fingerprint}" if self.fingerprint else self.uri
        if self.error and self.error[0] == BAD_NAME:  # the escaped uri may be the true name of another file
            text += f"\n{BAD_NAME}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def reason(error: BaseException) -> str:
    """An error in words. File systems of fsspec often raise errors whose only text is the path."""
    if isinstance(error, OSError) and not error.strerror:
        for kind, number in ((FileNotFoundError, errno.ENOENT), (PermissionError, errno.EACCES)):
            if isinstance(error, kind):
                return os.strerror(number)
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


KINDS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}
