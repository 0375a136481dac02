"""Trained networks on disk and on the model hub, in the layout of diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.config import Transformer

FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Part:
    """What is looked for: a class of diffusers, its folder in a pipeline's, the key that names the source."""

    class_name: str
    subfolder: str
    key: str


TRANSFORMER = Part("CogVideoXTransformer3DModel", "transformer", "transformer.pretrained")
VAE = Part("AutoencoderKLCogVideoX", "vae", "codec.model")


def read(
    part: Part, source: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A network that `write` or diffusers' `save_pretrained` wrote, on the CPU.

    source: its folder, a pipeline's folder that holds it under the part's name, or the name of either on the
    hub. Raises `ValueError` when it is not there, cannot be read, is incomplete, or patches time (1.5).
    """
    import diffusers
    from safetensors import SafetensorError

    folder, name = Path(source).expanduser(), str(source)
    if folder.is_dir():
        place, subfolder = str(folder), _find(part, folder)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        place, subfolder = name, _find_on_hub(part, name, revision)
    else:
        raise ValueError(
            f"{part.key}: there is no folder {source}; name a diffusers folder, or a hub model such as "
            "THUDM/CogVideoX-5b"
        )
    try:
        model, found = getattr(diffusers, part.class_name).from_pretrained(
            place,
            subfolder=subfolder,
            revision=revision,
            torch_dtype=dtype,
            use_safetensors=True,
            low_cpu_mem_usage=True,  # no weights are drawn only to be replaced
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{part.key}: {source} cannot be loaded: {error}") from error
    # The library only warns of these, and starts what is missing at random.
    odd = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(odd.values()):
        parts = "; ".join(f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in odd.items() if keys)
        raise ValueError(f"{part.key}: the weights in {source} are not those of its config.json: {parts}")
    if getattr(model.config, "patch_size_t", None) is not None:
        raise ValueError(
            f"{part.key}: {source} patches time as well (CogVideoX 1.5); take a CogVideoX 1.0 model such as "
            "THUDM/CogVideoX-5b"
        )
    result: nn.Module = model
    return result


def _find(part: Part, folder: Path) -> str | None:
    """Where in a folder the network lies: in itself (None), or in the part's folder."""
    for subfolder in (None, part.subfolder):
        path = folder / (subfolder or "") / "config.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{part.key}: {path} cannot be read: {error}") from error
            if isinstance(content, dict) and content.get("_class_name") == part.class_name:
                return subfolder
    raise ValueError(
        f"{part.key}: {folder} holds no {part.class_name}: neither config.json nor "
        f"{part.subfolder}/config.json in it tells of one"
    )


def _find_on_hub(part: Part, name: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for subfolder in (part.subfolder, None):
        try:
            hf_hub_download(name, "config.json", subfolder=subfolder, revision=revision)
            return subfolder
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"{part.key}: there is no folder {name}, and the model hub cannot be reached; fetch the "
                f"model where there is a network (hf download {name}) and name its folder"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise ValueError(f"{part.key}: the model hub does not give out {name}: {error}") from error
    raise ValueError(f"{part.key}: {name} on the model hub holds no {part.class_name}")


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
