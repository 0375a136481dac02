"""The origin of a converted network's tensors: names of diffusers, and keys of SwissArmyTransformer (SAT).

CogVideoX and FlashVideo were published in SAT's layout. SAT has one linear layer for queries, keys and
values, where diffusers has three. SAT has one layer of 12 d outputs for the adaptive norm, where diffusers
has two. A layer with low-rank adapters has its weights as `….original.weight`, and the adapters as
`….matrix_A.i` and `….matrix_B.i`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """The parts of a published tensor that make one converted tensor.

    The published tensor `key` is divided into `of` equal parts along the first axis, and `chunks` are chosen.
    """

    key: str
    chunks: tuple[int, ...] = (0,)
    of: int = 1


# diffusers' name, SAT's key, chosen parts, number of parts. The 12 d outputs of an adaptive norm are shift,
# scale and gate of attention, then of the feed-forward, for video; then the same for text. diffusers has
# norm1 for attention (video, text) and norm2 for the feed-forward. `(\w+)` is weight or bias.
_BLOCK, _LAYER, _NORM = r"transformer_blocks\.(\d+)", r"transformer.layers.\1", r"mixins.adaln_layer"
_EMBEDDINGS = {
    "time_embedding": "time_embed",
    "ofs_embedding.strength": "ref_step_time_embedding",
    "ofs_embedding.frames": "time_size_embedding",
}
_TRANSFORMER: list[tuple[str, str, tuple[int, ...], int]] = [
    (_BLOCK + r"\.norm1\.linear\.(\w+)", _NORM + r".adaLN_modulations.\1.1.\2", (0, 1, 2, 6, 7, 8), 12),
    (_BLOCK + r"\.norm2\.linear\.(\w+)", _NORM + r".adaLN_modulations.\1.1.\2", (3, 4, 5, 9, 10, 11), 12),
    (_BLOCK + r"\.norm1\.norm\.(\w+)", _LAYER + r".input_layernorm.\2", (0,), 1),
    (_BLOCK + r"\.norm2\.norm\.(\w+)", _LAYER + r".post_attention_layernorm.\2", (0,), 1),
    (_BLOCK + r"\.attn1\.to_q\.(\w+)", _LAYER + r".attention.query_key_value.\2", (0,), 3),
    (_BLOCK + r"\.attn1\.to_k\.(\w+)", _LAYER + r".attention.query_key_value.\2", (1,), 3),
    (_BLOCK + r"\.attn1\.to_v\.(\w+)", _LAYER + r".attention.query_key_value.\2", (2,), 3),
    (_BLOCK + r"\.attn1\.to_out\.0\.(\w+)", _LAYER + r".attention.dense.\2", (0,), 1),
    (_BLOCK + r"\.attn1\.norm_q\.(\w+)", _NORM + r".query_layernorm_list.\1.\2", (0,), 1),
    (_BLOCK + r"\.attn1\.norm_k\.(\w+)", _NORM + r".key_layernorm_list.\1.\2", (0,), 1),
    (_BLOCK + r"\.ff\.net\.0\.proj\.(\w+)", _LAYER + r".mlp.dense_h_to_4h.\2", (0,), 1),
    (_BLOCK + r"\.ff\.net\.2\.(\w+)", _LAYER + r".mlp.dense_4h_to_h.\2", (0,), 1),
    (r"norm_final\.(\w+)", r"transformer.final_layernorm.\1", (0,), 1),
    (r"norm_out\.norm\.(\w+)", r"mixins.final_layer.norm_final.\1", (0,), 1),
    (r"norm_out\.linear\.(\w+)", r"mixins.final_layer.adaLN_modulation.1.\1", (0,), 1),
    (r"proj_out\.(\w+)", r"mixins.final_layer.linear.\1", (0,), 1),
    (r"patch_embed\.(proj|text_proj)\.(\w+)", r"mixins.patch_embed.\1.\2", (0,), 1),
    *(
        (rf"{re.escape(name)}\.linear_{n}\.(\w+)", rf"{key}.{2 * n - 2}.\1", (0,), 1)
        for name, key in _EMBEDDINGS.items()
        for n in (1, 2)
    ),
]


def transformer_part(name: str) -> Part:
    """The origin of the parameter `name` of diffusers' transformer."""
    for pattern, key, chunks, of in _TRANSFORMER:
        if match := re.fullmatch(pattern, name):
            return Part(match.expand(key), chunks, of)
    raise AssertionError(name)


