"""Random draws by key. Equal keys give equal draws in any process, order, batch or rank layout.

A key consists of integers and strings, such as (seed, "noise", epoch, position in the plan). This module
does not use the global random state, so an exact resume needs no saved random state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

# 2^64 / golden ratio: the step of the additive recurrence that fills [0, 1) most evenly at every length
_GOLDEN = 0x9E3779B97F4A7C15


def _hash(key: tuple[int | str, ...]) -> int:
    """A hash of 64 bits. JSON gives ("a", "bc") and ("ab", "c") different texts, and 1 and "1", too."""
    assert key, "a draw needs a key"
    assert all(isinstance(part, (int, str)) for part in key), key
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest(), "big")


def generator(*key: int | str) -> torch.Generator:
    """A new CPU generator for `key`.

    PyTorch's CPU generator uses 32 bits of a seed. Among a million keys, about a hundred pairs therefore
    share a stream, which is harmless for noise. `uniform` and `stratified` use all 64 bits.
    """
    return torch.Generator("cpu").manual_seed(_hash(key) >> 32)


def normal(shape: Sequence[int], *key: int | str) -> Tensor:
    """Standard normal noise of `shape`, float32 on the CPU, so that every device gets the same noise."""
    return torch.randn(tuple(shape), generator=generator(*key), dtype=torch.float32)


def uniform(*key: int | str) -> float:
    """A uniform number in [0, 1), with 53 bits."""
    return (_hash(key) >> 11) / 2**53


def stratified(index: int, *key: int | str) -> float:
    """A number in [0, 1): frac(uniform(key) + index / golden ratio), exact for any `index`.

    Any n consecutive indices cover [0, 1) evenly: no gap is longer than 1.9 / n. The coverage therefore does
    not depend on batch size, accumulation or rank layout.
    """
    return ((_hash(key) + index * _GOLDEN) % 2**64 >> 11) / 2**53
