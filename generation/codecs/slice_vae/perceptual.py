"""A distance of pictures in the features of a network, and the loading of such networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# Turns pictures (N, 3, H, W) in [-1, 1] into the features of some layers, each (N, C, h, w)
Extractor = Callable[[Tensor], Sequence[Tensor]]

_VGG_LAYERS = (3, 8, 15, 22, 29)  # after the last activation of each block


def distance(extract: Extractor, a: Tensor, b: Tensor) -> Tensor:
    """The perceptual distance of pictures a and b (N, 3, H, W) in [-1, 1]: (N,).

    The features of each pixel are scaled to unit length over the channels. Squared differences are averaged
    over pixels and summed over layers (Zhang et al. 2018, LPIPS without the linear heads).
    """
    found = []
    for left, right in zip(extract(a), extract(b), strict=True):
        difference = functional.normalize(left.float(), dim=1) - functional.normalize(right.float(), dim=1)
        found.append(difference.square().sum(1).flatten(1).mean(1))
    return sum(found[1:], found[0])


def open_extractor(name: str, weights: str | None, device: torch.device) -> Extractor:
    """Open an extractor by name: `vgg16`, or `package.module:factory`.

    The factory takes `weights` and returns an `Extractor`. If the extractor is a module, it is moved to the
    device and its weights are frozen. Raises `ValueError` that names the key and a remedy.
    """
    if name == "vgg16":
        made: Any = _vgg16(weights)
    else:
        module, _, factory = name.partition(":")
        try:
            made = getattr(importlib.import_module(module), factory)(weights)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"vae_loss.extractor: {name} cannot be loaded ({reason}); write vgg16, or "
                "package.module:factory of a module that Python can import (PYTHONPATH=. adds modules of "
                "this folder), whose factory takes vae_loss.extractor_weights"
            ) from error
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)
    found: Extractor = made
    return found


class _VGG(nn.Module):
    """torchvision's VGG-16 up to the last layer whose features are used."""

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers
        # Statistics of ImageNet's pictures, in [0, 1]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = ((pictures + 1) / 2 - self.mean) / self.std
        found = []
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if k in _VGG_LAYERS:
                found.append(x)
        return found


def _vgg16(weights: str | None) -> nn.Module:
    """VGG-16. weights: a file with torchvision's state; None: torchvision downloads the published weights."""
    from torchvision.models import VGG16_Weights, vgg16

    try:
        if weights is None:
            network = vgg16(weights=VGG16_Weights.IMAGENET1K_V1)
        else:
            network = vgg16(weights=None)
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            "vae_loss.extractor_weights: the weights of VGG-16 cannot be loaded "
            f"({str(error).splitlines()[0]}); name torchvision's vgg16-397923af.pth, or write "
            "vae_loss.perceptual=0"
        ) from error
    layers = network.features[: _VGG_LAYERS[-1] + 1]
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # later layers must not overwrite the returned features
    return _VGG(layers)
