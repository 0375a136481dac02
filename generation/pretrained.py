"""Trained networks on disk and on the model hub, in the layout of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.config import Transformer
from generation.hub import Place, Wanted

FILE = "diffusion_pytorch_model.safetensors"

_EXAMPLE = "a diffusers folder, or a hub model such as THUDM/CogVideoX-5b"
TRANSFORMER = Wanted(
    "transformer.pretrained",
    ("config.json", "transformer/config.json"),
    _EXAMPLE,
    "CogVideoXTransformer3DModel",
)
VAE = Wanted("codec.model", ("config.json", "vae/config.json"), _EXAMPLE, "AutoencoderKLCogVideoX")


def read(place: Place, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network that `write` or diffusers' `save_pretrained` wrote, on the CPU.

    Raises `ValueError` when it cannot be read, is incomplete, or patches time (1.5).
    """
    import diffusers
    from safetensors import SafetensorError

    key, source = place.wanted.key, place.name
    try:
        model, found = getattr(diffusers, place.wanted.class_name).from_pretrained(
            source,
            subfolder=place.part or None,
            revision=place.commit,
            torch_dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=True,  # no weights are drawn only to be replaced
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{key}: {source} cannot be loaded: {error}") from error
    # The library only warns of these, and starts what is missing at random.
    odd = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(odd.values()):
        parts = "; ".join(f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in odd.items() if keys)
        raise ValueError(f"{key}: the weights in {source} are not those of its config.json: {parts}")
    if getattr(model.config, "patch_size_t", None) is not None:
        raise ValueError(
            f"{key}: {source} patches time as well (CogVideoX 1.5); take a CogVideoX 1.0 model such as "
            "THUDM/CogVideoX-5b"
        )
    result: nn.Module = model
    return result


def check_fits(
    model: nn.Module,
    channels: int,
    text_dim: int,
    noise_strength: bool,
    transformer: Transformer | None = None,
) -> None:
    """Raise `ValueError` naming every number in which a loaded model differs from what is wanted of it."""
    config: Any = model.config
    pairs: list[tuple[str, Any, Any]] = [
        ("input channels (the codec's)", config.in_channels, channels),
        ("output channels (the codec's)", config.out_channels, channels),
        ("text width (the text encoder's)", config.text_embed_dim, text_dim),
        ("transformer.noise_strength", config.ofs_embed_dim is not None, noise_strength),
    ]
    if transformer:
        pairs += [
            ("transformer.layers", config.num_layers, transformer.layers),
            ("transformer.heads", config.num_attention_heads, transformer.heads),
            ("transformer.head_dim", config.attention_head_dim, transformer.head_dim),
            ("transformer.time_embed_dim", config.time_embed_dim, transformer.time_embed_dim),
            ("transformer.patch", config.patch_size, transformer.patch),
        ]
    wrong = [f"{name}: {found}, not {wanted}" for name, found, wanted in pairs if found != wanted]
    if wrong:
        raise ValueError(
            f"the pretrained transformer does not fit the configuration: {'; '.join(wrong)}. Take the codec, "
            "the text encoder and the sizes that it was trained with, or other weights"
        )


def write(model: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> Path:
    """Write config.json and the weights `state` as diffusers does, and return the path of the weights' file.

    state: of all parameters of `model`, by name; its own, averages, or ones gathered from many processes.
    """
    from diffusers import CogVideoXTransformer3DModel

    assert not any("lora_" in name for name in state), "adapters are saved by generation.lora"
    config: Any = model.config
    with torch.device("meta"):
        shell = CogVideoXTransformer3DModel.from_config(config)
    # Learned position tables are buffers: no optimiser sees them, but they belong to the weights.
    buffers = {
        name: value for name, value in model.state_dict().items() if name in dict(model.named_buffers())
    }
    shell.load_state_dict({**buffers, **state}, strict=True, assign=True)
    shell.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    path = Path(folder) / FILE
    assert path.is_file(), path
    return path
