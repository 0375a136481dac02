"""Attention of the transformer: on a GPU it takes fast kernels only, or fails and says what would help.

PyTorch chooses a kernel by itself, and where no fast one fits it falls to the "math" one, in silence: that
makes the whole matrix of tokens by tokens: 22 GB in bfloat16 for one head of 49 frames of 1920x1072.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# What PyTorch says when none of the kernels that are allowed can be taken: on a GPU, and on a CPU.
_NONE_FITS = ("No available kernel", "No viable backend")

_ONE = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def kernels(choice: str, device: str, dtype: torch.dtype, masked: bool) -> list[SDPBackend]:
    """Those that are allowed, the best first; nothing: all, as PyTorch would choose.

    choice: `transformer.attention` of the configuration; device: its type. The order is that of published
    measurements on an H100 (FlashAttention-3's, forward, heads of 64 and 128): cuDNN, then FlashAttention-2.
    These two take half precision only, and Flash no mask: for the rest there is the memory-efficient one.
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
    """The library's attention, with no other kernels than those allowed.

    Here and not around the whole network: with gradient checkpointing blocks are computed again by
    `backward`, where nothing around the network holds any more, and another kernel would keep other tensors.
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
    """Let the attention of all blocks go this way."""
    library: Any = model
    for block in library.transformer_blocks:
        block.attn1.set_processor(Pinned(block.attn1.processor, choice))


def remedy(error: RuntimeError, masked: bool) -> str | None:
    """What to do where no kernel that is allowed fits; None: the error is another one."""
    if not any(text in str(error) for text in _NONE_FITS):
        return None
    ways = ["train.precision=bf16 (on a GPU that has it)", "transformer.head_dim=64 or 128"]
    if masked:
        ways.insert(0, "text.padded=true or train.batch_size=1 (captions of one length need no mask)")
    return (
        f"transformer.attention: no kernel that it allows takes this model{' with a mask' if masked else ''} "
        f"on this device. What would help: {'; '.join(ways)}; or transformer.attention=any, which may be "
        "very slow and take memory that grows with the square of the tokens"
    )
