"""A cache of tensors on disk. A key names the origin of a tensor, so each tensor is computed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from generation.disk import save_tensors


def cache_key(clip_id: str, transform: str, model: str, *more: int | str) -> str:
    """The key of a tensor that a model made from a clip.

    transform: `Sample.transform`; model: the codec's hash; more: other values that decide the content, such
    as the number of a degradation.
    """
    parts = json.dumps([clip_id, transform, model, *more])
    return hashlib.blake2b(parts.encode(), digest_size=20).hexdigest()


class TensorCache:
    """A folder of safetensors files with one tensor each: FOLDER/ab/abcd….safetensors.

    Many processes may share the folder. `put` writes a temporary file and renames it. A damaged file counts
    as absent, and the next `put` replaces it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the file exists. Only `get` checks the content."""
        return self._path(key).exists()

    def get(self, key: str) -> Tensor | None:
        """The tensor, on the CPU. None when the file is missing or damaged."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                # safetensors has no checksum, so training would use a flipped bit as noise.
                about = file.metadata() or {}
                tensor: Tensor = file.get_tensor("tensor")
        except (OSError, SafetensorError):
            return None
        return tensor if about.get("check") == _check(key, tensor) else None

    def put(self, key: str, tensor: Tensor) -> None:
        """Store a tensor. Raises `OSError` when the disk is full or the folder cannot be written."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor = tensor.detach().cpu().contiguous()
        aside = path.with_name(f"_tmp-{secrets.token_hex(8)}")
        try:
            save_tensors({"tensor": tensor}, aside, {"check": _check(key, tensor)})
            os.replace(aside, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()

    def clean(self) -> None:
        """Remove the temporary files of killed processes. No other process may write to the folder now."""
        for left in self.folder.glob("*/_tmp-*"):
            left.unlink(missing_ok=True)


def _check(key: str, tensor: Tensor) -> str:
    """The key and a checksum of the tensor. They show a damaged file, or a file of another key."""
    return f"{key} {zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data):08x}"
