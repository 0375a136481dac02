"""Low-rank adapters: the transformer is frozen, and two thin matrices beside each chosen layer learn.

W x becomes W x + (alpha / rank) B A x with A (rank, in) and B (out, rank). The library peft does the work.
Adapters are saved as the file that diffusers' `CogVideoXPipeline.load_lora_weights` loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation import draws
from generation.config import Lora
from generation.disk import save_tensors

FILE = "pytorch_lora_weights.safetensors"
_NAME = "default"  # the name of the adapter in peft
_RECORD = "lora_adapter_metadata"  # the entry in which diffusers looks for rank and alpha


def layers(model: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear layers that `targets` name, by path. A path equals a target or ends in ".target".

    The model has no adapters yet. Raises `ValueError` that names every target without a layer.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, nn.Linear] = {}
    nothing = []
    for target in targets:
        hits = {name: m for name, m in linear.items() if name == target or name.endswith(f".{target}")}
        found.update(hits)
        if not hits:
            nothing.append(target)
    if nothing or not found:
        there = sorted({name.split(".", 2)[2] for name in linear if name.startswith("transformer_blocks.")})
        raise ValueError(
            f"lora.targets: {', '.join(nothing) or 'an empty list'} names no layer of the transformer; its "
            f"blocks have {', '.join(there)}"
        )
    return found


def parameters(model: nn.Module, lora: Lora) -> int:
    """The number of parameters that adapters would have. The model may be on the meta device."""
    return sum(lora.rank * (m.in_features + m.out_features) for m in layers(model, lora.targets).values())


def add(model: nn.Module, lora: Lora, seed: int = 0) -> None:
    """Add new adapters to the target layers and freeze all other parameters. B is zero: outputs stay equal.

    A is uniform within 1 / sqrt(in), as in peft, but `seed` decides the draws. Adapters are always float32.
    Raises `ValueError` for a target without a layer.
    """
    from peft import LoraConfig

    wanted = layers(model, lora.targets)
    alpha: Any = lora.alpha  # typed as int, used as a float
    settings = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(lora.targets))
    library: Any = model
    with _undisturbed(model):
        library.add_adapter(settings, adapter_name=_NAME)
    with torch.no_grad():
        for path in wanted:
            a = model.get_submodule(path).get_parameter(f"lora_A.{_NAME}.weight")
            if a.device.type != "meta":
                fresh = torch.empty(a.shape)
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=draws.generator("lora", seed, path))
                a.copy_(fresh)
    _finish(model, len(wanted), learn=True)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters, by name."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def save(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapters to `FILE` in `folder` and return its path."""
    return save_state(model, trainable(model), folder)


def save_state(model: nn.Module, state: Mapping[str, Tensor], folder: str | Path) -> Path:
    """Write a file as `save` does, with the weights `state`: averages, or weights from many processes.

    state has the names of `trainable`. Rank, alpha and layers are written, too: without alpha, an adapter
    would be loaded at another strength.
    """
    from diffusers import CogVideoXPipeline

    library: Any = model
    settings = library.peft_config[_NAME]
    assert set(state) == set(trainable(model)), "the state must hold exactly the adapters"
    record = {
        "transformer.r": settings.r,
        "transformer.lora_alpha": settings.lora_alpha,
        "transformer.target_modules": sorted(settings.target_modules),
    }

    def write(tensors: dict[str, Tensor], file: str) -> None:
        # Exactly one entry: safetensors writes several entries in any order, and then the hashes of equal
        # weights would differ.
        save_tensors(tensors, file, {_RECORD: json.dumps(record, sort_keys=True)})

    CogVideoXPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={
            name.replace(f".{_NAME}.", "."): value.detach().cpu().contiguous()
            for name, value in state.items()
        },
        save_function=write,
    )
    path = Path(folder) / FILE
    assert path.is_file(), path
    return path


def load(model: nn.Module, folder: str | Path, learn: bool = False) -> int:
    """Load saved adapters into a model without adapters. Returns the number of adapted layers.

    learn: whether the adapters will be trained. Raises `ValueError` when the file is missing, unreadable or
    for another transformer. The library alone would load the fitting layers and only print a warning.
    """
    path = Path(folder) / FILE
    state, metadata = _read(path)
    paths = {key.rsplit(".lora_", 1)[0] for key in state}
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name in sorted(paths):
        a, b = state.get(f"{name}.lora_A.weight"), state.get(f"{name}.lora_B.weight")
        layer = linear.get(name)
        if a is None or b is None or layer is None:
            missing = "is not in this transformer" if layer is None else "lacks one of its two matrices"
            raise ValueError(
                f"{path}: the adapted layer {name} {missing}; take the weights it was trained on"
            )
        if (a.shape[1], b.shape[0]) != (layer.in_features, layer.out_features) or a.shape[0] != b.shape[1]:
            raise ValueError(
                f"{path}: {name} adapts a layer of {a.shape[1]} to {b.shape[0]}, but this layer is "
                f"{layer.in_features} to {layer.out_features}; take the weights it was trained on"
            )
    if metadata and isinstance(metadata.get("target_modules"), list):
        here = layers(model, tuple(metadata["target_modules"]))
        if set(here) != paths:
            raise ValueError(
                f"{path}: adapts {len(paths)} layers, but its targets name {len(here)} layers of this "
                "transformer; take the weights it was trained on"
            )
    library: Any = model
    with _undisturbed(model):
        library.load_lora_adapter(
            {f"transformer.{k}": v for k, v in state.items()},
            prefix="transformer",
            adapter_name=_NAME,
            metadata={f"transformer.{k}": v for k, v in metadata.items()} if metadata else None,
        )
    _finish(model, len(paths), learn)
    for name, value in trainable(model).items():
        assert torch.equal(value.cpu(), state[name.replace(f".{_NAME}.", ".")].float()), name
    return len(paths)


def fuse(model: nn.Module) -> None:
    """Merge the adapters into the weights and remove the adapters. Then all parameters may learn."""
    library: Any = model
    library.fuse_lora()
    library.unload_lora()
    model.requires_grad_(True)
    assert not trainable(model)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors by layer path, without diffusers' prefix, and diffusers' record of rank and alpha."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key.removeprefix("transformer."): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get(_RECORD)
            metadata = json.loads(header) if header else None
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: these adapters cannot be read: {error}") from error
    if not state or not all(".lora_A.weight" in key or ".lora_B.weight" in key for key in state):
        raise ValueError(f"{path}: holds no adapters in the layout of diffusers and peft")
    if metadata:
        metadata = {key.removeprefix("transformer."): value for key, value in metadata.items()}
    return state, metadata


def _undisturbed(model: nn.Module) -> Any:
    """A context that restores the global random state, which peft uses on the device of the layer."""
    device = next(model.parameters()).device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _finish(model: nn.Module, count: int, learn: bool) -> None:
    """Make the adapters float32 and freeze all other parameters. Exactly `count` layers must be adapted."""
    adapters = trainable(model)
    assert len(adapters) == 2 * count, (len(adapters), count)
    for p in model.parameters():
        p.requires_grad_(False)
    for p in adapters.values():
        p.data = p.data.float()
        p.requires_grad_(learn)
