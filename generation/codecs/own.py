"""Codecs of your own: a class by its import path, with what a codec needs besides encoding and decoding."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor

from generation import config
from generation.allowed import VARIABLE, is_allowed
from generation.codecs.base import check_grid


class OwnCodec:
    """The base of a codec of your own. A subclass sets the three sizes and writes `encode` and `decode`.

    The sizes may be set in `__init__`, which gets the parameters of `codec.own`. Videos are float
    (B, 3, T, H, W) in [-1, 1] with T = temporal * n + 1. Latents are float32 (B, C, n + 1, h, w) with
    h = H / spatial and w = W / spatial.
    """

    channels: int
    temporal: int
    spatial: int
    version = "1"  # raise it when the latents change: runs on other latents are then refused

    settings: config.Codec  # set by `open_own`
    device = torch.device("cpu")

    @property
    def hash(self) -> str:
        """A hash of the import path, the parameters and the version."""
        return config.content_hash([self.settings.kind, self.settings.own, self.version])

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of the latents of a video. Raises `ValueError` that names right sizes."""
        return check_grid(frames, height, width, self.temporal, self.spatial)

    def encode(self, video: Tensor) -> Tensor:
        """Turn (B, 3, T, H, W) into (B, C, t, h, w)."""
        raise NotImplementedError(f"{type(self).__name__} has no method encode")

    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """Turn (B, C, t, h, w) into (B, 3, frames, H, W)."""
        raise NotImplementedError(f"{type(self).__name__} has no method decode")

    def decode_stream(self, latents: Tensor, frames: int) -> Iterator[Tensor]:
        """The result of `decode` in pieces. Default: one piece."""
        yield self.decode(latents, frames)

    def to(self, device: torch.device | str) -> Self:
        """Move the codec. A codec with weights moves them here, too."""
        self.device = torch.device(device)
        return self


def open_own(settings: config.Codec) -> OwnCodec:
    """Import and make a codec of your own. Raises `ValueError` if it was not allowed, or does not work."""
    path = settings.kind
    if not is_allowed(path):
        raise ValueError(
            f"codec.kind: {path} is code, and a configuration may be somebody else's, so it was not run; if "
            f"you mean it, set the environment variable {VARIABLE}={path}"
        )
    module, _, name = path.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that it hides no installed module
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"codec.kind: {path}: {error}; modules are looked for in the working folder, in PYTHONPATH and "
            "among installed packages"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, OwnCodec)):
        raise ValueError(f"codec.kind: {path} does not derive from generation.codecs.own.OwnCodec")
    try:
        codec: OwnCodec = kind(**settings.own)
    except TypeError as error:
        raise ValueError(f"codec.own: {error}") from error
    if (codec.temporal, codec.spatial) != (settings.temporal, settings.spatial):
        raise ValueError(
            f"codec: {path} has {codec.temporal} frames and {codec.spatial} pixels for a latent; write "
            f"codec.temporal={codec.temporal} and codec.spatial={codec.spatial}"
        )
    codec.settings = settings
    return codec
