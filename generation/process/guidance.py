"""Classifier-free guidance: two predictions, in one batch or one after the other. Scale 1 needs only one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generation.models.cogvideox import predict


def guided_prediction(
    model: nn.Module,
    latents: Tensor,
    text: Tensor,
    contrast: Tensor,
    scale: float,
    time: float,
    strength: float | None = None,
    positions: str = "integer",
    apart: bool = False,
) -> Tensor:
    """The guided prediction for latents (1, C, t, h, w): (1, C, t, h, w) float32.

    text: tokens (L, D) of the caption; contrast: tokens of the negative prompt, or zeros; time, strength: as
    in `cogvideox.predict`. apart: the two predictions are computed one after the other, with half the memory.
    Texts of two lengths are always computed apart: in one batch they would need a mask, and attention with a
    mask takes slower kernels.
    """
    rows = [text] if scale == 1.0 else [text, contrast]
    together = not apart and len({len(row) for row in rows}) == 1
    found = []
    for batch in [torch.stack(rows)] if together else [row[None] for row in rows]:
        n = len(batch)
        found.append(
            predict(
                model,
                latents.expand(n, *latents.shape[1:]),
                batch.to(latents.device),
                None,
                torch.full((n,), time, device=latents.device),
                None if strength is None else torch.full((n,), strength, device=latents.device),
                positions,
            ).float()
        )
    out = torch.cat(found)
    return combine(out[:1], out[1:], scale) if len(rows) == 2 else out


def combine(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Combine two predictions: uncond + scale (cond - uncond) in float32, or exactly `cond` at scale 1."""
    cond, uncond = cond.float(), uncond.float()
    return cond if scale == 1 else uncond + scale * (cond - uncond)
