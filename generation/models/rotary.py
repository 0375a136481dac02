"""Three-dimensional rotary positions of video tokens: tables of cosines and sines for one grid.

A head's dimensions are split 1/4 : 3/8 : 3/8 over time, height and width. Pair i of an axis is rotated by
position * 10000^(-2i / dims of the axis). Tables are computed for every call and are not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tables(
    head_dim: int,
    grid: tuple[int, int, int],
    base: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (t * h * w, head_dim) float32. Tokens are ordered by time, row, column.

    grid: (t, h, w) in patches. base None: positions are the integers 0 ... n - 1 of each axis for any size,
    as in FlashVideo. base (h, w) in patches: the grid is fitted to the grid of the model's training size,
    with the aspect ratio kept, as in `CogVideoXPipeline`. Such positions can be fractional or negative.
    """
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    assert head_dim % 16 == 0, head_dim
    t, h, w = grid
    where = torch.device(device)
    if base is None:
        cos, sin = get_3d_rotary_pos_embed(
            head_dim, None, (h, w), t, grid_type="slice", max_size=(h, w), device=where
        )
    else:
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        crop = get_resize_crop_region_for_grid((h, w), base[1], base[0])
        cos, sin = get_3d_rotary_pos_embed(head_dim, crop, (h, w), t, device=where)
    # Copies, because with views PyTorch would compile the library's blocks again for every grid.
    return cos.clone(), sin.clone()
