"""A run's folder: RUN/{vae,stage1,stage2}/{config.json, checkpoints/, weights/, log.jsonl, tensorboard/, …}.

`weights/` is what sampling loads, and other programs can: a diffusers folder `transformer/`, or for a LoRA
`pytorch_lora_weights.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from generation.codecs.base import Codec, open_codec
from generation.config import Config, Transformer, content_hash, differences
from generation.disk import disk_errors
from generation.models import cogvideox
from generation.models import lora as adapters
from generation.models.hub import find, fingerprint
from generation.models.pretrained import TRANSFORMER
from generation.sample.execution import Execution, place
from generation.text.encoder import TextCache, open_text
from generation.train.checkpoint import steps, whole_folder, write_text
from generation.train.parallel import uses_bf16

STAGES = ("vae", "stage1", "stage2")

# Dense bf16 peaks, in FLOP/s, from the makers' data sheets, by a part of the device's name.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "A10": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in bfloat16; None where it is not known, as for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def check(run: Path, config: Config) -> list[str]:
    """What has changed since an earlier start of this training, and may: `key: old -> new`.

    Raises `ValueError` when the folder holds a training of another configuration.
    """
    folder = run / config.stage
    if not (folder / "config.json").exists():
        return []
    before = read_config(run, config.stage)
    changed = differences(before, config)
    if changed and steps(folder / "checkpoints"):
        raise ValueError(
            f"{folder} holds a training of another configuration; take another --out, or go on "
            f"with the same one. Changed: {'; '.join(changed)}"
        )
    return differences(before, config, harmless=True)


def begin(run: Path, config: Config) -> Path:
    """The folder of a stage's training, its configuration written down. Raises `ValueError`: see `check`."""
    check(run, config)
    folder = run / config.stage
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.json", config.model_dump_json(indent=1))
    return folder


def take_sampling(run: Path, config: Config) -> None:
    """Write down the `sampling` of a training that is over. The rest stays: it tells how the weights came to
    be."""
    before = read_config(run, config.stage)
    if before.sampling != config.sampling:
        now = before.model_copy(update={"sampling": config.sampling})
        write_text(run / config.stage / "config.json", now.model_dump_json(indent=1))


