"""The codec that a configuration names."""

from __future__ import annotations

import torch

from generation import config
from generation.codecs.base import Codec
from generation.codecs.patch import PatchCodec


def open_codec(settings: config.Codec, device: torch.device | str = "cpu") -> Codec:
    """The codec that a configuration names. Raises `ValueError` for weights that are not there."""
    if settings.kind == "cogvideox":
        from generation.codecs.cogvideox import CogVideoXCodec

        return CogVideoXCodec(settings).to(device)
    if settings.kind == "slice":
        from generation.codecs.slice import SliceCodec

        return SliceCodec(settings).to(device)
    return PatchCodec(settings).to(device)
