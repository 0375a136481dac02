"""What the user named, as a sorted list of sources: files, folders, globs and lists, local or remote."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import json
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import fsspec
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from curation.decode.video import IMAGE_SUFFIXES, is_remote, open_source
from curation.store.transient import retrying

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


_BAD_NAME = "BadName"
_SURROGATE = re.compile("[\ud800-\udfff]")  # of a byte that is not UTF-8, or alone in a list's JSON


class SourcesError(ValueError):
    """What the user named cannot be listed; the message says what is wrong with it."""


class NotAFile(OSError):
    """There is something under the name, but not a file that could be read to its end."""


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
        if self.error and self.error[0] == _BAD_NAME:  # its uri may be the honest name of another file
            text += f"\n{_BAD_NAME}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def list_sources(named: Sequence[str], limit: int | None = None) -> list[Source]:
    """Sources in order of their uri, each once. Raises `SourcesError` for what is missing or empty.

    What cannot be a source (a folder that cannot be read, a name that cannot be stored) is listed with its
    `error`, so that it becomes a failed row.
    """
    found: dict[str, Source] = {}
    for name in named:
        several = [_storable(s) for s in _expand(name)]
        if not several:
            kinds = "no video or image in it" if _is_folder(name) else "nothing matches it"
            raise SourcesError(f"{name}: {kinds}")
        for source in several:
            found.setdefault(source.source_id, source)
    listed = sorted(found.values(), key=lambda s: (s.uri, s.source_id))
    return listed[:limit] if limit is not None else listed


def _storable(source: Source) -> Source:
    """The source itself, or one that fails, under a uri that Parquet can store."""
    if _SURROGATE.search(source.uri):
        # Its own backslashes are doubled: two bad names never look the same.
        uri = _SURROGATE.sub(_escaped, source.uri.replace("\\", "\\\\"))
        message = "the name is not valid UTF-8; rename the file"
        return replace(source, uri=uri, error=(_BAD_NAME, message))
    if "\0" in source.uri:
        return replace(source, error=(_BAD_NAME, "the name holds a NUL byte, which no file's name can"))
    return source


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _is_media(path: str) -> bool:
    # `._x.mp4` is what a Mac writes beside `x.mp4` on foreign disks: no media.
    return Path(path).suffix.lower() in MEDIA_SUFFIXES and not os.path.basename(path).startswith("._")


def _expand(name: str) -> Iterator[Source]:
    if is_remote(name):
        yield from _expand_remote(name)
        return
    path = _local(name)
    if os.path.isdir(path):
        yield from _walk(os.path.abspath(path), is_named=True)
    elif path.suffix.lower() in LIST_SUFFIXES and os.path.exists(path):
        yield from _read_list(str(path), str(path.resolve().parent))
    elif os.path.lexists(path):
        yield Source(os.path.abspath(path))
    elif glob.has_magic(name):
        yield from _glob(os.path.expanduser(name))
    else:
        try:
            os.lstat(path)
        except FileNotFoundError:
            raise SourcesError(f"{name}: there is no such file or folder") from None
        except (OSError, ValueError) as error:
            raise SourcesError(f"{name}: {_reason(error)}") from error


@dataclass(frozen=True)
class _Folder:
    """One folder of a walk, with the sorted names of what is in it and is no folder."""

    path: str
    files: list[str]
    error: OSError | None = None  # it cannot be read
    is_seen: bool = False  # it is another way to a folder that was read already


def _folders(root: str) -> Iterator[_Folder]:
    """`root` and every folder below it, each read once, in a fixed order.

    Links to folders are followed, but after all that is reached without them: a file then has its own path
    rather than one by way of a link.
    """
    visited: set[tuple[int, int]] = set()  # by device and inode: links may lead round in circles
    pending, links = [root], list[str]()
    while pending or links:
        if not pending:
            pending, links = sorted(links, reverse=True), []
        path = pending.pop()
        try:
            identity, entries = retrying(partial(_look_into, path))
        except OSError as error:
            yield _Folder(path, [], error)
            continue
        if identity in visited:
            yield _Folder(path, [], is_seen=True)
            continue
        visited.add(identity)
        files: list[str] = []
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                # A loop is no folder. What cannot be looked at might be one, and then it is a failed one.
                is_folder = error.errno != errno.ELOOP
            if is_folder:
                (links if entry.is_symlink() else pending).append(entry.path)
            else:
                files.append(entry.name)
        yield _Folder(path, files)


def _look_into(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    status = os.stat(folder)
    with os.scandir(folder) as entries:
        return (status.st_dev, status.st_ino), sorted(entries, key=lambda e: e.name)


def _unreadable(folder: str, error: OSError) -> Source:
    return Source(folder, error=(type(error).__name__, f"the folder cannot be read: {_reason(error)}"))


def _walk(root: str, *, is_named: bool) -> list[Source]:
    """The media below a folder, and what below it cannot be read."""
    found: list[Source] = []
    like_media: list[str] = []  # folders
    for folder in _folders(root):
        if folder.error is not None:
            if is_named and folder.path == root:
                raise SourcesError(
                    f"{root}: the folder cannot be read: {_reason(folder.error)}"
                ) from folder.error
            found.append(_unreadable(folder.path, folder.error))
            continue
        found += [Source(os.path.join(folder.path, file)) for file in folder.files if _is_media(file)]
        if _is_media(folder.path):
            like_media.append(folder.path)
    # Somebody took such a folder for a file, unless it is where the media are.
    uris = sorted(s.uri for s in found)
    for path in like_media:
        inside = os.path.join(path, "")
        k = bisect_left(uris, inside)
        if k == len(uris) or not uris[k].startswith(inside):
            found.append(Source(path, error=(NotAFile.__name__, _KINDS[stat.S_IFDIR])))
    return found


def _glob(pattern: str) -> Iterator[Source]:
    """What matches and has the suffix of a video or an image, whatever it is."""
    for match, error in _matches(pattern).items():
        path = os.path.abspath(match)
        if error is not None:
            yield _unreadable(path, error)
        elif _is_media(path) and os.path.isdir(path):
            yield from _walk(path, is_named=False)
        elif _is_media(path):
            yield Source(path)


def _matches(pattern: str) -> dict[str, OSError | None]:
    """What matches, and the folders in which nothing could be looked for."""
    if os.path.basename(pattern) == "**":
        pattern = os.path.join(pattern, "*")
    parted = re.fullmatch(r"((?:.*?/)?)\*\*/(.*)", pattern, re.DOTALL)
    if not parted:
        return dict.fromkeys(glob.glob(pattern))
    # Python's own `**` goes round in circles where links do.
    head, tail = parted.groups()
    found: dict[str, OSError | None] = {}
    for base in glob.glob(head) if head else ["."]:
        for folder in _folders(base):
            below = os.path.relpath(folder.path, base).split(os.sep)
            if folder.is_seen or any(part.startswith(".") and part != "." for part in below):
                continue
            if folder.error is not None:
                found[folder.path] = folder.error
            else:
                found |= _matches(os.path.join(glob.escape(folder.path), tail))
    return found


def _expand_remote(name: str) -> Iterator[Source]:
    try:
        fs, path = fsspec.url_to_fs(name)
        fs.invalidate_cache()  # of listings: one process may build twice
        if Path(name).suffix.lower() in LIST_SUFFIXES:
            yield from _read_list(name, name.rsplit("/", 1)[0])
            return
        if glob.has_magic(name):
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            if isinstance(fs, LocalFileSystem):  # its own `find` leaves out what it cannot read
                for source in _walk(os.path.abspath(path), is_named=True):
                    yield replace(source, uri=fs.unstrip_protocol(source.uri))
                return
            found = fs.find(path, detail=True)
        else:
            yield _as_listed(name, fs.info(path))
            return
    except SourcesError:
        raise
    except FileNotFoundError as error:
        raise SourcesError(f"{name}: there is no such file or folder (or no such bucket)") from error
    except Exception as error:  # each file system has errors of its own, such as for missing credentials
        raise SourcesError(f"{name}: {_reason(error)}") from error
    for p, info in found.items():
        if _is_media(p):
            yield _as_listed(fs.unstrip_protocol(p), info)


def _as_listed(uri: str, info: Mapping[str, Any]) -> Source:
    """A listing tells what each file would be asked for: that is one request for a thousand."""
    size = info.get("size") if info.get("type") == "file" else None
    return Source(uri, bytes=None if size is None else int(size), mtime_or_etag=_changed(info) or None)


def _is_folder(name: str) -> bool:
    return not is_remote(name) and os.path.isdir(_local(name))


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
        extra = {k: v for k, v in row.items() if k != column and v is not None}
        yield Source(path, _storable_extra(extra))


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


def _storable_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """JSON can escape half a character, which no table can hold."""
    text = json.dumps(extra, ensure_ascii=False, default=str)
    if not _SURROGATE.search(text):
        return extra
    replaced: dict[str, Any] = json.loads(_SURROGATE.sub("\ufffd", text))
    return replaced


def identify(
    sources: Sequence[Source],
    known: Mapping[str, Source],
    threads: int = 8,
    *,
    staying: Sequence[Source] = (),
    retries: int = 3,
    retry_seconds: float = 1.0,
) -> list[Source]:
    """Add size, time and fingerprint, and mark duplicates of earlier sources.

    known: maps uris to sources identified before: where size and time still agree, the file is not read.
    staying: sources of the dataset, measured and no duplicates, that are not among `sources`: what is
        named now can be a duplicate of one of them. They are not part of the result.
    retries, retry_seconds: for read errors that may pass, see `retrying`.
    """

    def some(start: int) -> list[Source]:
        group = sources[start : start + size]
        return [_identify(s, known.get(s.uri), retries, retry_seconds) for s in group]

    size = min(32, len(sources) // (4 * threads) + 1)  # a task costs more than to look at a file's time
    with ThreadPoolExecutor(threads) as pool:
        identified = [s for group in pool.map(some, range(0, len(sources), size)) for s in group]
    first: dict[str, list[Source]] = {}
    for source in staying:
        if source.fingerprint is not None:
            first.setdefault(source.fingerprint, []).append(source)
    marked = []
    for source in identified:
        original = None
        before = known.get(source.uri)
        if source.fingerprint is not None:
            same = first.setdefault(source.fingerprint, [])
            # Large files are fingerprinted by samples, so equality is proven on the whole content.
            # A pair that was proven equal before, and has not changed since, is not read again.
            proven = before.duplicate_of if before and before.fingerprint == source.fingerprint else None
            original = next((s for s in same if s.source_id == proven), None) or next(
                (s for s in same if _is_same(s, source, retries, retry_seconds)), None
            )
            if original is None:
                same.append(source)
        marked.append(replace(source, duplicate_of=original.source_id) if original else source)
    return marked


def changed_since(uri: str, bytes: int | None, mtime_or_etag: str | None, fingerprint: str | None) -> bool:
    """Is the file another one than it was? Its content is read only when its size or time differ.

    Raises `OSError` when it cannot be read.
    """
    try:
        size, changed = _stat(uri)
        if (size, changed) == (bytes, mtime_or_etag):
            return False
        return size != bytes or _fingerprint(uri, size) != fingerprint
    except OSError:
        raise
    except Exception as error:  # as in `_identify`
        raise OSError(_reason(error)) from error


def _identify(source: Source, before: Source | None, retries: int, retry_seconds: float) -> Source:
    if source.error is not None:
        return source
    try:
        size, changed, fingerprint = retrying(lambda: _look(source, before), retries, retry_seconds)
    except Exception as error:  # remote file systems raise what they like; whatever it is, it is this row
        return replace(source, error=(type(error).__name__, _reason(error)))
    return replace(source, bytes=size, mtime_or_etag=changed, fingerprint=fingerprint)


def _look(source: Source, before: Source | None) -> tuple[int, str, str]:
    """(bytes, mtime or etag, fingerprint) of a file, which is read unless it is as it was `before`."""
    if source.bytes is not None and source.mtime_or_etag:  # listed with it
        size, changed = source.bytes, source.mtime_or_etag
    else:
        size, changed = _stat(source.uri)
    if before is not None and (before.bytes, before.mtime_or_etag) == (size, changed) and before.fingerprint:
        return size, changed, before.fingerprint
    return size, changed, _fingerprint(source.uri, size)


def _reason(error: BaseException) -> str:
    """An error in words. File systems of fsspec often raise with the path alone."""
    if isinstance(error, OSError) and not error.strerror:
        for kind, number in ((FileNotFoundError, errno.ENOENT), (PermissionError, errno.EACCES)):
            if isinstance(error, kind):
                return os.strerror(number)
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


_KINDS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


def _stat(uri: str) -> tuple[int, str]:
    if is_remote(uri):
        fs, path = fsspec.url_to_fs(uri)
        info = fs.info(path)
        if info.get("type", "file") != "file":
            raise NotAFile(_KINDS[stat.S_IFDIR] if info["type"] == "directory" else "not a regular file")
        return int(info["size"]), _changed(info)
    result = os.stat(uri)
    if not stat.S_ISREG(result.st_mode):
        raise NotAFile(_KINDS.get(stat.S_IFMT(result.st_mode), "not a regular file"))
    return result.st_size, str(result.st_mtime_ns)


def _changed(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or "")


def _fingerprint(uri: str, size: int) -> str:
    """Hash of the size and of the content: of all of it, or of ten samples of 1 MiB of a large file."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_source(uri, ahead=False) as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read(size))  # no further: it may be growing
        else:
            step = (size - _BLOCK_BYTES) // (_SAMPLES + 1)
            for k in range(_SAMPLES + 2):
                file.seek(min(k * step, size - _BLOCK_BYTES))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _is_same(a: Source, b: Source, retries: int, retry_seconds: float) -> bool:
    """Have two sources of one fingerprint the same content? What cannot be read is not proven equal."""
    try:
        return retrying(lambda: _same_content(a, b), retries, retry_seconds)
    except Exception:  # gone since it was fingerprinted: what reads it next says so in its row
        return False


def _same_content(a: Source, b: Source) -> bool:
    if a.bytes is not None and a.bytes <= _WHOLE_BYTES:  # the fingerprint is of all of it
        return True
    with open_source(a.uri) as first, open_source(b.uri) as second:
        while True:
            block = first.read(_BLOCK_BYTES)
            if block != second.read(_BLOCK_BYTES):
                return False
            if not block:
                return True
