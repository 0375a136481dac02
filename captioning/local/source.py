"""Finds a model of transformers in a folder or on the hub. Only config.json is read or downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.base import CaptionerMissing

_WEIGHTS = (".safetensors", ".bin")
_DECIDING = (*_WEIGHTS, ".json", ".jinja", ".txt", ".model")
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # samples of each large file, for distinguishing weights


@dataclass(frozen=True)
class Source:
    """The arguments of `from_pretrained`, and the content of config.json."""

    name: str  # folder or hub name
    revision: str | None  # commit on the hub; None for a folder
    config: dict[str, Any]


def locate(model: str, revision: str | None, setting: str) -> Source:
    """Find config.json of a folder or of a hub model. Weights are not downloaded.

    `setting` is the section that names the model, such as captions.transformers; errors repeat it. Raises
    `CaptionerMissing` if the model does not exist, cannot be reached, or visibly lacks necessary files.
    """
    if Path(model).is_dir():
        return _local(Path(model), setting)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CaptionerMissing(
            f"{setting}.model: the folder {model} does not exist; name an existing folder, or a hub model"
        )
    return _on_hub(model, revision, setting)


def identity(model: str, revision: str | None) -> str:
    """A text that identifies the weights without the hub: a hash of a folder's contents, or NAME@REVISION."""
    folder = Path(model)
    return _fingerprint(folder) if folder.is_dir() else f"{model}@{revision or 'main'}"


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _local(folder: Path, setting: str) -> Source:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CaptionerMissing(
            f"{setting}.model: {folder} has no config.json; name a folder as `hf download` or "
            "`save_pretrained` writes it, with config.json, weights, tokenizer and processor"
        )
    lacking = lacks(folder)
    if lacking:
        raise CaptionerMissing(f"{setting}.model: {folder} lacks {lacking}; name a complete folder")
    return Source(str(folder), None, _parse(config_file, setting))


def lacks(folder: Path) -> str | None:
    """What a folder with a config.json lacks, in words, or None. Of weight files only headers are read."""
    names = {path.name for path in folder.iterdir()}
    loaded = {"model.safetensors"}
    for index in sorted(
        name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))
    ):
        wanted = set(json.loads((folder / index).read_text("utf-8"))["weight_map"].values())
        if not wanted <= names:
            return f"{len(wanted - names)} of {len(wanted)} weight files, such as {min(wanted - names)}"
        loaded |= wanted
    if not any(name.endswith(_WEIGHTS) for name in names):
        return "weights (*.safetensors or *.bin)"
    if not any(name.startswith(("tokenizer", "vocab")) or name.endswith(".model") for name in names):
        return "a tokenizer (tokenizer.json, vocab.json or the like)"
    for name in sorted(names & loaded):
        if name.endswith(".safetensors") and (wrong := _damage(folder / name)):
            return f"a whole {name}: {wrong}"
    return None


def _damage(file: Path) -> str | None:
    """What is wrong with the header of a weight file, or with the file's size; None if both are correct."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return f"its {file.stat().st_size} bytes do not match its header ({first_line(error)})"


def _parse(config_file: Path, setting: str) -> dict[str, Any]:
    try:
        config = json.loads(config_file.read_text("utf-8"))
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ValueError("model_type is missing")
    except ValueError as error:
        raise CaptionerMissing(
            f"{setting}.model: {config_file} is not the configuration of a model: {first_line(error)}"
        ) from error
    return config


def _on_hub(name: str, revision: str | None, setting: str) -> Source:
    from huggingface_hub import constants, errors

    by_hand = f"or run `hf download {name} --local-dir FOLDER` elsewhere and write {setting}.model=FOLDER"
    try:
        found = _config_file(name, revision)
    except errors.GatedRepoError as error:
        raise CaptionerMissing(
            f"{setting}.model: {name} is gated; accept its terms on https://huggingface.co/{name} and run "
            f"`hf auth login`, {by_hand}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CaptionerMissing(
            f"{setting}.model: {name} exists neither on the hub nor as a folder; if it is private, run "
            "`hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CaptionerMissing(
            f"{setting}.revision: {name} has no revision {revision}; name a branch, tag or commit"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise CaptionerMissing(
            f"{setting}.model: {name} has no config.json; name a model of transformers"
        ) from error
    except errors.HFValidationError as error:
        raise CaptionerMissing(f"{setting}.model: {name} is neither a folder nor a hub name") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        switch = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "try again with a connection"
        raise CaptionerMissing(
            f"{setting}.model: {name} is neither a folder nor in the cache, and the hub cannot be "
            f"reached; {switch}, {by_hand} ({first_line(error.__cause__ or error)})"
        ) from error
    # The path is .../snapshots/COMMIT/config.json. The commit identifies all files.
    lacking = lacks(found.parent) if constants.HF_HUB_OFFLINE else None
    if lacking:
        raise CaptionerMissing(
            f"{setting}.model: for {name} the cache lacks {lacking}, and HF_HUB_OFFLINE is set; run "
            f"`hf download {name}` with a connection"
        )
    return Source(name, found.parent.name, _parse(found, setting))


def _config_file(name: str, revision: str | None) -> Path:
    """config.json of a hub model, downloaded or from the cache. Raises errors of huggingface_hub."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # One request is enough. If the hub cannot be reached, hf_hub_download would retry for half a minute
        # and print each attempt.
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision))
    except Exception as error:  # the errors of the hub's HTTP library have no common class
        try:
            return Path(hf_hub_download(name, "config.json", revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError as absent:
            if isinstance(error, errors.HfHubHTTPError):
                raise error from None
            raise absent from error
    return Path(hf_hub_download(name, "config.json", revision=revision))


def _fingerprint(folder: Path) -> str:
    """A hash of the names and contents of a model's files. Large files are hashed by size and samples."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(_deciding(folder)):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
            else:
                for k in range(_SAMPLES):
                    file.seek((size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _deciding(folder: Path) -> Iterable[Path]:
    return (path for path in folder.iterdir() if path.suffix in _DECIDING and path.is_file())
