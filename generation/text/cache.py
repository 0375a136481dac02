"""Token states of captions, in memory and on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from generation.cache import TensorCache
from generation.config import content_hash
from generation.text.encoder import TextEncoder


class TextCache:
    """Tokens of captions, in memory and in `folder` (None: only in memory), one safetensors file per caption.

    The encoder is loaded when the cache needs the first missing caption. Several processes may share a
    folder. A damaged file counts as absent, and the cache writes it again.
    """

    def __init__(self, folder: str | Path | None, encoder: TextEncoder, memory_bytes: int = 1 << 28):
        self.encoder = encoder
        self._disk = TensorCache(folder) if folder is not None else None
        self._memory: OrderedDict[str, Tensor] = OrderedDict()  # the least recently used caption first
        self._memory_bytes = memory_bytes
        self._used = 0

    @property
    def hash(self) -> str:
        return self.encoder.hash

    @property
    def dim(self) -> int:
        return self.encoder.dim

    def get(self, captions: Sequence[str]) -> list[Tensor]:
        """Tokens (L, D) of each caption, float32 on the CPU. Do not change the tensors: they are shared."""
        return [self._get(caption) if caption.strip() else self.encoder.null() for caption in captions]

    def release(self) -> None:
        """Free the encoder's weights. Cached tokens stay."""
        self.encoder.release()

    def _get(self, caption: str) -> Tensor:
        key = content_hash([self.encoder.hash, str(self.encoder.dtype), caption])
        tokens = self._memory.get(key)
        if tokens is not None:
            self._memory.move_to_end(key)
            return tokens
        tokens = self._disk.get(key) if self._disk else None
        if tokens is None:
            tokens = self.encoder.encode([caption])[0]
            if self._disk:
                self._disk.put(key, tokens)
        self._keep(key, tokens)
        return tokens

    def _keep(self, key: str, tokens: Tensor) -> None:
        self._memory[key] = tokens
        self._used += tokens.nbytes
        while self._used > self._memory_bytes:
            self._used -= self._memory.popitem(last=False)[1].nbytes
