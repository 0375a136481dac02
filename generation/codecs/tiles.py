"""A large picture in overlapping tiles: the places of the tiles, and how the tiles are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A part of a picture: half-open ranges of rows and columns, in latent pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, picture: Tensor, scale: int = 1) -> Tensor:
        """A view of this part of `picture` (..., H, W), whose sides are `scale` times the latent sides."""
        rows = slice(self.top * scale, self.bottom * scale)
        return picture[..., rows, self.left * scale : self.right * scale]


class Tiling:
    """Tiles with sides of at most `size` latent pixels and overlaps of at least `overlap`. None: one tile.

    Near its edge, a tile lacks the neighbouring pixels. The outer third of an overlap therefore has weight 0.
    In the middle third the weight falls linearly. At the edges of the picture, weights stay 1.
    """

    def __init__(self, height: int, width: int, size: int | None, overlap: int):
        assert size is None or 0 < overlap < size
        self._sides = height, width
        self._overlap = overlap
        rows, columns = (_windows(side, size, overlap) for side in self._sides)
        self.tiles = [Tile(*row, *column) for row, column in itertools.product(rows, columns)]

    def blend(self, parts: Iterator[Tensor] | Sequence[Tensor], scale: int = 1) -> Tensor:
        """Blend the tiles `parts`, in order, into the whole picture (..., H, W), float32.

        scale: the sides of a part divided by the latent sides of its tile. A single part is returned as is.
        """
        if len(self.tiles) == 1:
            (part,) = parts
            return part
        sides = [side * scale for side in self._sides]
        whole: Tensor | None = None
        total = torch.zeros(sides)
        for tile, part in zip(self.tiles, parts, strict=True):
            weight = self._weight(tile, scale)
            tile.of(total, scale).add_(weight)
            if whole is None:
                whole = part.new_zeros((*part.shape[:-2], *sides), dtype=torch.float32)
            tile.of(whole, scale).add_(part.float() * weight.to(part.device))
        assert whole is not None
        return whole.div_(total.to(whole.device))

    def _weight(self, tile: Tile, scale: int) -> Tensor:
        height, width = self._sides
        rows = _ramp(tile.top, tile.bottom, height, self._overlap, scale)
        return rows[:, None] * _ramp(tile.left, tile.right, width, self._overlap, scale)


def _windows(length: int, size: int | None, overlap: int) -> list[tuple[int, int]]:
    """Start and end of the tiles along one side. The tiles are evenly spread over the length."""
    if size is None or length <= size:
        return [(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(k * (length - size) / (count - 1)) for k in range(count)]
    return [(start, start + size) for start in starts]


def _ramp(start: int, end: int, length: int, overlap: int, scale: int) -> Tensor:
    """The weights of one tile along one side: ((end - start) * scale,)."""
    inside = (torch.arange((end - start) * scale) + 0.5) / scale  # latent pixels from the tile's edge
    third = overlap / 3
    # Overlaps may be wider than `overlap`: the small number keeps the sum of weights above 0.
    rising = ((inside - third) / third).clamp(0, 1) + 1e-9
    ramp = torch.ones_like(inside)
    if start > 0:
        ramp = rising
    if end < length:
        ramp = ramp.minimum(rising.flip(0))
    return ramp
