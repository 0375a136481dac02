"""The peak memory of a computation."""

from __future__ import annotations

import pytest
import torch

from generation.codecs.footprint import Footprint


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_alive_at_once_is_counted_and_what_is_gone_is_not(device: str) -> None:
    x = torch.zeros(1000, device=device)  # 4000 bytes, which exist before
    with Footprint() as counted:
        a = x + 1
        b = a * 2
        assert (counted.bytes, counted.peak) == (8000, 8000)
        del a
        c = b.view(10, 100).t()  # no new memory
        c += 1
        assert (counted.bytes, counted.peak) == (4000, 8000)
        d = torch.cat([b, b, b])
        assert (counted.bytes, counted.peak) == (16000, 16000)
        del b, c, d
        assert (counted.bytes, counted.peak) == (0, 16000)
    assert counted.given == 4000


def test_what_backward_needs_is_alive_until_then() -> None:
    weight = torch.zeros(50, 50, requires_grad=True)  # 10000 bytes
    x = torch.zeros(100, 50)  # 20000 bytes
    with Footprint() as counted:
        y = (x @ weight).exp()
        total = y.sum()
        assert counted.bytes == 20000 + 4  # autograd keeps the result of exp, and nothing of the product
        del y
        assert counted.bytes == 20000 + 4
        total.backward()
        del total
    assert counted.bytes == 10000  # the gradient
    assert counted.given == 30000
