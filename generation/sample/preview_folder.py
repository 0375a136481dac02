"""Previews on disk: the result of Stage I, with everything that Stage II needs to enhance it later.

    DIR/0000-slug/
      preview.json          the request, the models' hashes, and dtype, shape and hash of the latents
      latents.safetensors   Stage I's latents, bit for bit
      preview.mp4           the decoded video
      final.mp4             the enhanced video, if there is one

A folder appears whole or not at all: it is made as `_0000-slug` and renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from generation import config, media
from generation.disk import save_tensors

_FORMAT = "reelmill preview 1"
_FILES = ("preview.json", "preview.mp4", "latents.safetensors")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(
        ("prompt", "negative_prompt", "weights_hash", "precision", "codec_hash", "text_hash", "version"), str
    ),
    **dict.fromkeys(("seed", "frames", "height", "width"), int),
    "fps": (int, float),
    **dict.fromkeys(("codec", "sampling"), dict),
}
_SLUG_LENGTH = 40
_T = TypeVar("_T")


class OtherPreview(ValueError):
    """Another preview is in the place of this preview. `what`: the names of the fields that differ."""

    def __init__(self, folder: Path, what: str):
        super().__init__(
            f"{folder} holds another preview (other values of {what}); take another --out, or remove "
            "this folder"
        )
        self.what = what


@dataclass(frozen=True)
class Preview:
    """The request and its models. This is enough to make the preview again, or to enhance it."""

    prompt: str
    negative_prompt: str
    seed: int
    frames: int
    height: int
    width: int
    fps: float
    sampling: Mapping[str, Any]  # the fields of `config.Sampling`: steps, guidance, …
    weights_hash: str  # of Stage I, including the base of a LoRA
    precision: str  # of the network's computation: bf16 or fp32
    codec: Mapping[str, Any]  # the fields of `config.Codec`, to decode the latents
    codec_hash: str
    text_hash: str
    version: str = ""  # of reelmill

    @property
    def key(self) -> str:
        """A hash of everything that decides the result: previews with the same key are equal."""
        return config.content_hash({k: v for k, v in dataclasses.asdict(self).items() if k != "version"})


def slug(prompt: str) -> str:
    """A prompt as part of a file name: ASCII letters, digits and dashes, 1 to 40 of them."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.findall(r"[a-z0-9]+", plain.replace("'", ""))
    found = ""
    for word in words:
        if len(found) + len(word) + 1 > _SLUG_LENGTH:
            break
        found = f"{found}-{word}" if found else word
    return found or (words[0][:_SLUG_LENGTH] if words else "preview")


def find_preview(directory: str | Path, index: int, preview: Preview) -> Path | None:
    """The folder with this index if it holds `preview`, else None. So a killed run can resume.

    Raises `OtherPreview` when the folder with this index holds another preview.
    """
    for folder in sorted(Path(directory).glob(f"{index:04d}-*")):
        if not folder.is_dir():
            continue
        found = load_request(folder)
        if found.key == preview.key:
            return folder
        names = [f.name for f in dataclasses.fields(Preview) if f.name != "version"]
        other = [name for name in names if getattr(found, name) != getattr(preview, name)]
        raise OtherPreview(folder, ", ".join(other))
    return None