def read_config(run: Path, stage: str) -> Config:
    """The configuration of a stage that was trained. Raises `ValueError` when there is none."""
    path = run / stage / "config.json"
    if not path.exists():
        if not run.is_dir():
            raise ValueError(
                f"{run}: there is no such run folder; reelmill train {stage} --out {run} makes it"
            )
        there = [s for s in STAGES if (run / s / "config.json").exists()]
        raise ValueError(
            f"{run} has no {stage} (it has {', '.join(there) or 'no stage'}); "
            f"reelmill train {stage} --data DATASET --out {run} trains it"
        )
    try:
        return Config.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(
            f"{path}: not a configuration of this version of reelmill: {_told(error)}"
        ) from error


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def build_model(
    config: Config, channels: int, text_dim: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The network of a stage, ready to be trained: from scratch or from `transformer.pretrained`, with LoRA.

    Raises `ValueError` when the checkpoint is missing or has other sizes than configuration, codec and text
    encoder.
    """
    wanted, adapter = _resolved(config.transformer)
    grid = config.latent_grid(config.data.buckets[0])
    model = cogvideox.build(
        wanted, channels, text_dim, config.text.max_tokens, config.codec.temporal, grid, config.seed, dtype
    )
    if adapter:
        adapters.load(model, adapter)
        adapters.fuse(model)
    if config.lora:
        adapters.add(model, config.lora, config.seed)
    return model


def _resolved(wanted: Transformer) -> tuple[Transformer, Path | None]:
    """`pretrained` may be RUN/STAGE of ours: its weights, or for a LoRA its base and the adapters."""
    if not wanted.pretrained:
        return wanted, None
    folder = Path(wanted.pretrained).expanduser()
    weights = folder / "weights"
    if not (folder / "config.json").is_file() or not weights.is_dir():
        return wanted, None
    if (weights / adapters.FILE).is_file():
        base = read_config(folder.parent, folder.name).transformer
        found, below = _resolved(wanted.model_copy(update={"pretrained": base.pretrained}))
        if below:
            raise ValueError(
                f"transformer.pretrained: {folder} is a LoRA on a LoRA; name the run at the bottom, or "
                "train one with lora=null"
            )
        return found, weights
    return wanted.model_copy(update={"pretrained": str(weights)}), None


def _base_identity(config: Config) -> list[Any]:
    """What stands for the weights below a LoRA."""
    if not config.lora:
        return []
    base, adapter = _resolved(config.transformer)
    assert base.pretrained is not None
    found = find(TRANSFORMER, base.pretrained, base.revision).identity()
    return [found, fingerprint(adapter) if adapter else None]


def export(
    model: nn.Module, config: Config, state: Mapping[str, Tensor], folder: Path, step: int, latents: str = ""
) -> Path:
    """Write `weights/`, whole or not at all: the whole transformer, or the LoRA alone.

    latents: what stands for the codec's weights, where others may take their place (`latents_of`).
    """

    def write(aside: Path) -> Path:
        if config.lora:
            return adapters.save_state(model, state, aside)
        with disk_errors(aside):
            return cogvideox.save_state(model, state, aside / "transformer")

    return write_weights(config, folder, step, write, latents)


def latents_of(codec: Codec) -> str:
    """What stands for the weights of an autoencoder of one's own, which a later training may replace."""
    return codec.hash if codec.settings.kind == "slice" else ""


def write_weights(
    config: Config, folder: Path, step: int, write: Callable[[Path], Path], latents: str = ""
) -> Path:
    """FOLDER/weights, whole or not at all. `write` fills it, and returns the file that stands for it."""
    final, aside = folder / "weights", folder / "_weights"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    about = {"stage": config.stage, "step": step, "hash": _file_hash(write(aside)), "latents": latents}
    (aside / "weights.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    whole_folder(aside, final)
    return final


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


@dataclass
class Trained:
    """A trained stage. The network is loaded when it is wanted, and let go of before the next one."""

    config: Config
    folder: Path
    hash: str
    codec: Codec
    text: TextCache
    device: torch.device

    @property
    def precision(self) -> str:
        """That the network computes in: bf16 or fp32."""
        return "bf16" if uses_bf16(self.config.train.precision, self.device) else "fp32"

    def model(self, how: Execution = Execution()) -> nn.Module:  # noqa: B008 (frozen)
        """The network with its trained weights for sampling, placed as `how` says."""
        weights = self.folder / "weights"
        config = self.config.model_copy(update={"lora": None})
        if not self.config.lora:
            wanted = config.transformer.model_copy(update={"pretrained": str(weights), "revision": None})
            config = config.model_copy(update={"transformer": wanted})
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(config, self.codec.channels, self.text.dim, dtype)
        if self.config.lora:
            adapters.load(model, weights)
            adapters.fuse(model)  # as they are published, and without their cost
        return place(model.eval().requires_grad_(False), self.device, how)

    def untrained(self) -> nn.Module:
        """The network as it was at step 0, on the device."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        model = build_model(self.config, self.codec.channels, self.text.dim, dtype)
        return place(model.eval().requires_grad_(False), self.device, Execution())

    def embedded(self, prompts: Sequence[str]) -> tuple[list[Tensor], Tensor | None]:
        """Tokens of prompts as they are sampled with, and of the negative one. The encoder is let go of."""
        sampling = self.config.sampling
        texts = self.text.get([sampling.told(prompt) for prompt in prompts])
        negative = self.text.get([sampling.negative_prompt])[0] if sampling.negative_prompt else None
        self.text.release()
        return texts, negative


def open_trained(run: Path, stage: str, device: torch.device) -> Trained:
    """A stage for sampling. Raises `ValueError` when it is not there, or has no weights yet."""
    config = read_config(run, stage)
    folder = run / stage
    path = folder / "weights" / "weights.json"
    if not path.exists():
        raise ValueError(
            f"{folder} has no weights yet: its training was not stopped in good order before the first "
            f"checkpoint; reelmill train {stage} --data DATASET --out {run} goes on with it"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    digest = content_hash([about["hash"], _base_identity(config)])
    codec = open_codec(config.codec, device)
    check_latents(about.get("latents", ""), codec, folder)
    text = TextCache(None, open_text(config.text, device))
    return Trained(config, folder, digest, codec, text, device)


def check_latents(before: str, codec: Codec, folder: Path) -> None:
    """Raises `ValueError` where a stage was trained on what other weights of the codec gave."""
    if before and before != latents_of(codec):
        raise ValueError(
            f"{folder} was trained on the latents of other weights than {codec.settings.model} holds now "
            "(codec.model: it was trained on, or replaced); put those of then back, or train the stage anew "
            "with another --out"
        )
