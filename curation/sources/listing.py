"""The sorted list of sources that the user named: files, folders, globs and lists, local or remote."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from curation.sources.identity import changed
from curation.sources.lists import SURROGATE, read_list
from curation.sources.media import MEDIA_SUFFIXES, OTHER_LISTS, is_list, is_media, left_out, suffix_left_out
from curation.sources.source import BAD_NAME, KINDS, NotAFile, Source, SourcesError, reason
from curation.store.address import filesystem, is_remote
from curation.store.transient import retrying


def list_sources(
    named: Sequence[str], limit: int | None = None, say: Callable[[str], None] = lambda _: None
) -> list[Source]:
    """Sources in order of their uri, each once. Raises `SourcesError` if a name is missing or has no media.

    A folder that cannot be read and a name that cannot be stored are listed with an `error`. Each of them
    becomes a failed row. say: is called with lines about what is left out or merged.
    """
    found: dict[str, Source] = {}
    differ = 0
    for name in named:
        left: Counter[str] = Counter()
        several = [_storable(s) for s in _expand(name, say, left)]
        without = left_out(left) if left else None
        if not several:
            kinds = "no video or image in it" if _is_folder(name) else "nothing matches it"
            raise SourcesError(f"{name}: {kinds}{f' ({without})' if without else ''}")
        if without:
            say(f"{name}: {without}")
        for source in several:
            before = found.setdefault(source.source_id, source)
            if not before.extra:
                found[source.source_id] = source  # a folder and a list: the list says more
            elif source.extra and source.extra != before.extra:
                differ += 1
    if differ:
        say(f"{differ} files are in several of the named lists with other columns: those of the first count")
    listed = sorted(found.values(), key=lambda s: (s.uri, s.source_id))
    return listed[:limit] if limit is not None else listed


def _storable(source: Source) -> Source:
    """The source itself, or a failed source with a uri that Parquet can store."""
    if SURROGATE.search(source.uri):
        # Backslashes of the name are doubled, so that two different names never give the same uri.
        uri = SURROGATE.sub(_escaped, source.uri.replace("\\", "\\\\"))
        message = "the name is not valid UTF-8; rename the file"
        return replace(source, uri=uri, error=(BAD_NAME, message))
    if "\0" in source.uri:
        return replace(source, error=(BAD_NAME, "the name holds a NUL byte, which no file's name can"))
    return source


def _escaped(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _expand(name: str, say: Callable[[str], None], left: Counter[str]) -> Iterator[Source]:
    if is_remote(name):
        yield from _expand_remote(name, say, left)
        return
    path = _local(name)
    if os.path.isdir(path):
        yield from _walk(os.path.abspath(path), left, is_named=True)
    elif is_list(path.name) and os.path.exists(path) and not _is_caption(path):
        yield from read_list(str(path), str(path.resolve().parent), say)
    elif os.path.lexists(path):
        if path.suffix.lower() in OTHER_LISTS:
            raise SourcesError(f"{name}: lists of this kind are not read; save it as CSV, JSONL or Parquet")
        yield Source(os.path.abspath(path))
    elif glob.has_magic(name):
        yield from _glob(os.path.expanduser(name), left)
    else:
        try:
            os.lstat(path)
        except FileNotFoundError:
            raise SourcesError(f"{name}: there is no such file or folder") from None
        except (OSError, ValueError) as error:
            raise SourcesError(f"{name}: {reason(error)}") from error


@dataclass(frozen=True)
class _Folder:
    """One folder of a walk, with the sorted names of its entries that are not folders."""

    path: str
    files: list[str]
    error: OSError | None = None  # why the folder cannot be read
    is_seen: bool = False  # the same folder was already read under another path


def _folders(root: str) -> Iterator[_Folder]:
    """`root` and every folder below it, each read once, in a fixed order.

    Links to folders are followed last. So a file gets its own path instead of a path through a link.
    """
    visited: set[tuple[int, int]] = set()  # device and inode, because links may form a loop
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
                # A loop of links is not a folder. Any other entry with an error may be a folder: reading the
                # folder will then fail and report the error.
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


def _walk(root: str, left: Counter[str], *, is_named: bool) -> list[Source]:
    """The media below a folder, and a failed source for each folder below it that cannot be read.

    left: gets the suffixes of the files that are left out.
    """
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
        _count(left, folder.files)
        if is_media(folder.path):
            like_media.append(folder.path)
    # A folder with the name of a media file is probably a mistake of the user, unless media are inside.
    uris = sorted(s.uri for s in found)
    for path in like_media:
        inside = os.path.join(path, "")
        k = bisect_left(uris, inside)
        if k == len(uris) or not uris[k].startswith(inside):
            found.append(Source(path, error=(NotAFile.__name__, KINDS[stat.S_IFDIR])))
    return found


def _count(left: Counter[str], files: Iterable[str]) -> None:
    for file in files:
        if not is_media(file) and (suffix := suffix_left_out(file)):
            left[suffix] += 1


def _glob(pattern: str, left: Counter[str]) -> Iterator[Source]:
    """Every match with the suffix of a video or an image: files, folders and anything else."""
    for match, error in _matches(pattern).items():
        path = os.path.abspath(match)
        if error is not None:
            yield _unreadable(path, error)
        elif is_media(path) and os.path.isdir(path):
            yield from _walk(path, left, is_named=False)
        elif is_media(path):
            yield Source(path)
        elif not os.path.isdir(path):
            _count(left, [path])


def _matches(pattern: str) -> dict[str, OSError | None]:
    """Maps each matching path to None, and each folder that could not be searched to its error."""
    if os.path.basename(pattern) == "**":
        pattern = os.path.join(pattern, "*")
    parted = re.fullmatch(r"((?:.*?/)?)\*\*/(.*)", pattern, re.DOTALL)
    if not parted:
        return dict.fromkeys(glob.glob(pattern))
    # Python's own `**` follows a loop of links again and again.
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


def _is_caption(path: Path) -> bool:
    """Is this the caption file of a video beside it? A shell that expands `*` names both."""
    return path.suffix.lower() in (".txt", ".json") and any(
        os.path.lexists(path.with_suffix(suffix)) for suffix in MEDIA_SUFFIXES
    )


def _expand_remote(name: str, say: Callable[[str], None], left: Counter[str]) -> Iterator[Source]:
    try:
        fs, path = filesystem(name, typed=True)
        fs.invalidate_cache()  # the cache of listings, because one process may build twice
        if is_list(name):
            yield from read_list(name, name.rsplit("/", 1)[0], say)
            return
        if glob.has_magic(name):
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            if isinstance(fs, LocalFileSystem):  # its own `find` silently skips folders that it cannot read
                for source in _walk(os.path.abspath(path), left, is_named=True):
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
    except Exception as error:  # each file system has its own errors, for example for missing credentials
        raise SourcesError(f"{name}: {reason(error)}") from error
    _count(left, (p for p, info in found.items() if info.get("type", "file") == "file"))
    for p, info in found.items():
        if is_media(p):
            yield _as_listed(fs.unstrip_protocol(p), info)


def _as_listed(uri: str, info: Mapping[str, Any]) -> Source:
    """A source with the size and time from a listing. One listing replaces a request for each file."""
    size = info.get("size") if info.get("type") == "file" else None
    return Source(uri, bytes=None if size is None else int(size), mtime_or_etag=changed(info) or None)


def _is_folder(name: str) -> bool:
    return not is_remote(name) and os.path.isdir(_local(name))


def _local(name: str) -> Path:
    # `Path.expanduser` would raise an error for a file such as `~old.mp4`.
    return Path(os.path.expanduser(name))
