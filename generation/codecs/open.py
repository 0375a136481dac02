"""The codec that a configuration names."""

from __future__ import annotations

import torch

from generation import config
from generation.codecs.base import Codec
from generation.codecs.cogvideox import CogVideoXCodec
from generation.codecs.own import open_own
from generation.codecs.patch import PatchCodec
from generation.codecs.slice import SliceCodec


def open_codec(settings: config.Codec, device: torch.device | str = "cpu") -> Codec:
    """The codec that a configuration names. Raises `ValueError` for missing weights."""
    if ":" in settings.kind:
        return open_own(settings).to(device)
    if settings.kind == "cogvideox":
        return CogVideoXCodec(settings).to(device)
    if settings.kind == "slice":
        return SliceCodec(settings).to(device)
    return PatchCodec(settings).to(device)
