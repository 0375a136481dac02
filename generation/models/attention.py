"""Attention of the transformer. On a GPU it uses only fast kernels, or fails with an error that helps.

PyTorch chooses a kernel without asking. Where no fast kernel fits, PyTorch silently takes the "math" kernel,
which computes the whole matrix of tokens by tokens: 22 GB in bfloat16 for one head and 49 frames of
1920x1072.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# PyTorch's messages when no allowed kernel fits: on a GPU, and on a CPU.
_NONE_FITS = ("No available kernel", "No viable backend")

_ONE = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def kernels(choice: str, device: str, dtype: torch.dtype, masked: bool) -> list[SDPBackend]:
    """The allowed kernels, the best kernel first. An empty list: PyTorch chooses among all kernels.

    choice: `transformer.attention` of the configuration; device: the device's type; masked: whether there is
    an attention mask. The order follows published measurements on an H100 (of FlashAttention-3: forward
    passes, heads of 64 and 128): cuDNN, then FlashAttention-2. Both kernels need half precision, and Flash
    accepts no mask. The memory-efficient kernel serves the other cases.
    """
    if choice == "any" or device != "cuda":
        return []
    if choice != "fast":
        return [_ONE[choice]]
    if dtype == torch.float32:
        return [SDPBackend.EFFICIENT_ATTENTION]
    if masked:
        return [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


class Pinned:
    """The library's attention, limited to the allowed kernels.

    The limit is set here, and not around the whole network. With gradient checkpointing, `backward` computes
    blocks again, outside of any context around the network. Another kernel would then save other tensors.
    """

    def __init__(self, inner: Any, choice: str):
        self.inner, self.choice = inner, choice

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        device, dtype = hidden_states.device.type, hidden_states.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        allowed = kernels(self.choice, device, dtype, attention_mask is not None)
        with sdpa_kernel(allowed, set_priority=True) if allowed else nullcontext():
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def pin(model: nn.Module, choice: str) -> None:
    """Limit the attention of all blocks to the kernels that `choice` allows."""
    library: Any = model
    for block in library.transformer_blocks:
        block.attn1.set_processor(Pinned(block.attn1.processor, choice))


def remedy(error: RuntimeError, masked: bool) -> str | None:
    """The advice to print when no allowed kernel fits. None: the error has another cause."""
    if not any(text in str(error) for text in _NONE_FITS):
        return None
    ways = ["train.precision=bf16 (on a GPU that has it)", "transformer.head_dim=64 or 128"]
    if masked:
        ways.insert(0, "text.padded=true or train.batch_size=1 (captions of one length need no mask)")
    return (
        f"transformer.attention: no allowed kernel fits this model{' with a mask' if masked else ''} "
        f"on this device. Possible remedies: {'; '.join(ways)}; or transformer.attention=any, which may be "
        "very slow and needs memory that grows with the square of the tokens"
    )
