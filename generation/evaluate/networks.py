"""Scores by other people's networks: LPIPS, CLIP, and features of whole videos for distances of sets.

Each library is imported, and each network loaded, where it is asked for.
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

# torchvision's weights, and the pixels a side below which a layer would be left without any
_LPIPS = {
    "alex": ("AlexNet_Weights", 31),
    "vgg": ("VGG16_Weights", 16),
    "squeeze": ("SqueezeNet1_1_Weights", 17),
}
_FRAMES = 8  # of a video, that LPIPS is given at a time
_CLIP_FRAMES = 4  # of a video, that CLIP sees
_BATCH = 8  # videos
# The names open_clip gives its weights in a hub repository, safest first.
_HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# By these files are found out that are missing, damaged, or of something else.
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
    """Learned perceptual distance of videos (B, 3, T, H, W) in [-1, 1]: (B,), the mean over frames; 0 for the
    same (Zhang et al. 2018; of torchmetrics).

    Raises `ValueError` with the key and a remedy where the weights of `net` are not to be had, and for
    pictures that are too small for it.
    """
    if net not in _LPIPS:
        raise ValueError(f"lpips: {net} is none of {', '.join(_LPIPS)}; name one, or write null")
    height, width = made.shape[-2:]
    least = _LPIPS[net][1]
    if min(height, width) < least:
        others = [name for name, (_, side) in _LPIPS.items() if side <= min(height, width)]
        raise ValueError(
            f"lpips: {net} takes pictures of at least {least} pixels a side, not {height} x {width} "
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
            f"lpips: the weights of {net} cannot be had ({first_line(error)}); put {url} at {path}, "
            "or write lpips=null"
        ) from error


def lpips_weights(net: Net) -> tuple[str, Path]:
    """Where torchvision has the weights of a network from, and where it looks for them first."""
    import torchvision

    url = str(getattr(torchvision.models, _LPIPS[net][0]).DEFAULT.url)
    return url, Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


# ---------------------------------------------------------------------------------------------------
# CLIP
# ---------------------------------------------------------------------------------------------------


class ClipSimilarity:
    """How near pictures are to what a prompt says (Hessel et al. 2021, without its factor of 2.5).

    model: a name of open_clip, or local-dir:FOLDER with a configuration, weights and tokenizer. pretrained: a
    tag of open_clip's for that model, or a file; not used with local-dir:. Raises `ValueError` with the key
    and a remedy where they are not to be had.
    """

    def __init__(self, model: str, pretrained: str | None, device: torch.device):
        import open_clip
        from safetensors import SafetensorError

        name, weights, options = _find_clip(model, pretrained)
        try:
            # `_from_pretrained` fails where `create_model` would go on with random weights.
            self._net, self._preprocess = open_clip.create_model_from_pretrained(
                name, weights, device=device, weights_only=True, **options
            )
            self._tokenize = open_clip.get_tokenizer(name)
        except (*_UNREADABLE, SafetensorError) as error:
            key = "clip.model" if weights is None else "clip.pretrained"
            raise ValueError(
                f"{key}: {weights or model} cannot be used as {model} ({first_line(error)}); name what "
                "open_clip has saved for that model, or write clip=null"
            ) from error
        self._net.eval().requires_grad_(False)
        self._device = device

    @torch.no_grad()
    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean cosine (N,) between a prompt and four frames of its video (N, 3, T, H, W) in [-1, 1], from the
        middles of its quarters. Of a prompt that is too long for the model, the beginning counts."""
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
        from PIL import Image

        count = videos.shape[2]
        places = [(2 * k + 1) * count // (2 * _CLIP_FRAMES) for k in range(_CLIP_FRAMES)]
        frames = to_uint8(videos[:, :, places]).reshape(-1, *videos.shape[3:], 3)
        pixels = torch.stack([self._preprocess(Image.fromarray(frame)) for frame in frames])
        made = F.normalize(self._net.encode_image(pixels.to(self._device)).float(), dim=-1)
        return made.unflatten(0, (-1, _CLIP_FRAMES))


def _find_clip(model: str, pretrained: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """What open_clip is to be told: a model, a file of weights (None: beside the configuration), options."""
    import open_clip

    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(
                f"clip.model: {folder} has no open_clip_config.json; name a folder that has, or "
                "write clip=null"
            )
        return f"local-dir:{folder}", None, {}
    if model not in open_clip.list_models():
        raise ValueError(
            f"clip.model: {model} is no model of open_clip; `open_clip.list_models()` has them. A "
            "model of the hub is taken from a folder: `hf download NAME --local-dir FOLDER`, and write "
            "clip.model=local-dir:FOLDER"
        )
    path = Path(pretrained or "").expanduser()
    if path.is_file():
        return model, str(path), {}
    tag = open_clip.get_pretrained_cfg(model, pretrained or "")
    if not tag:
        raise ValueError(
            f"clip.pretrained: {pretrained} is neither a file nor, for {model}, one of "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or 'any tags'}"
        )
    # Every tag of open_clip has a hub repository.
    repo, _, filename = tag["hf_hub"].rpartition("/")
    names = (filename.replace(".bin", ".safetensors"), filename) if filename else _HUB_WEIGHTS
    # What open_clip itself takes from a tag; but of the activation it would only warn that it is another one.
    options = {
        "force_quick_gelu": tag.get("quick_gelu", False),
        "image_mean": tag.get("mean"),
        "image_std": tag.get("std"),
        "image_interpolation": tag.get("interpolation"),
        "image_resize_mode": tag.get("resize_mode"),
    }
    return model, _from_hub(pretrained, repo, names), options


def _from_hub(pretrained: str | None, repo: str, names: Sequence[str]) -> str:
    """The first of `names` that a repository of the hub has, from the cache or downloaded."""
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
                break  # the others would not come either
    raise ValueError(
        f"clip.pretrained: {pretrained}, which is {repo} on the hub, cannot be had "
        f"({first_line(problem)}); connect to it once, or set HF_HOME to a cache that has it, or name a file "
        "of its weights, or write clip=null"
    ) from problem


# ---------------------------------------------------------------------------------------------------
# Features
# ---------------------------------------------------------------------------------------------------


def open_features(name: str, weights: str | None, device: torch.device) -> Features:
    """`package.module:factory`, whose factory takes `weights` and gives a callable of videos (N, 3, T, H, W)
    in [-1, 1] to features (N, D).

    A module is moved to the device; it is given a few videos at a time. Raises `ValueError` with the key and
    a remedy when it cannot be had, and later when it gives something else.
    """
    module, _, factory = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), factory)(weights)
    except (ImportError, *_UNREADABLE) as error:
        raise ValueError(
            f"extractor: {name} cannot be had ({first_line(error)}); write package.module:factory "
            "of a module that can be imported (PYTHONPATH=. finds those of this folder), whose factory takes "
            "extractor_weights, or null"
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
                    f"extractor: {name} gives {got} for {len(part)} videos; a tensor of "
                    "(videos, features) is wanted"
                )
            parts.append(found.cpu().double())
        return torch.cat(parts)

    return features
