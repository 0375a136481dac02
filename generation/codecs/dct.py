"""The discrete cosine transform, for the patch codec and for the initial weights of the Slice VAE."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 (n, n). Row k is c_k cos(pi (2 j + 1) k / 2 n); row 0 is constant."""
    index = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * index[:, None] * (2 * index + 1) / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis
