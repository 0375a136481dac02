"""A run's folder: the start of a training in it, and the hash of its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from generation import run as runs
from generation.models import cogvideox
from generation.sample.trained import open_trained
from generation.train import start
from tests.generation.tiny_runs import tiny

CPU = torch.device("cpu")


def _trained(run: Path, base: Path, adapters: str = "a") -> str:
    """The hash of a trained LoRA. The weights are only files with the right names."""
    config = tiny(transformer={"pretrained": str(base)}, lora={"rank": 4})
    weights = start.begin(run, config) / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "pytorch_lora_weights.safetensors").write_bytes(adapters.encode())
    (weights / "weights.json").write_text(json.dumps({"stage": "stage1", "step": 1, "hash": adapters}))
    return open_trained(run, "stage1", CPU).hash


@pytest.mark.parametrize("layout", ["folder", "pipeline", "run"])
def test_a_lora_is_known_by_its_base_too(layout: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    below = {"folder": base, "pipeline": base / "transformer", "run": base / "weights" / "transformer"}
    model = cogvideox.build(tiny().transformer, 192, 384, 16)
    path = cogvideox.save(model, below[layout])
    if layout == "run":
        (base / "config.json").write_text(tiny().model_dump_json())
    first = _trained(tmp_path / "run", base)
    assert _trained(tmp_path / "run", base) == first
    assert _trained(tmp_path / "run", shutil.copytree(base, tmp_path / "moved")) == first
    assert _trained(tmp_path / "other", base, "b") != first
    size = path.stat().st_size
    with torch.no_grad():
        model.get_parameter("proj_out.bias").add_(1e-3)
    cogvideox.save(model, below[layout])
    assert path.stat().st_size == size
    assert _trained(tmp_path / "run", base) != first


def test_weights_that_a_killed_process_had_put_aside_go(tmp_path: Path) -> None:
    """It was killed between the two renames."""
    start.begin(tmp_path, tiny())
    folder = tmp_path / "stage1"

    def write(aside: Path) -> Path:
        (aside / "w.safetensors").write_bytes(b"new")
        return aside / "w.safetensors"

    for name in ("_old-weights", "_weights"):
        (folder / name).mkdir()
        (folder / name / "w.safetensors").write_bytes(b"old")
    runs.write_weights(tiny(), folder, 1, write)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights"]
    assert (folder / "weights" / "w.safetensors").read_bytes() == b"new"


def test_a_lora_on_a_lora_is_known_by_all_below_it(tmp_path: Path) -> None:
    model = cogvideox.build(tiny().transformer, 192, 384, 16)
    cogvideox.save(model, tmp_path / "base")
    _trained(tmp_path / "one", tmp_path / "base")
    first = _trained(tmp_path / "two", tmp_path / "one" / "stage1")
    _trained(tmp_path / "one", tmp_path / "base", "b")
    second = _trained(tmp_path / "two", tmp_path / "one" / "stage1")
    with torch.no_grad():
        model.get_parameter("proj_out.bias").add_(1e-3)
    cogvideox.save(model, tmp_path / "base")
    assert len({first, second, _trained(tmp_path / "two", tmp_path / "one" / "stage1")}) == 3
