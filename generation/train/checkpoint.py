"""Checkpoints of a training. They hold everything that a resume needs to continue bit for bit.

A checkpoint is RUN/STAGE/checkpoints/step-0000500/{model,optimizer,ema}.safetensors and state.json. A folder
appears whole or not at all: it is written as `_step-…` and renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from generation.disk import save_tensors, whole_folder

PARTS = ("model", "optimizer", "ema")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by part and name, and the state: step, position in the plan, hashes of dataset and latents."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Write the checkpoint of a step, then remove all but the newest `keep_last`. Returns the new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:07d}"
    aside = folder / f"_{final.name}"
    _remove_unfinished(folder)
    aside.mkdir()
    for part in PARTS:
        save_tensors({k: v.contiguous() for k, v in tensors[part].items()}, aside / f"{part}.safetensors")
    (aside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    whole_folder(aside, final)
    clean(folder, keep_last)
    return final


def clean(folder: Path, keep_last: int) -> None:
    """Remove what a killed process left unfinished, and all checkpoints but the newest `keep_last`."""
    _remove_unfinished(folder)
    for old in steps(folder)[:-keep_last]:
        shutil.rmtree(folder / f"step-{old:07d}")


def _remove_unfinished(folder: Path) -> None:
    for left in (*folder.glob("_step-*"), *folder.glob("_old-step-*")):
        shutil.rmtree(left)


def steps(folder: Path) -> list[int]:
    """The steps that have a checkpoint, in rising order."""
    found = (p.name.removeprefix("step-") for p in folder.glob("step-*") if p.is_dir())
    return sorted(int(name) for name in found if name.isdigit())


def load(folder: Path, step: int) -> Checkpoint:
    """Load the checkpoint of a step. Raises `ValueError` when a file is missing or damaged."""
    path = folder / f"step-{step:07d}"
    try:
        tensors = {part: load_file(path / f"{part}.safetensors") for part in PARTS}
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path}: the checkpoint cannot be read ({error}); remove this folder to resume from the "
            "checkpoint before"
        ) from error
    return Checkpoint(tensors, state)
