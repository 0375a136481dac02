"""Scores by published networks: LPIPS, CLIP, and features of whole videos for distances of sets.

A library is imported, and a network is loaded, only when it is used.
"""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.media import to_uint8
from generation.models.hub import first_line

if TYPE_CHECKING:
    from torchmetrics import Metric

Net = Literal["alex", "vgg", "squeeze"]
Features = Callable[[Tensor], Tensor]  # videos (N, 3, T, H, W) in [-1, 1] to (N, D) float64

# torchvision's weights, and the smallest side in pixels: in smaller pictures a layer would have no pixels.
_LPIPS = {
    "alex": ("AlexNet_Weights", 31),
    "vgg": ("VGG16_Weights", 16),
    "squeeze": ("SqueezeNet1_1_Weights", 17),
}
_FRAMES = 8  # of a video, which LPIPS gets at a time
_CLIP_FRAMES = 4  # of a video, which CLIP gets
_BATCH = 8  # videos at a time
# The names of open_clip's weights in a hub repository; the safest format comes first.
_HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# Errors of loading files that are missing, damaged, or of another kind.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    StopIteration,
    pickle.UnpicklingError,
)


# ---------------------------------------------------------------------------------------------------
# LPIPS
# ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def lpips(made: Tensor, true: Tensor, net: Net) -> Tensor:
    """Learned perceptual distance (B,) of videos (B, 3, T, H, W) in [-1, 1], as the mean over frames.

    Equal videos have distance 0 (Zhang et al. 2018; computed by torchmetrics). Raises `ValueError` with the
    key and a remedy when the weights of `net` cannot be loaded, and when the pictures are too small.
    """
    if net not in _LPIPS:
        raise ValueError(f"lpips: {net} is not one of {', '.join(_LPIPS)}; name one of them, or write null")
    height, width = made.shape[-2:]
    least = _LPIPS[net][1]
    if min(height, width) < least:
        others = [name for name, (_, side) in _LPIPS.items() if side <= min(height, width)]
        raise ValueError(
            f"lpips: {net} needs pictures of at least {least} pixels a side, not {height} x {width} "
            f"(height x width); write {' or '.join([*others, 'null'])}"
        )
    metric = _lpips_metric(net, made.device)
    found = []
    for pair in zip(made, true, strict=True):
        a, b = (video.to(made.device).float().clamp(-1, 1).transpose(0, 1) for video in pair)  # (T, 3, H, W)
        metric.reset()
        for one, other in zip(a.split(_FRAMES), b.split(_FRAMES), strict=True):
            metric.update(one, other)
        found.append(metric.compute())
    return torch.stack(found)


@functools.cache
def _lpips_metric(net: Net, device: torch.device) -> Metric:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=net).to(device)
    except _UNREADABLE as error:
        url, path = lpips_weights(net)
        raise ValueError(
            f"lpips: the weights of {net} cannot be loaded ({first_line(error)}); put {url} at {path}, "
            "or write lpips=null"
        ) from error


def lpips_weights(net: Net) -> tuple[str, Path]:
    """Address of a network's weights at torchvision, and the local file that torchvision tries first."""
    import torchvision

    url = str(getattr(torchvision.models, _LPIPS[net][0]).DEFAULT.url)
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


# ---------------------------------------------------------------------------------------------------
# CLIP
# ---------------------------------------------------------------------------------------------------


class ClipSimilarity:
    """How similar pictures are to a prompt (Hessel et al. 2021, without the factor of 2.5).

    model: a name of open_clip, or local-dir:FOLDER with a configuration, weights and tokenizer. pretrained: a
    tag of open_clip for that model, or a file; not used with local-dir:. Raises `ValueError` with the key and
    a remedy when they cannot be loaded.
    """

    def __init__(self, model: str, pretrained: str | None, device: torch.device):
        import open_clip
        from safetensors import SafetensorError

        name, weights, options = _find_clip(model, pretrained)
        try:
            # Without weights this function fails, but `create_model` would continue with random weights.
            self._net, self._preprocess = open_clip.create_model_from_pretrained(
                name, weights, device=device, weights_only=True, **options
            )
            self._tokenize = open_clip.get_tokenizer(name)
        except (*_UNREADABLE, SafetensorError) as error:
            key = "clip.model" if weights is None else "clip.pretrained"
            raise ValueError(
                f"{key}: {weights or model} cannot be used as {model} ({first_line(error)}); name weights "
                "that open_clip has saved for that model, or write clip=null"
            ) from error
        self._net.eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """The mean cosine (N,) between prompts and four frames of their videos (N, 3, T, H, W) in [-1, 1].

        The frames are in the middles of the quarters of a video. Only the beginning of a long prompt counts.
        """
        assert len(prompts) == len(videos)
        found = []
        for start in range(0, len(videos), _BATCH):
            part = videos[start : start + _BATCH]
            pictures = self._pictures(part)  # (B, 4, D)
            told = self._tokenize(list(prompts[start : start + _BATCH])).to(self._device)
            texts = F.normalize(self._net.encode_text(told).float(), dim=-1)  # (B, D)
            found.append((pictures * texts[:, None]).sum(-1).mean(1).cpu())
        return torch.cat(found)

    def _pictures(self, videos: Tensor) -> Tensor:
        """Unit vectors (B, 4, D) of four frames of videos (B, 3, T, H, W)."""
        from PIL import Image

        count = videos.shape[2]
        places = [(2 * k + 1) * count // (2 * _CLIP_FRAMES) for k in range(_CLIP_FRAMES)]
        frames = to_uint8(videos[:, :, places]).reshape(-1, *videos.shape[3:], 3)
        pixels = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in frames])
        made = F.normalize(self._net.encode_image(pixels.to(self._device)).float(), dim=-1)
        return made.unflatten(0, (-1, _CLIP_FRAMES))


