"""Tokens of several captions as one batch, and what stands for no caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Tokens (L_i, D) as one batch (B, L, D) and its mask (B, L), True at real tokens.

    The mask is None where all have one length: attention without a mask takes the fast kernels.
    """
    lengths = [len(t) for t in tokens]
    if len(set(lengths)) == 1:
        return torch.stack(list(tokens)), None
    batch = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)  # (B, L, D)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (B, L)
    return batch, mask.to(batch.device)


def null_like(tokens: Tensor) -> Tensor:
    """Zeros in a caption's place, of its shape: to drop it in training, and to contrast with in sampling.

    Of the caption's length, so that both halves of a guided pair are of one length and need no mask.
    """
    return torch.zeros_like(tokens)
