"""Tokens of several captions as one batch, and zeros in place of a caption."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Tokens (L_i, D) as one batch (B, L, D), and the batch's mask (B, L) bool, True at real tokens.

    Captions of equal length have no mask (None), because attention without a mask uses the fast kernels.
    """
    lengths = [len(t) for t in tokens]
    if len(set(lengths)) == 1:
        return torch.stack(list(tokens)), None
    batch = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)  # (B, L, D)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]  # (B, L)
    return batch, mask.to(batch.device)


def null_like(tokens: Tensor) -> Tensor:
    """Zeros (L, D) in place of a caption: for dropped captions in training, and for guidance in sampling.

    The zeros have the caption's length, so that both rows of a guided pair need no mask.
    """
    return torch.zeros_like(tokens)