def _find_clip(model: str, pretrained: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """Arguments for open_clip: a model, a file of weights (None: beside the configuration), options."""
    import open_clip

    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"clip.model: {folder} has no open_clip_config.json; name a folder with this file, or "
                "write clip=null"
            )
        return f"local-dir:{folder}", None, {}
    if model not in open_clip.list_models():
        raise ValueError(
            f"clip.model: {model} is not a model of open_clip; `open_clip.list_models()` lists them. To use "
            "a model of the hub, run `hf download NAME --local-dir FOLDER` and write "
            "clip.model=local-dir:FOLDER"
        )
    path = Path(pretrained or "").expanduser()
    if path.is_file():
        return model, str(path), {}
    tag = open_clip.get_pretrained_cfg(model, pretrained or "")
    if not tag:
        raise ValueError(
            f"clip.pretrained: {pretrained} is not a file, and not a tag of {model}; its tags are: "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or 'none'}"
        )
    # Every tag of open_clip has a hub repository.
    repo, _, filename = tag["hf_hub"].rpartition("/")
    names = (filename.replace(".bin", ".safetensors"), filename) if filename else _HUB_WEIGHTS
    # open_clip takes these options from a tag itself, but for another activation it would only warn.
    options = {
        "force_quick_gelu": tag.get("quick_gelu", False),
        "image_mean": tag.get("mean"),
        "image_std": tag.get("std"),
        "image_interpolation": tag.get("interpolation"),
        "image_resize_mode": tag.get("resize_mode"),
    }
    return model, _from_hub(pretrained, repo, names), options


def _from_hub(pretrained: str | None, repo: str, names: Sequence[str]) -> str:
    """The file of the first of `names` that a hub repository has, from the cache or downloaded."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    for name in names:
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return cached
    for name in names:
        try:
            return hf_hub_download(repo, name)
        except OSError as error:
            problem = error
            if not isinstance(error, errors.RemoteEntryNotFoundError):
                break  # the other files would fail, too
    raise ValueError(
        f"clip.pretrained: {pretrained}, which is {repo} on the hub, cannot be loaded "
        f"({first_line(problem)}); connect to the hub once, set HF_HOME to a cache with the weights, name "
        "a file of the weights, or write clip=null"
    ) from problem


# ---------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------


def open_features(name: str, weights: str | None, device: torch.device) -> Features:
    """Open an extractor of features. name: `package.module:factory`.

    The factory takes `weights`, and returns a callable from videos (N, 3, T, H, W) in [-1, 1] to features
    (N, D). If the callable is a module, it is moved to the device. It gets a few videos at a time. Raises
    `ValueError` with the key and a remedy when the extractor cannot be loaded, and later for wrong features.
    """
    module, _, factory = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), factory)(weights)
    except (ImportError, *_UNREADABLE) as error:
        raise ValueError(
            f"extractor: {name} cannot be loaded ({first_line(error)}); write package.module:factory "
            "of a module that can be imported (PYTHONPATH=. finds modules of this folder) and whose factory "
            "takes extractor_weights, or null"
        ) from error
    if isinstance(made, nn.Module):
        made = made.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def features(videos: Tensor) -> Tensor:
        parts = []
        for part in videos.split(_BATCH):
            found = made(part.to(device)) if callable(made) else None
            if not (isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(part)):
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    f"extractor: {name} returns {got} for {len(part)} videos; it must return a tensor of "
                    "(videos, features)"
                )
            parts.append(found.cpu().double())
        return torch.cat(parts)

    return features
