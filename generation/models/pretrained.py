"""Trained networks on disk and on the model hub, in the layout of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.config import Transformer
from generation.models.hub import Location, Wanted

FILE = "diffusion_pytorch_model.safetensors"

_EXAMPLE = "a diffusers folder, or a hub model such as THUDM/CogVideoX-5b"
TRANSFORMER = Wanted(
    "transformer.pretrained",
    ("config.json", "transformer/config.json"),
    _EXAMPLE,
    "CogVideoXTransformer3DModel",
)
VAE = Wanted("codec.model", ("config.json", "vae/config.json"), _EXAMPLE, "AutoencoderKLCogVideoX")

# A key in the config.json that `generation.published.convert` writes for FlashVideo's Stage II: see
# `FlashVideoEmbeddings`.
FLASHVIDEO = "flashvideo_embeddings"


class _Sinusoids(nn.Module):
    """Turns numbers (B, N) into sinusoids (B, N, width), like those of the time embedding."""

    def __init__(self, width: int, flip_sin_to_cos: bool, freq_shift: float):
        from diffusers.models.embeddings import Timesteps

        super().__init__()
        self._each = Timesteps(width, flip_sin_to_cos, freq_shift)

    def forward(self, numbers: Tensor) -> Tensor:
        result: Tensor = self._each(numbers.flatten()).unflatten(0, numbers.shape)
        return result


class FlashVideoEmbeddings(nn.Module):
    """The embeddings that FlashVideo's Stage II adds to the time embedding, in place of `ofs_embedding`.

    The noise strength and the number of latent frames each have an MLP, like the time. The sinusoids are as
    wide as the network. (The sinusoids of diffusers' `ofs_embedding` are as wide as the time embedding.)
    """

    def __init__(self, width: int, time_embed_dim: int):
        from diffusers.models.embeddings import TimestepEmbedding

        super().__init__()
        self.strength = TimestepEmbedding(width, time_embed_dim)
        self.frames = TimestepEmbedding(width, time_embed_dim)

    def forward(self, sinusoids: Tensor) -> Tensor:
        """Turn sinusoids (B, 2, width) into the embedding (B, time_embed_dim)."""
        result: Tensor = self.strength(sinusoids[:, 0]) + self.frames(sinusoids[:, 1])
        return result


def shell(config: Mapping[str, Any]) -> nn.Module:
    """The transformer that a config.json describes, on the meta device."""
    from diffusers import CogVideoXTransformer3DModel

    plain = {key: value for key, value in config.items() if key != FLASHVIDEO}
    if not config.get(FLASHVIDEO):
        with torch.device("meta"):
            model: Any = CogVideoXTransformer3DModel.from_config(plain)
        result: nn.Module = model
        return result
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config({**plain, "ofs_embed_dim": None})
        sizes = model.config
        width = sizes.num_attention_heads * sizes.attention_head_dim
        model.ofs_proj = _Sinusoids(width, sizes.flip_sin_to_cos, sizes.freq_shift)
        model.ofs_embedding = FlashVideoEmbeddings(width, sizes.time_embed_dim)
    # The width of the sinusoids. Loading with diffusers alone fails at this width; with another width,
    # diffusers would invent weights.
    model.register_to_config(ofs_embed_dim=width, **{FLASHVIDEO: True})
    result = model
    return result


def read(location: Location, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Read a network that `write` or diffusers' `save_pretrained` wrote, on the CPU.

    Raises `ValueError` when the network cannot be read, is incomplete, or has patches over time (1.5).
    """
    import diffusers
    from safetensors import SafetensorError

    key, source = location.wanted.key, location.name
    config = json.loads(location.config_file.read_text(encoding="utf-8"))
    if config.get(FLASHVIDEO):
        return _read_flashvideo(location, config, dtype)
    try:
        model, found = getattr(diffusers, location.wanted.class_name).from_pretrained(
            source,
            subfolder=location.part or None,
            revision=location.commit,
            torch_dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=True,  # create no random weights, which the file would replace
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{key}: {source} cannot be loaded: {error}") from error
    # The library only prints a warning about such weights, and fills missing weights at random.
    odd = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(odd.values()):
        parts = "; ".join(f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in odd.items() if keys)
        raise ValueError(f"{key}: the weights in {source} are not those of its config.json: {parts}")
    if getattr(model.config, "patch_size_t", None) is not None:
        raise ValueError(
            f"{key}: {source} has patches over time, too (CogVideoX 1.5); take a CogVideoX 1.0 model such as "
            "THUDM/CogVideoX-5b"
        )
    result: nn.Module = model
    return result


def _read_flashvideo(location: Location, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    from huggingface_hub import hf_hub_download
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = f"{location.part}/{FILE}" if location.part else FILE
    try:
        path = hf_hub_download(location.name, file, revision=location.commit) if location.commit else None
        state = load_file(path or Path(location.name) / file)
        model = shell(config)
        model.load_state_dict(state, strict=True, assign=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{location.wanted.key}: {location.name} cannot be loaded: {error}") from error
    return nn.Module.to(model, dtype).eval()  # the library's own `to` prints a warning without a reason


def check_fits(
    model: nn.Module,
    channels: int,
    text_dim: int,
    noise_strength: bool,
    transformer: Transformer | None = None,
) -> None:
    """Check the sizes of a loaded model. Raises `ValueError` that names every size that differs."""
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
    """Write config.json and the weights `state` in the layout of diffusers. Returns the path of the weights.

    state: values for all parameters of `model`, by name: the parameters themselves, averages, or weights from
    many processes.
    """
    assert not any("lora_" in name for name in state), "adapters are saved by generation.models.lora"
    config: Any = model.config
    whole: Any = shell(config)
    # Learned position tables are buffers. An optimiser does not see buffers, but they belong to the weights.
    buffers = {
        name: value for name, value in model.state_dict().items() if name in dict(model.named_buffers())
    }
    whole.load_state_dict({**buffers, **state}, strict=True, assign=True)
    whole.save_pretrained(folder, safe_serialization=True, max_shard_size="1TB")
    path = Path(folder) / FILE
    assert path.is_file(), path
    return path
