"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from typing import Any

import fsspec


class Whole:
    """Write aside, then rename; on an object store a put is whole by itself."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, *, is_local: bool):
        self._fs = fs
        self._target = path
        folder, base = posixpath.split(path)
        self._aside = posixpath.join(folder, f"_tmp-{uuid.uuid4().hex[:8]}-{base}")
        self._local = is_local
        if self._local:
            self._fs.makedirs(folder, exist_ok=True)

    def __enter__(self) -> Any:
        self._file = self._fs.open(self._aside if self._local else self._target, "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self._local and hasattr(self._file, "discard"):
            self._file.discard()  # fsspec's way to give up an upload
            return
        if not self._local:
            self._file.close()
            return
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())  # or a power cut could leave the name without the content
            self._file.close()  # may find the disk full
            if kind is None:
                os.replace(self._aside, self._target)
                return
        except BaseException:
            self._give_up()
            raise
        self._give_up()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._aside)
