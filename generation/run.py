"""A run's folder: RUN/{vae,stage1,stage2}/{config.json, checkpoints/, weights/, log.jsonl, tensorboard/, …}.

Sampling loads `weights/`, and other programs can load the same files. A diffusion stage has a diffusers
folder `transformer/` there, and a LoRA has `pytorch_lora_weights.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from generation.config import Config
from generation.disk import whole_folder

STAGES = ("vae", "stage1", "stage2")


def read_config(run: Path, stage: str) -> Config:
    """The configuration of a trained stage. Raises `ValueError` when it is missing or cannot be read."""
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
            f"{path} is not a configuration of this version of reelmill: {_told(error)}"
        ) from error


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())


def write_weights(
    config: Config, folder: Path, step: int, write: Callable[[Path], Path], latents_hash: str = ""
) -> Path:
    """Write FOLDER/weights and weights.json, whole or not at all. Returns that folder.

    write: fills a folder and returns the main weights file, whose hash identifies the weights.
    latents_hash: identifies the weights of the autoencoder whose latents were trained on.
    """
    final, aside = folder / "weights", folder / "_weights"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    about = {"stage": config.stage, "step": step, "hash": _file_hash(write(aside)), "latents": latents_hash}
    (aside / "weights.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    whole_folder(aside, final)
    return final


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
