"""Converts published checkpoints (CogVideoX, FlashVideo: `.pt` of SwissArmyTransformer) to folders that
`transformer.pretrained` and `codec.model` name.

Only tensors are read from a file, and only few tensors are in memory at a time: large files are mapped into
memory, and written tensor by tensor.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import secrets
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generation import run as runs
from generation.codecs.open import open_codec
from generation.config import Config
from generation.disk import whole_folder, write_text
from generation.models.hub import find, first_line
from generation.models.pretrained import FILE, FLASHVIDEO, VAE, check_fits, shell
from generation.published.keys import Part, Published, transformer_part, vae_part

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TRANSFORMER, _VAE = "model.diffusion_model.", "first_stage_model."
_PROJ, _CONV = "mixins.patch_embed.proj.weight", "encoder.conv_in.conv.weight"
_TABLE = "mixins.pos_embed.pos_embedding"  # the table of absolute positions
_STAGE2 = ("ref_step_time_embedding.", "time_size_embedding.")

# Tensors that a converted network does not need. Positions are computed. Embeddings of words and places are
# never used: they come from SAT's base class. `loss` (a perceptual network, a discriminator) is for training.
_LEFT_OUT = (
    "mixins.pos_embed.freqs_",
    "transformer.word_embeddings.",
    "transformer.position_embeddings.",
    "loss.",
)
# Other networks in a file. They have no effect on the converted network.
_BESIDE = ("conditioner.", "denoiser.", "loss_fn.", _VAE)

GRID = (13, 30, 45)  # patches over time, height and width in the table of absolute positions
_SPACING = 1.875  # distance of these positions over height and width


@dataclass(frozen=True)
class Recognised:
    """The kind of a checkpoint, and the plan of its conversion."""

    what: str  # a description for the user
    stage: str  # the stage that can use the network: stage1, stage2 or vae
    model: nn.Module  # on the meta device
    parts: Mapping[str, Part]  # by name of the converted tensor
    published: Published
    left_out: Mapping[str, int]  # number of tensors, by the beginning of their keys

    def told(self) -> list[str]:
        """Lines for the user: the description, and the tensors that are left out."""
        left_out = ", ".join(f"{n} of {key}*" for key, n in self.left_out.items())
        return [f"{self.published.path}: {self.what}", *([f"left out: {left_out}"] if left_out else [])]


def convert(
    checkpoint: Path,
    out: Path,
    lora_alpha: float = 1.0,
    positions: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Convert a published file to the folder `out`, completely or not at all. Returns `out`.

    lora_alpha: alpha of the training of the adapters in the file. Adapters are scaled by alpha / rank and
    merged. positions: "rotary" or "absolute", for a file that does not show its positions. say: receives
    lines for the user. Raises `ValueError` that names the file, the key and a remedy.
    """
    if out.exists():
        raise ValueError(f"{out}: this folder exists already; name another folder, or remove it")
    found = recognise(checkpoint, lora_alpha, positions)
    for line in found.told():
        say(line)
    with _whole(out) as aside:
        _write_folder(found, aside)
    say(f"use it with {'codec.model' if found.stage == 'vae' else 'transformer.pretrained'}={out}")
    return out


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A new temporary folder. It is renamed to `out` after success, and removed after an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f"_{out.name}-*"):  # from a conversion that was killed
        if re.fullmatch(r"[0-9a-f]{16}\.part", left.name.removeprefix(f"_{out.name}-")):
            shutil.rmtree(left)
    aside = out.with_name(f"_{out.name}-{secrets.token_hex(8)}.part")
    aside.mkdir()
    try:
        yield aside
        whole_folder(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def into_run(found: Recognised, config: Config, run: Path) -> Path:
    """Convert a transformer to RUN/STAGE, so that sampling can use it like a trained stage.

    config: the configuration of the stage, without LoRA and pretrained weights. Raises `ValueError` for an
    autoencoder, for sizes that differ from the configuration, and for a stage that exists already. Returns
    RUN/STAGE.
    """
    if found.stage == "vae":
        raise ValueError(
            f"{found.published.path}: this file is {found.what}; convert it with --out FOLDER, and write "
            "codec.model=FOLDER"
        )
    folder = run / config.stage
    if folder.exists():
        raise ValueError(f"{folder}: this folder exists already; name another run, or remove it")
    assert config.stage == found.stage
    sizes: Any = found.model.config
    # The text width is not compared here, because the text encoder may not be on this machine yet. The same
    # holds for the channels of a codec that is not on disk.
    wanted = config.transformer
    channels = _channels(config) or sizes.in_channels
    check_fits(found.model, channels, sizes.text_embed_dim, wanted.noise_strength, wanted)

    def write(weights: Path) -> Path:
        (weights / "transformer").mkdir()
        return _write_folder(found, weights / "transformer")

    with _whole(folder) as aside:
        write_text(aside / "config.json", config.model_dump_json(indent=1))
        runs.write_weights(config, aside, 0, write)
    return folder


def _channels(config: Config) -> int | None:
    """The channels of the codec's latents. None: a download would be necessary.

    Raises `ValueError` if `codec.model` is not a codec.
    """
    model = config.codec.model
    if config.codec.kind != "cogvideox" or model is None:
        return open_codec(config.codec).channels
    if not Path(model).is_dir():
        if Path(model).parent.is_dir() and Path(model).parent != Path():
            raise ValueError(
                f"codec.model: there is no folder {model}; `reelmill convert 3d-vae.pt --out {model}` "
                "makes it"
            )
        return None
    sizes = json.loads(find(VAE, model).config_file.read_text(encoding="utf-8"))
    return int(sizes.get("latent_channels", 16))  # diffusers' default


def _write_folder(found: Recognised, folder: Path) -> Path:
    """Write config.json and the weights, and return the path of the weights."""
    model: Any = found.model
    model.save_config(folder)
    _write(folder / FILE, found.published, found.parts)
    return folder / FILE


# ---- recognising a checkpoint


def recognise(checkpoint: Path, lora_alpha: float = 1.0, positions: str | None = None) -> Recognised:
    """Recognise a checkpoint. Every key and every shape is checked before anything is written.

    lora_alpha, positions: as in `convert`. Raises `ValueError` that names the file, the key and a remedy.
    """
    if not (math.isfinite(lora_alpha) and lora_alpha > 0):
        raise ValueError(f"--lora-alpha: a number above 0, not {lora_alpha}")
    tensors = _load(checkpoint)
    beside = {k for k in tensors if k.startswith(_BESIDE)}
    if any(_PROJ in key for key in tensors):
        prefix = _TRANSFORMER if _TRANSFORMER + _PROJ in tensors else ""
        own = {k: t for k, t in tensors.items() if k not in beside}
        published = Published(checkpoint, own, prefix, lora_alpha)
        what, stage, model, parts = _transformer(published, positions)
    elif any(_CONV in key for key in tensors) and not any(".down_blocks." in key for key in tensors):
        if positions:
            raise ValueError(f"--positions: {checkpoint} is an autoencoder and has none; leave it out")
        prefix = _VAE if _VAE + _CONV in tensors else ""
        beside = {k for k in beside if not (prefix and k.startswith(prefix))}
        own = {k: t for k, t in tensors.items() if k not in beside}
        published = Published(checkpoint, own, prefix, lora_alpha)
        what, stage, model, parts = _vae(published)
    else:
        raise ValueError(
            f"{checkpoint}: the file has no transformer ({_TRANSFORMER}{_PROJ}) and no autoencoder ({_CONV}) "
            f"of CogVideoX or FlashVideo, but {_some(sorted(tensors))}; a model in the layout of diffusers "
            "needs no conversion"
        )
    if lora_alpha != 1 and not published.rank:
        raise ValueError(f"--lora-alpha: {checkpoint} has no LoRA; leave it out")
    strangers = [k for k in own if not k.startswith(prefix)]
    _check_shapes(published, model, parts)
    strangers += [prefix + k for k in published.unused() if not k.startswith(_LEFT_OUT)]
    if strangers:
        raise ValueError(
            f"{checkpoint}: {_some(sorted(strangers))} is not known; the file has another architecture "
            "(CogVideoX 1.0 and FlashVideo are known), and a conversion would lose these weights"
        )
    dropped = [k for k in published.unused() if k.startswith(_LEFT_OUT)] + sorted(beside)
    starts = Counter(next(s for s in (*_LEFT_OUT, *_BESIDE) if k.startswith(s)) for k in dropped)
    return Recognised(what, stage, model, parts, published, starts)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by key. Raises `ValueError` for a file that could run code."""
    if path.is_dir():
        what = "name the file in it"
        if (path / "config.json").is_file():
            what = (
                "it looks like diffusers' layout, which needs no conversion: name it as "
                "transformer.pretrained or codec.model"
            )
        raise ValueError(f"{path}: it is a folder; {what}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; name the file itself, not its folder")
    try:
        content = _safely(path)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))  # the library's advice to trust the file is left out
        what = (
            f"it holds more than tensors ({culprit[1]})" if culprit else "it cannot be read as tensors alone"
        )
        raise ValueError(
            f"{path}: {what}, and a file that could run code is not opened; download the complete file from "
            "its publisher, or ask the publisher for a file with tensors only"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        # The text of a KeyError is only a number.
        why = "" if isinstance(error, KeyError) else f" ({first_line(error)})"
        raise ValueError(
            f"{path}: it cannot be read{why}; torch.save did not write this file, or the file is incomplete: "
            "download it again"
        ) from error
    for name in ("module", "state_dict", "model"):  # of DeepSpeed, Lightning, and others
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: it holds no tensors by name; name a checkpoint of weights")
    for key, value in content.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise ValueError(
                f"{path}: {key} is not a tensor but {type(value).__name__}; name a checkpoint that holds "
                "only weights"
            )
    return content


def _safely(path: Path) -> Any:
    """The content of a file that holds only tensors, plain values and arrays of numbers.

    Arrays are allowed because SAT saves the state of NumPy's generator beside the weights. Raises
    `pickle.UnpicklingError` for other content.
    """
    make: Any = np.empty(0).__reduce__()[0]
    arrays: list[Any] = [(make, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    arrays += [np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(arrays), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about pickles that are then refused
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            # Files from before PyTorch 1.6 cannot be mapped. They are read completely.
            return torch.load(path, map_location="cpu", weights_only=True)


def _check_shapes(published: Published, model: nn.Module, parts: Mapping[str, Part]) -> None:
    for name, like in model.state_dict().items():
        part = parts[name]
        shape, dtype = published.shape(part), published.tensor(part.key).dtype
        if shape != like.shape:
            raise published.error(
                part.key,
                f"gives {tuple(shape)}, but {tuple(like.shape)} is needed ({name}): the file is damaged, or "
                "has another architecture",
            )
        if dtype not in _DTYPES:
            raise published.error(part.key, f"is {dtype}; save it as bfloat16, float16 or float32")


# ---- transformers


def _transformer(published: Published, positions: str | None) -> tuple[str, str, nn.Module, dict[str, Part]]:
    sizes = _sizes(published)
    rotary = _is_rotary(published, positions)
    if not rotary:
        sizes["max_text_seq_length"] = _check_table(published)
    stage2 = any(key.startswith(_STAGE2) for key in published)
    model = shell({**sizes, "use_rotary_positional_embeddings": rotary, FLASHVIDEO: stage2})
    parts = {name: transformer_part(name) for name in model.state_dict()}
    width = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    what = "CogVideoX"
    if stage2:
        what = "FlashVideo's Stage II"
    elif published.rank:
        what = f"CogVideoX with a LoRA of rank {published.rank}, like FlashVideo's Stage I; merged"
    count = sum(p.numel() for p in model.parameters())
    what += f": {sizes['num_layers']} layers of {width}, {'rotary' if rotary else 'absolute'} positions, "
    return what + f"{count / 1e6:,.1f} M parameters", "stage2" if stage2 else "stage1", model, parts


def _sizes(published: Published) -> dict[str, Any]:
    """The sizes of the transformer, read from the shapes of its tensors."""
    proj, text = published.tensor(_PROJ), published.tensor("mixins.patch_embed.text_proj.weight")
    if proj.ndim == 2:
        raise published.error(
            _PROJ,
            "has patches over time, too (CogVideoX 1.5); take a checkpoint of CogVideoX 1.0 or FlashVideo",
        )
    width, channels, patch = proj.shape[0], proj.shape[1], proj.shape[2]
    final = published.tensor("mixins.final_layer.linear.weight")
    out = len(final) // patch**2
    if out != channels:
        raise published.error(
            _PROJ,
            f"takes {channels} channels and the output has {out}: this is an image-to-video model; take a "
            "text-to-video model",
        )
    head = len(published.tensor("mixins.adaln_layer.query_layernorm_list.0.weight"))
    layers = [int(m[1]) for k in published if (m := re.match(r"transformer\.layers\.(\d+)\.", k))]
    return {
        "num_layers": 1 + max(layers, default=-1),
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": channels,
        "out_channels": out,
        "time_embed_dim": len(published.tensor("time_embed.2.weight")),
        "text_embed_dim": text.shape[1],
        "patch_size": patch,
    }


def _is_rotary(published: Published, wanted: str | None) -> bool:
    """Whether positions are rotary. The file shows it by a table of positions (absolute), by angles
    (CogVideoX-5B), or by tensors that only FlashVideo has.

    Raises `ValueError` if the file shows no positions (CogVideoX-2B), or others than `wanted`.
    """
    told: bool | None = None
    if _TABLE in published:
        told = False
    elif published.rank or any(k.startswith((*_STAGE2, "mixins.pos_embed.freqs_")) for k in published):
        told = True
    if told is None and wanted is None:
        raise ValueError(
            f"{published.path}: the file does not show the kind of its positions, because it has no "
            f"{published.prefix}{_TABLE} and no …freqs_sin; add --positions rotary (CogVideoX-5B, "
            "FlashVideo) or --positions absolute (CogVideoX-2B)"
        )
    if None not in (told, wanted) and told != (wanted == "rotary"):
        raise ValueError(
            f"{published.path}: --positions {wanted}, but the positions of the file are "
            f"{'rotary' if told else 'absolute'}; leave --positions out"
        )
    return wanted == "rotary" if told is None else told


def _check_table(published: Published) -> int:
    """The number of text tokens. diffusers computes the table of positions, so a stored table must be equal.

    Raises `ValueError` for another table.
    """
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    if _TABLE not in published:
        return 226
    table = published.tensor(_TABLE)
    t, h, w = GRID
    text = table.shape[1] - t * h * w if table.ndim == 3 else 0
    if text < 1:
        raise published.error(
            _TABLE,
            f"of {tuple(table.shape)} is not for text and {t} x {h} x {w} patches, as in CogVideoX-2B",
        )
    computed = get_3d_sincos_pos_embed(table.shape[2], (w, h), t, _SPACING, output_type="pt").flatten(0, 1)
    # In bfloat16, numbers below 1 have errors of up to 0.002.
    if table[0, :text].any() or (table[0, text:].float() - computed).abs().max() > 4e-3:
        raise published.error(
            _TABLE,
            "holds other positions than CogVideoX-2B: they were trained, but diffusers cannot store trained "
            "positions",
        )
    return text


# ---- autoencoders


def _vae(published: Published) -> tuple[str, str, nn.Module, dict[str, Part]]:
    from diffusers import AutoencoderKLCogVideoX

    downs = [re.match(r"encoder\.down\.(\d+)\.block\.(\d+)\.", key) for key in published]
    places = [(int(m[1]), int(m[2])) for m in downs if m]
    levels, blocks = (1 + max((p[k] for p in places), default=-1) for k in (0, 1))
    if levels != 4:
        raise published.error("encoder.down", f"has {levels} levels; CogVideoX's autoencoder has 4")
    last = published.tensor("encoder.conv_out.conv.weight")
    settings: dict[str, Any] = {
        "block_out_channels": [
            len(published.tensor(f"encoder.down.{k}.block.0.conv2.conv.weight")) for k in range(levels)
        ],
        "layers_per_block": blocks,
        "in_channels": published.tensor(_CONV).shape[1],
        "out_channels": len(published.tensor("decoder.conv_out.conv.weight")),
        "latent_channels": len(last) // 2,
    }
    with torch.device("meta"):
        model: Any = AutoencoderKLCogVideoX(**settings)
    parts = {name: vae_part(name, levels) for name in model.state_dict()}
    count = sum(p.numel() for p in model.parameters())
    what = f"CogVideoX's autoencoder, {settings['latent_channels']} channels, {count / 1e6:,.1f} M parameters"
    return what, "vae", model, parts


# ---- the file


def _write(path: Path, published: Published, parts: Mapping[str, Part]) -> None:
    """Write a safetensors file one tensor after the other. The library's writer needs all tensors in memory.

    The format is: 8 bytes for the header's length, the header in JSON, the tensors (safetensors' README,
    "Format").
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, part in parts.items():
        shape, dtype = published.shape(part), published.tensor(part.key).dtype
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts.values():
            tensor = published.make(part)
            if not bool(torch.isfinite(tensor).all()):
                raise published.error(
                    part.key, "has infinite or undefined values: the file is damaged; download it again"
                )
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end