def vae_part(name: str, levels: int) -> Part:
    """The origin of the parameter `name` of diffusers' autoencoder.

    SAT counts the decoder's levels from the finest level, diffusers from the coarsest level.
    """
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    for ours, theirs in (
        ("down_blocks.", "down."),
        (".resnets.", ".block."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        (".conv_shortcut.", ".nin_shortcut."),
    ):
        key = key.replace(ours, theirs)
    return Part(key)


class Published:
    """The tensors of a checkpoint by key, without `prefix`. `unused` lists the keys that were never read."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], prefix: str, lora_alpha: float):
        self.path, self.prefix, self._alpha = path, prefix, lora_alpha
        self._tensors = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        self._used: set[str] = set()
        downs = (k.partition(".matrix_A.")[0] for k in self._tensors if ".matrix_A." in k)
        self._adapters = Counter(downs)  # number of pairs of a layer
        # The rank of the LoRA; 0: the checkpoint has no LoRA.
        self.rank = next((len(t) for k, t in self._tensors.items() if ".matrix_A." in k), 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def error(self, key: str, what: str) -> ValueError:
        return ValueError(f"{self.path}: {self.prefix}{key} {what}")

    def tensor(self, key: str) -> Tensor:
        """The tensor of a key; for an adapted layer, the original weights. Raises `ValueError` if missing."""
        found = key if key in self._tensors else self._original(key)
        if found not in self._tensors:
            raise self.error(
                key, "is missing: the file is incomplete or has another architecture; take a complete file"
            )
        self._used.add(found)
        return self._tensors[found]

    def shape(self, part: Part) -> tuple[int, ...]:
        """The shape of the tensor that `make` returns. Raises `ValueError` if the parts are not equal."""
        whole = self.tensor(part.key).shape
        self._check_pairs(part.key)
        if not whole or whole[0] % part.of:
            raise self.error(
                part.key, f"of {tuple(whole)} is not {part.of} equal parts: the file is of another kind"
            )
        return (whole[0] // part.of * len(part.chunks), *whole[1:])

    def make(self, part: Part) -> Tensor:
        """The converted tensor with merged adapters, in the precision of the file."""
        whole = self.tensor(part.key)
        size = len(whole) // part.of
        pieces = [self._rows(part.key, whole, k * size, (k + 1) * size) for k in part.chunks]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def unused(self) -> list[str]:
        """The keys that were never read, sorted."""
        return sorted(self._tensors.keys() - self._used)

    def _original(self, key: str) -> str:
        layer, _, kind = key.rpartition(".")
        return f"{layer}.original.{kind}"

    def _pairs(self, key: str) -> list[tuple[str, str]]:
        """The keys of a weight's adapters: one pair, or three pairs for queries, keys and values."""
        layer, _, kind = key.rpartition(".")
        count = self._adapters[layer] if kind == "weight" else 0
        return [(f"{layer}.matrix_A.{k}", f"{layer}.matrix_B.{k}") for k in range(count)]

    def _check_pairs(self, key: str) -> None:
        pairs = self._pairs(key)
        for a, b in pairs:
            down, up, weight = self.tensor(a), self.tensor(b), self.tensor(key)
            fits = (len(weight) // len(pairs), weight.shape[1])
            if down.ndim != 2 or up.shape != (fits[0], len(down)) or down.shape[1] != fits[1]:
                raise self.error(
                    b,
                    f"of {tuple(up.shape)} and {a} of {tuple(down.shape)} do not adapt a layer of "
                    f"{tuple(weight.shape)}: the file is damaged, or of another kind",
                )

    def _rows(self, key: str, whole: Tensor, first: int, last: int) -> Tensor:
        """Rows `first` to `last` of the weight W, or of W + (alpha / rank) B A for an adapted layer."""
        pairs = self._pairs(key)
        if not pairs:
            return whole[first:last]
        out = whole[first:last].to(torch.float32, copy=True)
        size = len(whole) // len(pairs)
        for k, (a, b) in enumerate(pairs):
            start, end = max(first, k * size), min(last, (k + 1) * size)
            if start < end:
                down, up = self.tensor(a).float(), self.tensor(b)[start - k * size : end - k * size].float()
                out[start - first : end - first] += self._alpha / len(down) * (up @ down)
        return out.to(whole.dtype)
