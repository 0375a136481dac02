"""A large picture in overlapping tiles: where they lie, and how they are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Half-open ranges of rows and columns, in latent pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, picture: Tensor, scale: int = 1) -> Tensor:
        """A view of this part of (..., H, W), whose sides are `scale` times the latent ones."""
        rows = slice(self.top * scale, self.bottom * scale)
        return picture[..., rows, self.left * scale : self.right * scale]


class Tiling:
    """Tiles of at most `size` latent pixels a side that overlap by `overlap` or more; None: one tile.

    Near its edge a tile lacks what lies beyond: the outer third of an overlap counts for nothing, and in the
    middle one two tiles are mixed with weights that fall linearly. The edges of the picture are full.
    """

    def __init__(self, height: int, width: int, size: int | None, overlap: int):
        assert size is None or 0 < overlap < size
        self._sides = height, width
        self._overlap = overlap
        rows, columns = (_windows(side, size, overlap) for side in self._sides)
        self.tiles = [Tile(*row, *column) for row, column in itertools.product(rows, columns)]

    def blend(self, parts: Iterator[Tensor] | Sequence[Tensor], scale: int = 1) -> Tensor:
        """The whole (..., H, W) of its tiles, in order, each `scale` times as large as its latent one."""
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
    """Evenly spread over the length."""
    if size is None or length <= size:
        return [(0, length)]
    count = math.ceil((length - overlap) / (size - overlap))
    starts = [round(k * (length - size) / (count - 1)) for k in range(count)]
    return [(start, start + size) for start in starts]


def _ramp(start: int, end: int, length: int, overlap: int, scale: int) -> Tensor:
    inside = (torch.arange((end - start) * scale) + 0.5) / scale  # latent pixels from the tile's edge
    third = overlap / 3
    rising = ((inside - third) / third).clamp(0, 1) + 1e-9  # overlaps may be wider than they need to be
    ramp = torch.ones_like(inside)
    if start > 0:
        ramp = rising
    if end < length:
        ramp = ramp.minimum(rising.flip(0))
    return ramp
