"""The location of a published model, in a folder or on the model hub, and a hash of its contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from generation.config import content_hash

WEIGHTS = {".safetensors", ".bin"}
_CONTENTS = {".json", ".txt", ".model", *WEIGHTS}
_WHOLE, _SAMPLE = 1 << 20, 1 << 14  # bytes: files up to _WHOLE are read completely, others in samples
_SPREAD, _HEADER = 256, 100_000_000  # number of samples; largest size of a safetensors header in bytes


@dataclass(frozen=True)
class Wanted:
    """A kind of model that a key of the configuration names."""

    key: str  # the key of the configuration
    files: tuple[str, ...]  # possible places of config.json in the folder, the first choice first
    example: str  # a right value of the key, for error messages
    class_name: str = ""  # the class in config.json; "": any class


@dataclass(frozen=True)
class Location:
    """The location of a model, as `from_pretrained` needs it."""

    wanted: Wanted
    name: str  # folder or hub name
    part: str  # subfolder, or ""
    config_file: Path
    commit: str | None = None  # on the hub

    def identity(self, *others: str) -> str:
        """A text that changes with the contents: the commit, or a hash of the files.

        others: further parts of the model whose contents count, too.
        """
        parts = dict.fromkeys((self.part, *others))
        return self.commit or content_hash([fingerprint(Path(self.name) / part) for part in parts])


def find(wanted: Wanted, source: str | Path, revision: str | None = None) -> Location:
    """Find a model. source: a folder or a hub name. Raises `ValueError` that names the key and a remedy."""
    folder, name = Path(source).expanduser(), str(source)
    if folder.is_dir():
        for file in wanted.files:
            if _is(wanted, folder / file):
                return Location(wanted, str(folder), file.rpartition("/")[0], folder / file)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{wanted.key}: there is no folder {name}; name one that exists: {wanted.example}")
    elif location := _on_hub(wanted, name, revision):
        return location
    looked = " or ".join(wanted.files)
    what = f"{wanted.class_name}: no {looked} names this class" if wanted.class_name else looked
    raise ValueError(f"{wanted.key}: {name} holds no {what}; name {wanted.example}")


def _on_hub(wanted: Wanted, name: str, revision: str | None) -> Location | None:
    from huggingface_hub import errors, hf_hub_download

    key = wanted.key
    by_hand = f"or `hf download {name} --local-dir FOLDER` elsewhere, and write {key}=FOLDER"
    unreachable: Exception | None = None
    for file in wanted.files:
        try:
            tried = unreachable is not None  # one failed connection is enough
            found = hf_hub_download(name, file, revision=revision, local_files_only=tried)
        except errors.RemoteEntryNotFoundError:
            continue
        except errors.GatedRepoError as error:
            raise ValueError(
                f"{key}: {name} is gated; accept its terms on https://huggingface.co/{name} and run "
                f"`hf auth login`, {by_hand}"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ValueError(
                f"{key}: the hub has no {name}, and there is no such folder; if it is private, run "
                f"`hf auth login`; or name {wanted.example}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ValueError(
                f"{key.rpartition('.')[0]}.revision: {name} has no revision {revision}; name a branch, a tag "
                "or a commit"
            ) from error
        except errors.HFValidationError as error:
            raise ValueError(f"{key}: {name} is not a folder and not a hub name") from error
        except OSError as error:  # no connection, offline mode, or a failing server
            unreachable = unreachable or error
            continue
        if _is(wanted, Path(found)):
            # .../snapshots/COMMIT/[part/]config.json: the commit identifies all files of the model.
            commit = Path(found).parents[file.count("/")].name
            return Location(wanted, name, file.rpartition("/")[0], Path(found), commit)
    if unreachable is not None:
        raise ValueError(
            f"{key}: there is no folder {name}, and the hub cannot be reached; try again with a "
            f"connection, {by_hand} ({first_line(unreachable)})"
        ) from unreachable
    return None


def _is(wanted: Wanted, config_file: Path) -> bool:
    if not wanted.class_name or not config_file.is_file():
        return config_file.is_file()
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{wanted.key}: {config_file} cannot be read: {error}") from error
    return isinstance(content, dict) and content.get("_class_name") == wanted.class_name


def fingerprint(folder: Path) -> list[tuple[str, str]]:
    """The names of a model's files, each with a hash of the content.

    Of a large file, the hash covers the length and a sample of every tensor. Two trainings differ in nearly
    all numbers of the tensors that they changed, so reading gigabytes is unnecessary.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in _CONTENTS or not path.is_file():
            continue
        size = path.stat().st_size
        digest = hashlib.blake2b(str(size).encode(), digest_size=16)
        with path.open("rb") as file:
            for start in _starts(file, size):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
        found.append((path.name, digest.hexdigest()))
    return found


def _starts(file: BinaryIO, size: int) -> Iterable[int]:
    """The offsets where samples start: evenly spread, and at each tensor. A small file is read completely."""
    if size <= _WHOLE:
        return range(0, size, _SAMPLE)
    spread = [(size - _SAMPLE) * k // (_SPREAD - 1) for k in range(_SPREAD)]
    try:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _HEADER)))
        at = [8 + length + about["data_offsets"][0] for k, about in header.items() if k != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError):  # another format, or a damaged file
        at = []
    return spread + sorted(at)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
