"""Tiles cover a picture, overlap enough, and blend to the original picture."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from generation import draws
from generation.codecs.tiles import Tiling


@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_overlap_and_give_back_the_picture(seed: int) -> None:
    draw = random.Random(seed)
    height, width = draw.randint(3, 60), draw.randint(3, 60)
    size = draw.randint(4, 24)
    overlap, scale = draw.randint(1, size - 1), draw.choice([1, 2, 8])
    tiling = Tiling(height, width, size, overlap)
    for sides in ([(t.top, t.bottom) for t in tiling.tiles], [(t.left, t.right) for t in tiling.tiles]):
        ordered = sorted(set(sides))
        for (_, end), (start, _) in itertools.pairwise(ordered):
            assert end - start >= overlap
        assert all(end - start <= size for start, end in ordered)
    picture = draws.normal((2, height * scale, width * scale), "picture", seed)
    parts = [tile.of(picture, scale) for tile in tiling.tiles]
    assert torch.allclose(tiling.blend(parts, scale), picture, atol=1e-5)


def test_weights_fall_towards_what_a_tile_does_not_see() -> None:
    tiling = Tiling(1, 10, 8, 6)
    assert [(t.left, t.right) for t in tiling.tiles] == [(0, 8), (2, 10)]
    blended = tiling.blend([torch.zeros(1, 8), torch.ones(1, 8)])
    assert blended[0].tolist() == pytest.approx([0, 0, 0, 0, 0.25, 0.75, 1, 1, 1, 1], abs=1e-6)


def test_one_tile_is_the_picture_itself() -> None:
    picture = torch.zeros(1, 5, 5)
    for size in (None, 5, 9):
        assert Tiling(5, 5, size, 2).blend([picture]) is picture
