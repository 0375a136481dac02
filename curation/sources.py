"""What the user named, as a sorted list of sources: files, folders, globs and lists, local or remote."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.parquet as pq

from curation.video import IMAGE_SUFFIXES, is_remote

VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".m2ts",
        ".mts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
        ".3gp",
        ".3g2",
        ".ogv",
        ".mxf",
        ".gif",
        ".y4m",
        ".rm",
        ".rmvb",
        ".dv",
        ".ivf",
        ".h264",
        ".264",
        ".hevc",
        ".265",
    ]
)
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
LIST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})
PATH_COLUMNS = (
    "uri",
    "path",
    "video",
    "file",
    "file_path",
    "video_path",
    "filename",
    "file_name",
    "image",
    "url",
)

_BLOCK_BYTES = 1 << 20
_WHOLE_BYTES = 8 << 20  # smaller files are hashed whole
_SAMPLES = 8


class SourcesError(ValueError):
    """What the user named cannot be listed; the message says what is wrong with it."""


@dataclass(frozen=True)
class Source:
    """One input. `fingerprint` is null when it could not be read, and then `error` says why."""

    uri: str
    extra: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None
    mtime_or_etag: str | None = None
    fingerprint: str | None = None
    duplicate_of: str | None = None  # source_id of an identical source that comes before this one
    error: tuple[str, str] | None = None  # kind and message

    @property
    def source_id(self) -> str:
        text = f"{self.uri}\n{self.fingerprint}" if self.fingerprint else self.uri
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def list_sources(named: Sequence[str], limit: int | None = None) -> list[Source]:
    """Sources in order of their uri, each once. Raises `SourcesError` for what is missing or empty."""
    found: dict[str, Source] = {}
    for name in named:
        several = list(_expand(name))
        if not several:
            kinds = "no video or image in it" if _is_folder(name) else "nothing matches it"
            raise SourcesError(f"{name}: {kinds}")
        for source in several:
            found.setdefault(source.uri, source)
    listed = sorted(found.values(), key=lambda s: s.uri)
    return listed[:limit] if limit is not None else listed


def _expand(name: str) -> Iterator[Source]:
    if is_remote(name):
        yield from _expand_remote(name)
        return
    path = _local(name)
    if path.is_dir():
        yield from (Source(uri) for uri in _walk(path))
    elif path.suffix.lower() in LIST_SUFFIXES and path.exists():
        yield from _read_list(str(path), str(path.resolve().parent))
    elif os.path.lexists(path):
        yield Source(os.path.abspath(path))
    elif glob.has_magic(name):
        for match in sorted(glob.glob(os.path.expanduser(name), recursive=True)):
            if os.path.isfile(match) and Path(match).suffix.lower() in MEDIA_SUFFIXES:
                yield Source(os.path.abspath(match))
    else:
        raise SourcesError(f"{name}: there is no such file or folder")


def _walk(folder: Path) -> Iterator[str]:
    # Links to folders are not followed: a loop of links would never end.
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        folders.sort()
        for file in files:
            if Path(file).suffix.lower() in MEDIA_SUFFIXES:
                yield os.path.abspath(os.path.join(root, file))


def _unreadable(error: OSError) -> None:
    raise SourcesError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error


def _expand_remote(name: str) -> Iterator[Source]:
    try:
        fs, path = fsspec.url_to_fs(name)
        if Path(name).suffix.lower() in LIST_SUFFIXES:
            yield from _read_list(name, name.rsplit("/", 1)[0])
            return
        if glob.has_magic(name):
            paths = fs.glob(path)
        elif fs.isdir(path):
            paths = fs.find(path)
        else:
            yield Source(name)
            return
    except (OSError, ImportError, ValueError) as error:
        raise SourcesError(f"{name}: {error}") from error
    for p in paths:
        if Path(p).suffix.lower() in MEDIA_SUFFIXES:
            yield Source(fs.unstrip_protocol(p))


def _is_folder(name: str) -> bool:
    return not is_remote(name) and _local(name).is_dir()


def _local(name: str) -> Path:
    # Not `Path.expanduser`: it raises for a file such as `~old.mp4`.
    return Path(os.path.expanduser(name))


def _read_list(name: str, base: str) -> Iterator[Source]:
    """A CSV, JSONL or Parquet list: one column is the path, the others travel along as `extra`."""
    column: str | None = None
    for number, row in enumerate(_rows(name), 1):
        if column is None:
            column = next((c for c in PATH_COLUMNS if c in row), None)
            if column is None:
                raise SourcesError(f"{name}: no path column; it needs one of {', '.join(PATH_COLUMNS)}")
        path = row.get(column)
        if not path:
            raise SourcesError(f"{name}: row {number} has no {column}")
        path = str(path)
        if not is_remote(path):
            path = f"{base}/{path}" if is_remote(base) else os.path.abspath(os.path.join(base, path))
        yield Source(path, {k: v for k, v in row.items() if k != column and v is not None})


def _rows(name: str) -> Iterator[dict[str, Any]]:
    suffix = Path(name).suffix.lower()
    try:
        if suffix == ".parquet":
            with fsspec.open(name, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from cast(list[dict[str, Any]], batch.to_pylist())
            return
        with fsspec.open(name, "rt", encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise SourcesError(f"{name}: line {number} is not valid JSON: {error}") from error
                    if not isinstance(row, dict):
                        raise SourcesError(f"{name}: line {number} is not a JSON object")
                    yield row
    except SourcesError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise SourcesError(f"{name}: cannot be read as a list: {error}") from error


def identify(sources: Iterable[Source], known: dict[str, Source], threads: int = 8) -> list[Source]:
    """Add size, time and fingerprint, and mark duplicates of earlier sources.

    `known` maps uris to sources identified before: where size and time still agree, the file is not read.
    """
    with ThreadPoolExecutor(threads) as pool:
        identified = list(pool.map(lambda s: _identify(s, known.get(s.uri)), sources))
    first: dict[str, list[Source]] = {}
    marked = []
    for source in identified:
        original = None
        before = known.get(source.uri)
        if source.fingerprint is not None:
            same = first.setdefault(source.fingerprint, [])
            # Large files are fingerprinted by samples, so equality is proven on the whole content.
            # A pair that was proven equal before, and has not changed since, is not read again.
            proven = before.duplicate_of if before and before.fingerprint == source.fingerprint else None
            original = next((s for s in same if s.source_id == proven or _same_content(s, source)), None)
            if original is None:
                same.append(source)
        marked.append(replace(source, duplicate_of=original.source_id) if original else source)
    return marked


def _identify(source: Source, before: Source | None) -> Source:
    try:
        size, changed = _stat(source.uri)
        if (
            before is not None
            and (before.bytes, before.mtime_or_etag) == (size, changed)
            and before.fingerprint
        ):
            fingerprint = before.fingerprint
        else:
            fingerprint = _fingerprint(source.uri, size)
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return replace(source, error=(type(error).__name__, str(reason)))
    return replace(source, bytes=size, mtime_or_etag=changed, fingerprint=fingerprint)


def _stat(uri: str) -> tuple[int, str]:
    if is_remote(uri):
        fs, path = fsspec.url_to_fs(uri)
        info = fs.info(path)
        if info.get("type", "file") != "file":
            raise ValueError("not a regular file")
        changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
        return int(info["size"]), str(changed)
    result = os.stat(uri)
    if not stat.S_ISREG(result.st_mode):
        raise ValueError("not a regular file")
    return result.st_size, str(result.st_mtime_ns)


def _fingerprint(uri: str, size: int) -> str:
    """Hash of the size and of the content: of all of it, or of ten samples of 1 MiB of a large file."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with _open(uri) as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            step = (size - _BLOCK_BYTES) // (_SAMPLES + 1)
            for k in range(_SAMPLES + 2):
                file.seek(min(k * step, size - _BLOCK_BYTES))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _same_content(a: Source, b: Source) -> bool:
    if a.bytes is None or a.bytes <= _WHOLE_BYTES:
        return True
    try:
        with _open(a.uri) as first, _open(b.uri) as second:
            while True:
                block = first.read(_BLOCK_BYTES)
                if block != second.read(_BLOCK_BYTES):
                    return False
                if not block:
                    return True
    except OSError:  # gone since it was fingerprinted: what reads it next says so in its row
        return False


def _open(uri: str) -> Any:
    return fsspec.open(uri, "rb").open() if is_remote(uri) else open(uri, "rb")
