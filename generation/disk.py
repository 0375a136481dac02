"""Writing to disk. Files and folders appear completely or not at all, and a full disk gives a clear error."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn an operating system error that safetensors hides, such as a full disk, into an `OSError`."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file. Raises `OSError` when the disk is full or the folder cannot be written."""
    from safetensors.torch import save_file

    with disk_errors(path):
        save_file(dict(tensors), path, metadata=metadata)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def whole_folder(unfinished: Path, final: Path) -> None:
    """Rename a finished temporary folder to its final name. An older folder of that name is replaced, also
    one that a killed process had put aside.

    All files are flushed to disk before the folder is renamed.
    """
    for path in sorted(unfinished.rglob("*")):
        _sync(path)
    _sync(unfinished)
    old = final.with_name(f"_old-{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    unfinished.rename(final)
    shutil.rmtree(old, ignore_errors=True)
    _sync(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file completely or not at all."""
    aside = path.with_name(f"_{path.name}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(path)
