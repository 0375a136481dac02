"""The text encoder that a configuration names."""

from __future__ import annotations

import torch

from generation.config import Text
from generation.text.encoder import TextEncoder, TransformersEncoder


def open_text(settings: Text, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder that a configuration names. Raises `ValueError` that names text.model and a remedy."""
    return TransformersEncoder(settings, torch.device(device))
