"""Rotary positions compared with their formula in float64, and their effect inside the transformer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from generation.models import cogvideox, rotary
from tests.generation.models.test_cogvideox import awake, tiny

SPLITS = {16: (4, 6, 6), 48: (12, 18, 18), 64: (16, 24, 24), 128: (32, 48, 48)}


def angles(head_dim: int, axes: tuple[list[float], list[float], list[float]]) -> np.ndarray:
    """The angle of every token (in order of t, h, w) and dimension, by the formula, in float64."""
    rows = []
    for place in itertools.product(*axes):
        row: list[float] = []
        for position, dims in zip(place, SPLITS[head_dim], strict=True):
            for pair in range(dims // 2):
                row += [position * 10000.0 ** (-2 * pair / dims)] * 2
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("head_dim", list(SPLITS))
@pytest.mark.parametrize("grid", [(13, 3, 5), (1, 1, 1), (2, 67, 3)])
def test_integer_positions_follow_the_formula(head_dim: int, grid: tuple[int, int, int]) -> None:
    assert sum(SPLITS[head_dim]) == head_dim
    cos, sin = rotary.tables(head_dim, grid)
    assert cos.dtype == sin.dtype == torch.float32
    t, h, w = ([float(i) for i in range(n)] for n in grid)
    truth = angles(head_dim, (t, h, w))
    np.testing.assert_allclose(cos.numpy(), np.cos(truth), atol=2e-5)
    np.testing.assert_allclose(sin.numpy(), np.sin(truth), atol=2e-5)


def test_resized_positions_lie_over_the_grid_of_training() -> None:
    # 4 x 8 patches over 6 x 9: as wide as the base, round(9 / 8 * 4) = 4 rows high, from row 1 up to row 5.
    cos, sin = rotary.tables(16, (2, 4, 8), base=(6, 9))
    rows = [1 + (3.75 - 1) * i / 3 for i in range(4)]
    columns = [9 / 8 * i for i in range(8)]
    truth = angles(16, ([0.0, 1.0], rows, columns))
    np.testing.assert_allclose(cos.numpy(), np.cos(truth), atol=1e-5)
    np.testing.assert_allclose(sin.numpy(), np.sin(truth), atol=1e-5)


def test_at_the_base_grid_both_kinds_are_the_same() -> None:
    for a, b in zip(rotary.tables(64, (3, 6, 9), base=(6, 9)), rotary.tables(64, (3, 6, 9)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_score_depends_on_the_difference_of_positions_alone() -> None:
    from diffusers.models.embeddings import apply_rotary_emb

    grid, dim = (3, 4, 5), 64
    n = 3 * 4 * 5
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, dim, generator=draw)
    table = rotary.tables(dim, grid)
    turned = [apply_rotary_emb(x.expand(1, 1, n, dim), table)[0, 0].double() for x in (q, k)]
    scores = turned[0] @ turned[1].T
    places = list(itertools.product(*map(range, grid)))
    by_difference: dict[tuple[int, ...], list[float]] = {}
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        difference = tuple(x - y for x, y in zip(a, b, strict=True))
        by_difference.setdefault(difference, []).append(float(scores[i, j]))
    assert len(by_difference) == 5 * 7 * 9
    assert max(max(group) - min(group) for group in by_difference.values()) < 1e-4
    means = sorted(group[0] for group in by_difference.values())
    assert means[-1] - means[0] > 1  # the result depends on the distance
    # The result depends on the distance along each axis, and on its sign: a reversed video is another video.
    for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        forth, back = by_difference[one][0], by_difference[tuple(-x for x in one)][0]
        still = by_difference[0, 0, 0][0]
        assert len({round(x, 3) for x in (forth, back, still)}) == 3


def test_a_small_grid_is_a_crop_of_a_large_one() -> None:
    small, large = rotary.tables(64, (13, 16, 30)), rotary.tables(64, (13, 67, 120))
    for a, b in zip(small, large, strict=True):
        assert torch.equal(a.view(13, 16, 30, 64), b.view(13, 67, 120, 64)[:, :16, :30])


def test_another_grid_in_the_same_process_has_its_own_positions() -> None:
    model = awake(tiny())
    draw = torch.Generator().manual_seed(1)
    text, time = torch.randn(1, 3, 24, generator=draw), torch.tensor([300.0])
    low = torch.randn(1, 4, 2, 4, 6, generator=draw)
    high = torch.randn(1, 4, 3, 6, 4, generator=draw)

    @torch.no_grad()
    def outputs(order: str, model: Any) -> dict[str, torch.Tensor]:
        latents = {"low": low, "high": high}
        return {name: cogvideox.predict(model, latents[name], text, None, time) for name in order.split()}

    one = outputs("low high low high", model)
    other = outputs("high low", awake(tiny()))
    assert torch.equal(one["low"], other["low"])
    assert torch.equal(one["high"], other["high"])
    # Two grids with equal numbers of tokens and other shapes: a cache by token count would confuse them.
    a, b = rotary.tables(16, (2, 3, 4)), rotary.tables(16, (2, 4, 3))
    assert a[0].shape == b[0].shape
    assert not torch.equal(a[0], b[0])


class _Attention(TorchFunctionMode):
    """Records the inputs of attention. Attention itself runs as usual."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append((args[0].clone(), args[1].clone(), (kwargs or {}).get("attn_mask")))
        return func(*args, **(kwargs or {}))


def test_text_is_not_turned() -> None:
    model = awake(tiny(layers=1))
    draw = torch.Generator().manual_seed(2)
    text = torch.randn(1, 3, 24, generator=draw)
    latents = torch.randn(1, 4, 2, 4, 6, generator=draw)
    time = torch.tensor([300.0])
    table = cogvideox.rotary(model, (2, 4, 6))
    still = (torch.ones_like(table[0]), torch.zeros_like(table[1]))
    seen = []
    for turned in (table, still):
        with _Attention() as attention, torch.no_grad():
            model(latents.transpose(1, 2), text, time, image_rotary_emb=turned)
        (call,) = attention.calls
        seen.append(call)
    for turned, plain in zip(seen[0][:2], seen[1][:2], strict=True):
        assert torch.equal(turned[:, :, :4], plain[:, :, :4])  # text, and the video token at (0, 0, 0)
        assert not torch.isclose(turned[:, :, 4:], plain[:, :, 4:]).flatten(3).all(3).any()


def test_tables_are_made_where_they_are_used() -> None:
    cos, sin = rotary.tables(64, (2, 3, 4), device="meta")
    assert cos.device.type == sin.device.type == "meta"
