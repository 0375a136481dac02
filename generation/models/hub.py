"""Where a published model lies, in a folder or on the model hub, and what tells its contents from others."""

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
_WHOLE, _SAMPLE = 1 << 20, 1 << 14  # files up to so many bytes are read whole; others in samples
_SPREAD, _HEADER = 256, 100_000_000  # samples; bytes that a safetensors header has at most


@dataclass(frozen=True)
class Wanted:
    """What is looked for."""

    key: str  # of the configuration, that names it
    files: tuple[str, ...]  # its config.json, in the folder or a part of it; the first choice first
    example: str  # what could be named instead
    class_name: str = ""  # as its config.json has it; "": any


@dataclass(frozen=True)
class Location:
    """Where it is: what `from_pretrained` is told."""

    wanted: Wanted
    name: str  # folder or hub name
    part: str  # subfolder, or ""
    config_file: Path
    commit: str | None = None  # on the hub

    def identity(self, *others: str) -> str:
        """Stands for what it holds, and `others`, parts beside it: the commit, or the contents of files."""
        parts = dict.fromkeys((self.part, *others))
        return self.commit or content_hash([fingerprint(Path(self.name) / part) for part in parts])


def find(wanted: Wanted, source: str | Path, revision: str | None = None) -> Location:
    """`source`: a folder or a hub name. Raises `ValueError` that names the key and a remedy."""
    folder, name = Path(source).expanduser(), str(source)
    if folder.is_dir():
        for file in wanted.files:
            if _is(wanted, folder / file):
                return Location(wanted, str(folder), file.rpartition("/")[0], folder / file)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"{wanted.key}: there is no folder {name}; name one that exists: {wanted.example}")
    elif location := _on_hub(wanted, name, revision):
        return location
    looked = " nor ".join(wanted.files)
    what = f"{wanted.class_name}: neither {looked} tells of one" if wanted.class_name else looked
    raise ValueError(f"{wanted.key}: {name} holds no {what}; name {wanted.example}")


def _on_hub(wanted: Wanted, name: str, revision: str | None) -> Location | None:
    from huggingface_hub import errors, hf_hub_download

    key = wanted.key
    by_hand = f"or `hf download {name} --local-dir FOLDER` elsewhere, and write {key}=FOLDER"
    unreachable: Exception | None = None
    for file in wanted.files:
        try:
            tried = unreachable is not None  # long enough
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
                f"{key.rpartition('.')[0]}.revision: {name} has no {revision}; name a branch, tag or commit"
            ) from error
        except errors.HFValidationError as error:
            raise ValueError(f"{key}: {name} is neither a folder nor a hub name") from error
        except OSError as error:  # no connection, none wanted, or a server in trouble
            unreachable = unreachable or error
            continue
        if _is(wanted, Path(found)):
            # .../snapshots/COMMIT/[part/]config.json: the commit stands for all of its files.
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
    """Names and contents of a model's files; large ones by their length and samples of every tensor: two
    trainings differ in nearly all numbers of what they changed, and gigabytes need not be read."""
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
    """Where samples start: evenly spread, and at each tensor of a safetensors file; small files are whole."""
    if size <= _WHOLE:
        return range(0, size, _SAMPLE)
    spread = [(size - _SAMPLE) * k // (_SPREAD - 1) for k in range(_SPREAD)]
    try:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, _HEADER)))
        at = [8 + length + about["data_offsets"][0] for k, about in header.items() if k != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError):  # of another format, or damaged
        at = []
    return spread + sorted(at)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
