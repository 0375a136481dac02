"""Writing: files and folders that appear whole or not at all, and tensors, with a full disk told as such."""

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
    """The library's own errors of a full disk and the like, as the `OSError` that they stand for."""
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
    """Let a folder that was written aside appear under its name, on disk, in place of an older one."""
    for path in sorted(unfinished.rglob("*")):
        _sync(path)
    _sync(unfinished)
    if final.exists():
        old = final.with_name(f"_old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        unfinished.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        unfinished.rename(final)
    _sync(final.parent)


def write_text(path: Path, text: str) -> None:
    """A small file, whole or not at all."""
    aside = path.with_name(f"_{path.name}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.replace(path)
