"""`aesthetics`: the predicted rating of the frames by people, from a head on CLIP image embeddings.

A published affine head turns a frame's L2-normalised embedding into the frame's score. A clip gets the mean
and the minimum over its frames. The clip's embedding is the normalised mean of the frames' unit vectors. It
is stored for finding duplicates, for search and for caption checks.

Named heads: LAION's first predictor (a linear map; `laion-linear-*`) and second predictor ("improved
aesthetic predictor", `laion-mlp-l14`), both on OpenAI's CLIP weights. Their scales differ: on embeddings of
the ratings 0 to 9 the first gives -2.5 to 11.3 and the second 1.7 to 5.7. So each head needs its own
threshold. A path may name a file of these heads, or the head of Aesthetic Predictor V2.5, which needs
`model: ViT-SO400M-14-SigLIP-384`, `pretrained: webli`, `short_side: 384`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from filters.base import Column, Frames, MissingModel, Sampling, Scorer, Scores, uniform

if TYPE_CHECKING:
    import torch

LAION_V1 = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/"
LAION_V2 = "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
HEADS: dict[str, tuple[str, str]] = {  # name: address, SHA-256
    "laion-linear-l14": (
        LAION_V1 + "sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
    "laion-linear-b32": (
        LAION_V1 + "sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
    ),
    "laion-linear-b16": (
        LAION_V1 + "sa_0_4_vit_b_16_linear.pth",
        "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
    ),
    "laion-mlp-l14": (
        LAION_V2 + "sac+logos+ava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
}
# The names of the layers of each known head, in order. Names must match exactly: these heads have only
# dropouts between their layers. A head with activations has other layer numbers and must be refused.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("",),  # LAION's first: Linear(D, 1)
    tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7)),  # LAION's second: 768-1024-128-64-16-1
    tuple(f"scoring_head.{i}." for i in (0, 2, 4, 6, 8)),  # V2.5 on SigLIP: 1152-1024-128-64-16-1
)
# The file names of open_clip's weights in a hub repository, the safest format first.
HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
REMEDY = (
    "connect to the network once, or set HF_HOME to a cache that has the files, or name a local file, "
    "or set `filters.aesthetics: null`"
)


class Head(NamedTuple):
    """An affine map: score = embedding @ weight + bias."""

    weight: np.ndarray  # (D,) float64
    bias: float


def affine(state: Mapping[str, np.ndarray]) -> Head:
    """Multiply a head's layers, which have no activations, into one affine map.

    `state` holds the weights by name. Raises `ValueError` for layers of an unknown head.
    """
    for layout in LAYOUTS:
        if set(state) == {prefix + kind for prefix in layout for kind in ("weight", "bias")}:
            break
    else:
        raise ValueError(f"filters.aesthetics.head: an unknown kind of head with the layers {sorted(state)}")
    weight = np.eye(state[layout[0] + "weight"].shape[1])  # (D, D)
    bias = np.zeros(len(weight))
    for prefix in layout:
        w, b = state[prefix + "weight"].astype(np.float64), state[prefix + "bias"].astype(np.float64)
        weight, bias = w @ weight, w @ bias + b
    if weight.shape[0] != 1:
        raise ValueError(
            f"filters.aesthetics.head: the head gives {weight.shape[0]} numbers per image instead of one"
        )
    return Head(weight[0], float(bias[0]))


@functools.cache
def load_head(head: str) -> Head:
    """The head that `filters.aesthetics.head` names: a key of `HEADS`, or a .pth or .safetensors file."""
    import torch
    from safetensors.torch import load_file

    path = find_head(head)
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        # The published files contain GPU tensors.
        state = torch.load(path, map_location="cpu", weights_only=True)
    return affine({k: v.float().numpy() for k, v in state.items()})


def find_head(head: str) -> Path:
    """The file of a head. A named head is downloaded and verified. Raises `MissingModel`."""
    import torch

    if head not in HEADS:
        path = Path(head).expanduser()
        if not path.is_file():
            raise MissingModel(
                f"filters.aesthetics.head = {head!r} is neither a file nor one of {', '.join(HEADS)}"
            )
        return path
    url, sha256 = HEADS[head]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return path
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            data = reply.read()
    except OSError as error:
        raise MissingModel(
            f"filters.aesthetics.head = {head!r}: {url} failed: {error}; put the file at {path}, or {REMEDY}"
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise MissingModel(f"filters.aesthetics.head = {head!r}: {url} is not the expected file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"_{path.name}.{os.getpid()}")  # several workers may download at the same time
    part.write_bytes(data)
    part.replace(path)
    return path


class Encoder(NamedTuple):
    """The arguments with which open_clip builds the image encoder from local files."""

    name: str  # a configuration of open_clip, or local-dir:…
    weights: str | None  # a file; None for local-dir:, which contains its weights
    options: dict[str, Any]
    width: int  # numbers per embedding


def find_encoder(model: str, pretrained: str) -> Encoder:
    """Resolve `filters.aesthetics.model` and `.pretrained` to local files, downloaded if necessary.

    Builds no model. Raises `MissingModel`, without long retries, if the files are not available, and
    `ValueError` for an unknown model.
    """
    import open_clip

    if model.startswith("hf-hub:"):
        repo = model.removeprefix("hf-hub:")
        config = hub_file("filters.aesthetics.model", repo, ("open_clip_config.json",))
        hub_file("filters.aesthetics.model", repo, HUB_WEIGHTS)  # is stored beside the configuration
        model = f"local-dir:{Path(config).parent}"
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:")).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise MissingModel(
                f"filters.aesthetics.model = {model!r}: the folder has no open_clip_config.json"
            )
        name = f"local-dir:{folder}"
        return Encoder(name, None, {}, open_clip.get_model_config(name)["embed_dim"])

    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(
            f"filters.aesthetics.model = {model!r} is no model of open_clip; "
            "`open_clip.list_models()` lists the models; hf-hub:… and local-dir:… are accepted, too"
        )
    path = Path(pretrained).expanduser()
    if path.is_file():
        return Encoder(model, str(path), {}, config["embed_dim"])
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        raise MissingModel(
            f"filters.aesthetics.pretrained = {pretrained!r} is neither a file nor, for {model}, one of "
            f"{', '.join(open_clip.list_pretrained_tags_by_model(model)) or 'any tags'}"
        )
    # Every tag of open_clip has a hub repository. Older addresses, which some tags also have, are not needed.
    repo, _, filename = tag["hf_hub"].rpartition("/")
    names = (filename.replace(".bin", ".safetensors"), filename) if filename else HUB_WEIGHTS
    weights = hub_file("filters.aesthetics.pretrained", repo, names)
    # open_clip reads these options from the tag, but gets a file here. Without `force_quick_gelu` it would
    # only warn: OpenAI's weights were trained with QuickGELU, and `ViT-L-14` does not use it by default.
    options = {
        "force_quick_gelu": tag.get("quick_gelu", False),
        "image_mean": tag.get("mean"),
        "image_std": tag.get("std"),
        "image_interpolation": tag.get("interpolation"),
        "image_resize_mode": tag.get("resize_mode"),
    }
    return Encoder(model, weights, options, config["embed_dim"])


def hub_file(key: str, repo: str, names: Sequence[str]) -> str:
    """The path of the first of `names` that a Hugging Face repository has, cached or downloaded.

    Raises `MissingModel`, whose message starts with the setting `key`.
    """
    import huggingface_hub as hub

    for name in names:
        cached = hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            return cached
    problem: Exception | None = None
    for name in names:
        try:
            # One request with a deadline: without a network, a download would retry for half a minute.
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=10)
            return hub.hf_hub_download(repo, name)
        except hub.errors.RemoteEntryNotFoundError as error:
            problem = error
        except Exception as error:  # versions of the hub use different HTTP libraries with different errors
            problem = error
            break
    raise MissingModel(
        f"{key}: {names[0]} of {repo} on the Hugging Face hub: {problem}; {REMEDY}"
    ) from problem


@functools.cache
def load_encoder(
    model: str, pretrained: str, precision: str, device: str
) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """The model and its preprocessing (a PIL image to a tensor (3, S, S)), loaded once per process."""
    import open_clip

    encoder = find_encoder(model, pretrained)
    # `create_model_from_pretrained` fails without weights. `create_model` would use random weights instead.
    net, preprocess = open_clip.create_model_from_pretrained(
        encoder.name,
        encoder.weights,
        precision=precision,
        device=device,
        weights_only=True,
        **encoder.options,
    )
    return net.eval(), preprocess


def check_widths(width: int, head: Head, model: str, name: str) -> None:
    """Raises `ValueError` if the head does not take embeddings of `width` numbers."""
    if width != head.weight.size:
        raise ValueError(
            f"filters.aesthetics.model = {model!r} gives embeddings of {width} numbers, but "
            f"filters.aesthetics.head = {name!r} takes {head.weight.size}: change one of them"
        )


@dataclass(frozen=True)
class Aesthetics(Scorer):
    """The mean and minimum of the frames' scores, and the clip's embedding (float16)."""

    frames: int = 4
    short_side: int = 224  # pixels: the input size of the encoder
    model: str = "ViT-L-14"  # a model of open_clip, or hf-hub:…, or local-dir:…
    pretrained: str = "openai"  # a tag of open_clip, or a file; not used with hf-hub: and local-dir:
    head: str = "laion-mlp-l14"  # a key of HEADS, or a file
    precision: str = "fp32"  # fp16 or bf16 on a GPU
    batch_size: int = field(default=64, metadata={"key": False})  # frames
    device: str = field(default="auto", metadata={"key": False})

    version: ClassVar[str] = "2"
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "aesthetics.mean", "score", (-np.inf, np.inf), "mean of the frames' scores, on the head's scale"
        ),
        Column("aesthetics.min", "score", (-np.inf, np.inf), "the lowest of the frames' scores"),
    )
    cost_ms: ClassVar[float] = 9200  # 2.3 CPU-seconds per frame with ViT-L-14
    uses_model: ClassVar[bool] = True

    @property
    def sampling(self) -> Sampling:
        return uniform(self.frames, short_side=self.short_side)

    def check(self) -> None:
        width = find_encoder(self.model, self.pretrained).width
        check_widths(width, load_head(self.head), self.model, self.head)

    def __call__(self, clips: Sequence[Frames]) -> list[Scores]:
        images = [image for clip in clips for image in clip.images]
        embeddings = iter(self.embed(images) if images else ())
        scores = []
        for clip in clips:
            if clip.images:
                scores.append(self._score(np.stack([next(embeddings) for _ in clip.images])))
            else:
                scores.append(Scores({"aesthetics.mean": None, "aesthetics.min": None}))
        return scores

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The L2-normalised embeddings, (N, D) float32, of N (H, W, 3) uint8 RGB images."""
        import open_clip
        import torch
        from PIL import Image

        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        net, preprocess = load_encoder(self.model, self.pretrained, self.precision, device)
        dtype = open_clip.get_input_dtype(self.precision)
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = [preprocess(Image.fromarray(i)) for i in images[start : start + self.batch_size]]
            with torch.inference_mode():
                x = net.encode_image(torch.stack(batch).to(device, dtype)).float()  # (B, D)
            parts.append(torch.nn.functional.normalize(x, dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def _score(self, embeddings: np.ndarray) -> Scores:
        """A clip's scores from the (N, D) embeddings of its frames."""
        head = load_head(self.head)
        check_widths(embeddings.shape[1], head, self.model, self.head)
        scores = embeddings @ head.weight + head.bias  # (N,)
        mean = embeddings.mean(axis=0)
        return Scores(
            {"aesthetics.mean": float(scores.mean()), "aesthetics.min": float(scores.min())},
            embedding=(mean / np.linalg.norm(mean)).astype(np.float16),
        )
