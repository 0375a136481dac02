"""The cache of tensors: a stored tensor is returned bit for bit, or counts as absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generation.cache import TensorCache, cache_key

KEY = cache_key("clip", "transform", "codec")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2, 4, 4)])
def test_a_tensor_comes_back_as_it_was(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    cache = TensorCache(tmp_path)
    tensor = torch.randn(shape).mul(50).to(dtype)
    assert cache.get(KEY) is None
    assert not cache.has(KEY)
    cache.put(KEY, tensor)
    found = TensorCache(tmp_path).get(KEY)
    assert found is not None
    assert cache.has(KEY)
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)


def test_views_and_tensors_with_gradients_can_be_put(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    tensor = torch.randn(4, 6, requires_grad=True)[:, ::2].T
    cache.put(KEY, tensor)
    found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found, tensor)
    assert not found.requires_grad


def test_keys_differ_in_every_part() -> None:
    keys = {
        cache_key("a", "b", "c"),
        cache_key("x", "b", "c"),
        cache_key("a", "x", "c"),
        cache_key("a", "b", "x"),
        cache_key("a", "b", "c", 0),
        cache_key("a", "b", "c", 1),
        cache_key("a", "b", "c", "1"),
        cache_key("ab", "", "c"),
    }
    assert len(keys) == 8
    assert cache_key("a", "b", "c", 1) == cache_key("a", "b", "c", 1)


@pytest.mark.parametrize("damage", ["empty", "short", "no header", "flipped", "other"])
def test_a_damaged_file_counts_as_absent_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = TensorCache(tmp_path)
    tensor = torch.randn(100)
    cache.put(KEY, tensor)
    (path,) = tmp_path.rglob("*.safetensors")
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "short": data[:-10],
            "no header": b"\xff" * 300,
            "flipped": data[:-10] + bytes([data[-10] ^ 1]) + data[-9:],
            "other": b"{}" * 50,
        }[damage]
    )
    assert cache.get(KEY) is None
    cache.put(KEY, tensor)
    found = cache.get(KEY)
    assert found is not None
    assert torch.equal(found, tensor)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]  # no temporary file is left


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    (tmp_path / KEY[:2] / f"{KEY}.safetensors").mkdir(parents=True)
    with pytest.raises(OSError):
        cache.put(KEY, torch.zeros(3))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