def save_preview(
    directory: str | Path, index: int, preview: Preview, latents: Tensor, pieces: Iterable[np.ndarray]
) -> Path:
    """Write DIR/0000-slug, and return this folder. A finished preview of the same content is replaced.

    latents: float32 (1, C, t, h, w). pieces: frames, uint8 (n, H, W, 3), piece by piece.
    Raises `OtherPreview` when the folder with this index holds another preview.
    """
    assert latents.dtype == torch.float32, f"latents are float32, not {latents.dtype}"
    directory = Path(directory)
    finished = find_preview(directory, index, preview)
    name = f"{index:04d}-{slug(preview.prompt)}"
    aside = directory / f"_{name}"
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed run
    aside.mkdir(parents=True)
    try:
        latents = latents.detach().cpu().contiguous()
        save_tensors({"latents": latents}, aside / "latents.safetensors", {"preview": preview.key})
        facts = {"dtype": "float32", "shape": list(latents.shape), "hash": _digest(latents)}
        content = {"format": _FORMAT, **dataclasses.asdict(preview), "latents": facts}
        (aside / "preview.json").write_text(json.dumps(content, indent=2) + "\n")
        media.write_mp4(aside / "preview.mp4", pieces, preview.fps)
        if finished is not None:
            shutil.rmtree(finished)
        aside.rename(directory / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory / name


def is_preview(path: str | Path) -> bool:
    """Whether `path` is a preview: its folder, or one of the three files that belong to a preview.

    `final.mp4` is a video, and so is a `preview.mp4` that was moved out of its folder.
    """
    path = Path(path)
    if path.is_dir():
        return (path / "preview.json").is_file()
    return path.name in _FILES and (path.parent / "preview.json").is_file()


def previews_in(directory: str | Path) -> list[Path]:
    """The folders of finished previews in a folder, by number. Empty if there is no such folder."""
    directory = Path(directory)
    names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
    finished = [
        n for n in names if not n.startswith(("_", ".")) and (directory / n / "preview.json").is_file()
    ]

    def place(name: str) -> tuple[bool, int, str]:  # five digits come after four
        number = re.match(r"[0-9]+", name)
        return number is None, int(number[0]) if number else 0, name

    return [directory / name for name in sorted(finished, key=place)]


def some_of(items: Sequence[_T], most: int) -> list[_T]:
    """At most `most` items, evenly chosen from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(k)] for k in np.linspace(0, len(items) - 1, most)]


def load_request(path: str | Path) -> Preview:
    """A preview without its latents. Raises `ValueError` when it is missing or broken."""
    folder = _folder(path)
    return _parse(folder / "preview.json")[0]


def load_preview(path: str | Path) -> tuple[Preview, Tensor]:
    """A preview and its saved latents (1, C, t, h, w), from its folder or from one of its files.

    Raises `ValueError` that names the file when there is no preview, when the latents are missing or broken,
    and when the latents differ from those that preview.json describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(path)
    preview, facts = _parse(folder / "preview.json")
    file = folder / "latents.safetensors"
    if not file.is_file():
        raise ValueError(
            f"{file} is missing: without it, {folder / 'preview.mp4'} can be enhanced only as a video"
        )
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is broken ({error}); make the preview again") from error
    latents = tensors.get("latents")
    if latents is None:
        raise ValueError(f"{file} holds no tensor `latents` but {', '.join(sorted(tensors)) or 'nothing'}")
    found = {"dtype": str(latents.dtype).removeprefix("torch."), "shape": list(latents.shape)}
    expected = {name: facts[name] for name in found}
    if found != expected:
        raise ValueError(
            f"{file} does not fit {folder / 'preview.json'}: {found['dtype']} {found['shape']}, "
            f"not {expected['dtype']} {expected['shape']}"
        )
    if _digest(latents) != facts["hash"]:
        raise ValueError(f"{file} does not fit {folder / 'preview.json'}: the values (hash) have changed")
    return preview, latents


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    if not is_preview(path):
        raise ValueError(
            f"{path} is not a preview; give a folder with preview.json, as `reelmill sample` writes it, or "
            "the preview.mp4 in it"
        )
    return path if path.is_dir() else path.parent


def _parse(file: Path) -> tuple[Preview, dict[str, Any]]:
    """Read preview.json: the preview, and dtype, shape and hash of its latents."""
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); make the preview again") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ValueError(f"{file}: its format is {found!r}, but this version reads {_FORMAT!r}")
    try:
        request = {f.name: data[f.name] for f in dataclasses.fields(Preview)}
        facts = {name: data["latents"][name] for name in ("dtype", "shape", "hash")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} lacks {error}; make the preview again") from error
    for name, kind in _KINDS.items():
        if not isinstance(request[name], kind) or isinstance(request[name], bool):
            raise ValueError(f"{file}: {name} is {request[name]!r}; make the preview again")
    return Preview(**request), facts


def _digest(latents: Tensor) -> str:
    return hashlib.blake2b(latents.numpy().tobytes(), digest_size=16).hexdigest()
