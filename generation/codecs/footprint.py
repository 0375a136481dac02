"""The peak memory of a computation in bytes, counted while the computation runs, on any device or `meta`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Footprint(TorchDispatchMode):
    """A context around a computation, which counts the bytes of new tensors until they are freed.

    `peak` is the largest number of bytes alive at a time. `given` counts tensors that existed before, such as
    weights and inputs. Memory inside of one operation, such as a convolution's working space, is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self.given = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tree_map_only(Tensor, lambda tensor: self._note(tensor, new=False), (args, dict(kwargs)))
        made = func(*args, **kwargs)
        tree_map_only(Tensor, lambda tensor: self._note(tensor, new=True), made)
        return made

    def _note(self, tensor: Tensor, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if new else 0
        self.given += 0 if new else storage.nbytes()
        self.bytes += self._sizes[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key, 0)
