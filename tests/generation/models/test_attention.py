"""Attention kernels: which kernels are allowed, that every call obeys, and the error message."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from generation.models import attention, cogvideox
from tests.generation.models.test_cogvideox import awake, inputs, shape, tiny

CUDNN, FLASH, EFFICIENT, MATH = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


class Seen:
    """Whether the slow kernel was allowed, for each call of attention, and whether there was a mask."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.math: list[bool] = []
        self.masks: list[bool] = []
        self._attention = F.scaled_dot_product_attention
        patch.setattr(F, "scaled_dot_product_attention", self._call)

    def _call(self, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        self.math.append(torch.backends.cuda.math_sdp_enabled())
        self.masks.append(attn_mask is not None)
        return self._attention(*args, attn_mask=attn_mask, **kwargs)


def test_the_slow_kernel_is_never_among_those_of_a_gpu() -> None:
    for choice in ("fast", "cudnn", "flash", "efficient"):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for masked in (False, True):
                found = attention.kernels(choice, "cuda", dtype, masked)
                assert found
                assert MATH not in found
    assert attention.kernels("fast", "cuda", torch.bfloat16, masked=False) == [CUDNN, FLASH]
    # cuDNN and Flash would refuse these inputs.
    assert FLASH not in attention.kernels("fast", "cuda", torch.bfloat16, masked=True)
    assert attention.kernels("fast", "cuda", torch.float32, masked=False) == [EFFICIENT]
    assert attention.kernels("flash", "cuda", torch.float32, masked=True) == [FLASH]
    assert attention.kernels("any", "cuda", torch.bfloat16, masked=False) == []
    assert attention.kernels("fast", "cpu", torch.float32, masked=False) == []


def test_they_hold_in_every_call_also_when_blocks_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """`backward` calls blocks again, long after the network's call has ended."""
    asked: list[tuple[Any, ...]] = []

    def on_a_cpu(*about: Any) -> list[SDPBackend]:
        asked.append(about)
        return [FLASH]

    monkeypatch.setattr(attention, "kernels", on_a_cpu)
    model = awake(tiny(layers=3, gradient_checkpointing=True)).train()
    latents, text, time, _ = inputs()
    seen = Seen(monkeypatch)
    cogvideox.predict(model, latents, text, None, time).square().mean().backward()
    assert seen.math == [False] * 6
    assert asked == [("fast", "cpu", torch.float32, False)] * 6
    asked.clear()
    with torch.autocast("cpu", torch.bfloat16):
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[0, 3:] = False
        cogvideox.predict(model.eval(), latents, text, mask, time)
    assert asked == [("fast", "cpu", torch.bfloat16, True)] * 3
    assert seen.masks == [False] * 6 + [True] * 3
    assert torch.backends.cuda.math_sdp_enabled()  # outside, nothing has changed


def test_a_choice_changes_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    latents, text, time, _ = inputs()
    expected = cogvideox.predict(awake(tiny(attention="any")), latents, text, None, time)
    monkeypatch.setattr(attention, "kernels", lambda *_: [FLASH])
    seen = Seen(monkeypatch)
    found = cogvideox.predict(awake(tiny()), latents, text, None, time)
    assert torch.equal(found, expected)
    assert seen.math == [False, False]


def test_where_no_kernel_fits_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU has no memory-efficient kernel. Its error is like the error of a GPU for Flash with a mask."""
    monkeypatch.setattr(attention, "kernels", lambda *_: [EFFICIENT])
    model, (latents, text, time, _) = tiny(), inputs()
    with pytest.raises(ValueError, match=r"transformer\.attention: .*train\.precision=bf16") as caught:
        cogvideox.predict(model, latents, text, None, time)
    assert "text.padded" not in str(caught.value)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3:] = False
    with pytest.raises(ValueError, match=r"with a mask.*text\.padded=true or train\.batch_size=1"):
        cogvideox.predict(model, latents, text, mask, time)
    assert attention.remedy(RuntimeError("CUDA out of memory"), masked=False) is None


def test_pytorch_says_what_is_looked_for() -> None:
    query = torch.randn(1, 1, 4, 16)
    with pytest.raises(RuntimeError) as caught, sdpa_kernel([EFFICIENT]):
        F.scaled_dot_product_attention(query, query, query)
    assert attention.remedy(caught.value, masked=False)


@pytest.mark.parametrize("choice", ["cudnn", "any"])
def test_the_configuration_decides(choice: str) -> None:
    model: Any = cogvideox.build(shape(attention=choice), 4, 24, 8)
    assert {block.attn1.processor.choice for block in model.transformer_blocks} == {choice}
