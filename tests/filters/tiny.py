"""A small encoder of random weights, so that tests of `aesthetics` do not need the hub."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

WIDTH = 24  # numbers per embedding
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def write_encoder(folder: Path, name: str = "reelmill-test-tiny") -> dict[str, str]:
    """Write a configuration, a checkpoint, a head, and a folder with a complete encoder (`local`).

    Returns the arguments of `Aesthetics` that name these files."""
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / f"{name}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "configs")
    torch.manual_seed(0)
    net = open_clip.create_model(name)
    torch.save(net.state_dict(), folder / "weights.pt")
    head = torch.nn.Linear(WIDTH, 1)
    torch.save(head.state_dict(), folder / "head.pth")
    local = folder / "local"
    local.mkdir()
    (local / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    torch.save(net.state_dict(), local / "open_clip_pytorch_model.bin")
    return {"model": name, "pretrained": str(folder / "weights.pt"), "head": str(folder / "head.pth")}
