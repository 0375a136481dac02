"""What the user named, as a sorted list of sources: files, folders, globs and lists, local or remote."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from curation.sources.identity import changed
from curation.sources.lists import SURROGATE, read_list
from curation.sources.media import LIST_SUFFIXES, is_media
from curation.sources.source import BAD_NAME, KINDS, NotAFile, Source, SourcesError, reason
from curation.store.address import filesystem, is_remote
from curation.store.transient import retrying


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
    if SURROGATE.search(source.uri):
        # Its own backslashes are doubled: two bad names never look the same.
        uri = SURROGATE.sub(_escaped, source.uri.replace("\\", "\\\\"))
        message = "the name is not valid UTF-8; rename the file"
        return replace(source, uri=uri, error=(BAD_NAME, message))
    if "\0" in source.uri:
        return replace(source, error=(BAD_NAME, "the name holds a NUL byte, which no file's name can"))
    return source


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _expand(name: str) -> Iterator[Source]:
    if is_remote(name):
        yield from _expand_remote(name)
        return
    path = _local(name)
    if os.path.isdir(path):
        yield from _walk(os.path.abspath(path), is_named=True)
    elif path.suffix.lower() in LIST_SUFFIXES and os.path.exists(path):
        yield from read_list(str(path), str(path.resolve().parent))
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
            raise SourcesError(f"{name}: {reason(error)}") from error


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
    return Source(folder, error=(type(error).__name__, f"the folder cannot be read: {reason(error)}"))


def _walk(root: str, *, is_named: bool) -> list[Source]:
    """The media below a folder, and what below it cannot be read."""
    found: list[Source] = []
    like_media: list[str] = []  # folders
    for folder in _folders(root):
        if folder.error is not None:
            if is_named and folder.path == root:
                raise SourcesError(
                    f"{root}: the folder cannot be read: {reason(folder.error)}"
                ) from folder.error
            found.append(_unreadable(folder.path, folder.error))
            continue
        found += [Source(os.path.join(folder.path, file)) for file in folder.files if is_media(file)]
        if is_media(folder.path):
            like_media.append(folder.path)
    # Somebody took such a folder for a file, unless it is where the media are.
    uris = sorted(s.uri for s in found)
    for path in like_media:
        inside = os.path.join(path, "")
        k = bisect_left(uris, inside)
        if k == len(uris) or not uris[k].startswith(inside):
            found.append(Source(path, error=(NotAFile.__name__, KINDS[stat.S_IFDIR])))
    return found


def _glob(pattern: str) -> Iterator[Source]:
    """What matches and has the suffix of a video or an image, whatever it is."""
    for match, error in _matches(pattern).items():
        path = os.path.abspath(match)
        if error is not None:
            yield _unreadable(path, error)
        elif is_media(path) and os.path.isdir(path):
            yield from _walk(path, is_named=False)
        elif is_media(path):
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
        fs, path = filesystem(name, typed=True)
        fs.invalidate_cache()  # of listings: one process may build twice
        if Path(name).suffix.lower() in LIST_SUFFIXES:
            yield from read_list(name, name.rsplit("/", 1)[0])
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
        raise SourcesError(f"{name}: {reason(error)}") from error
    for p, info in found.items():
        if is_media(p):
            yield _as_listed(fs.unstrip_protocol(p), info)


def _as_listed(uri: str, info: Mapping[str, Any]) -> Source:
    """A listing tells what each file would be asked for: that is one request for a thousand."""
    size = info.get("size") if info.get("type") == "file" else None
    return Source(uri, bytes=None if size is None else int(size), mtime_or_etag=changed(info) or None)


def _is_folder(name: str) -> bool:
    return not is_remote(name) and os.path.isdir(_local(name))


def _local(name: str) -> Path:
    # Not `Path.expanduser`: it raises for a file such as `~old.mp4`.
    return Path(os.path.expanduser(name))
