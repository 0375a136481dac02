"""Random draws keyed by content: one key, one draw, in any process, order, batch or rank layout.

A key is integers and strings, such as (seed, "noise", epoch, position in the plan). Nothing here touches the
global random state, so nothing needs to be saved for an exact resume.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor

# 2^64 / golden ratio: the steps of the additive recurrence that fills [0, 1) most evenly at every length
_GOLDEN = 0x9E3779B97F4A7C15


def _hash(key: tuple[int | str, ...]) -> int:
    """64 bits. JSON keeps ("a", "bc") and ("ab", "c") apart, and 1 and "1"; other types are refused."""
    assert key, "a draw needs a key"
    assert all(isinstance(part, (int, str)) for part in key), key
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest(), "big")


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for `key`.

    PyTorch's CPU generator takes 32 bits of a seed: among a million keys about a hundred pairs share their
    stream, which is harmless for noise. `uniform` and `stratified` use all bits.
    """
    return torch.Generator("cpu").manual_seed(_hash(key) >> 32)


def normal(shape: Sequence[int], *key: int | str) -> Tensor:
    """Standard normal noise, float32 on the CPU: move it, so that it is the same for every device."""
    return torch.randn(tuple(shape), generator=generator(*key), dtype=torch.float32)


def uniform(*key: int | str) -> float:
    """In [0, 1), with 53 bits."""
    return (_hash(key) >> 11) / 2**53


def stratified(index: int, *key: int | str) -> float:
    """In [0, 1): frac(uniform(key) + index / golden ratio), exact for any `index`.

    Any run of n consecutive indices covers [0, 1) evenly (no gap is longer than 1.9 / n), whatever the
    batch, accumulation and rank layout that the positions of a plan are dealt to.
    """
    return ((_hash(key) + index * _GOLDEN) % 2**64 >> 11) / 2**53
