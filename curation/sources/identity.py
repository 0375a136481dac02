"""The size, time and fingerprint that identify a source, and which sources are copies of other sources."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from curation.sources.source import KINDS, NotAFile, Source, reason
from curation.store.address import AddressRefused, file_of, filesystem, is_remote, open_source
from curation.store.table_row import table_row
from curation.store.transient import retrying

_BLOCK_BYTES = 1 << 20
_WHOLE_BYTES = 8 << 20  # smaller files are hashed whole
_SAMPLES = 8
# The last ones are of the Hugging Face hub, whose files have neither a time nor an etag, and of other stores.
_CHANGES = (
    *("ETag", "etag", "mtime", "LastModified"),
    *("blob_id", "xet_hash", "oid", "sha", "md5Hash", "content_md5", "checksum"),
    *("last_modified", "modified", "updated", "last_write_time"),
)


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

    known: maps uris to sources that were identified before. A file whose size and time are unchanged is not
        read again.
    staying: other sources of the dataset that are measured and are not duplicates. A source in `sources`
        can be a duplicate of one of them. The result does not contain them.
    retries, retry_seconds: `retrying` describes these limits for read errors that may pass.
    """

    def some(start: int) -> list[Source]:
        group = sources[start : start + size]
        return [_identify(s, known.get(s.uri), retries, retry_seconds) for s in group]

    size = min(32, len(sources) // (4 * threads) + 1)  # starting a task takes longer than one `os.stat`
    with ThreadPoolExecutor(threads) as pool:
        identified = [s for group in pool.map(some, range(0, len(sources), size)) for s in group]
    first: dict[str, list[Source]] = {}
    for source in staying:
        if source.fingerprint is not None:
            first.setdefault(source.fingerprint, []).append(source)
    marked: dict[int, Source] = {}
    # What was measured stays the original, although a copy of it now comes before it.
    for place, source in sorted(enumerate(identified), key=lambda item: not _was_original(item[1], known)):
        original = None
        before = known.get(source.uri)
        if source.fingerprint is not None:
            same = first.setdefault(source.fingerprint, [])
            # The fingerprint of a large file covers only samples, so whole contents are compared. A pair
            # that was proven equal before and has not changed is not read again.
            proven = before.duplicate_of if before and before.fingerprint == source.fingerprint else None
            original = next((s for s in same if s.source_id == proven), None) or next(
                (s for s in same if _is_same(s, source, retries, retry_seconds)), None
            )
            if original is None:
                same.append(source)
        marked[place] = replace(source, duplicate_of=original.source_id) if original else source
    return [source for _, source in sorted(marked.items())]


def _was_original(source: Source, known: Mapping[str, Source]) -> bool:
    before = known.get(source.uri)
    return (
        before is not None
        and before.duplicate_of is None
        and before.fingerprint is not None
        and before.fingerprint == source.fingerprint
    )


def changed_since(uri: str, bytes: int | None, mtime_or_etag: str | None, fingerprint: str | None) -> bool:
    """Has the content of the file changed? The content is read only if the size or the time differs.

    Raises `OSError` if the file cannot be read, and `AddressRefused` if the address may not be opened.
    """
    try:
        if table_row(uri) and mtime_or_etag and file_changed(uri) == mtime_or_etag:
            return False
        size, changed = (_size_in_table(uri), "") if table_row(uri) else _stat(uri)
        if changed and (size, changed) == (bytes, mtime_or_etag):
            return False
        return size != bytes or _fingerprint(uri, size) != fingerprint
    except (OSError, AddressRefused):
        raise
    except Exception as error:  # as in `_identify`
        raise OSError(reason(error)) from error


def _identify(source: Source, before: Source | None, retries: int, retry_seconds: float) -> Source:
    if source.error is not None:
        return source
    try:
        size, changed, fingerprint = retrying(lambda: _look(source, before), retries, retry_seconds)
    except Exception as error:  # remote file systems raise any kind of error: every error fails this source
        return replace(source, error=(type(error).__name__, reason(error)))
    return replace(source, bytes=size, mtime_or_etag=changed, fingerprint=fingerprint)


def _look(source: Source, before: Source | None) -> tuple[int, str, str]:
    """(bytes, mtime or etag, fingerprint) of a file. A file that is unchanged since `before` is not read."""
    if table_row(source.uri):
        return _look_into_table(source, before)
    if source.bytes is not None and source.mtime_or_etag:  # the listing gave both
        size, changed = source.bytes, source.mtime_or_etag
    else:
        size, changed = _stat(source.uri)
    is_known = before is not None and (before.bytes, before.mtime_or_etag) == (size, changed)
    if before is not None and before.fingerprint and is_known and changed:
        return size, changed, before.fingerprint
    return size, changed, _fingerprint(source.uri, size)


def _look_into_table(source: Source, before: Source | None) -> tuple[int, str, str]:
    """The same of a file in a row of a Parquet file. It is read where the Parquet file has changed."""
    changed = source.mtime_or_etag or file_changed(source.uri)
    if before is not None and before.bytes and before.fingerprint and before.mtime_or_etag == changed != "":
        return before.bytes, changed, before.fingerprint
    size = _size_in_table(source.uri)
    return size, changed, _fingerprint(source.uri, size)


def _stat(uri: str) -> tuple[int, str]:
    if is_remote(uri):
        fs, path = filesystem(uri)
        info = fs.info(path)
        if info.get("type", "file") != "file":
            raise NotAFile(KINDS[stat.S_IFDIR] if info["type"] == "directory" else "not a regular file")
        return int(info["size"]), changed(info)
    result = os.stat(uri)
    if not stat.S_ISREG(result.st_mode):
        raise NotAFile(KINDS.get(stat.S_IFMT(result.st_mode), "not a regular file"))
    return result.st_size, str(result.st_mtime_ns)


def file_changed(uri: str) -> str:
    """What says whether the file of an address has changed (`store.address.file_of`). Empty: nothing does."""
    size, changed = _stat(file_of(uri))
    return f"{changed} {size}" if changed else ""


def _size_in_table(uri: str) -> int:
    with open_source(uri) as file:
        return file.seek(0, os.SEEK_END)


def changed(info: Mapping[str, Any]) -> str:
    """What a file system says of the content: another text after a change. Empty: it says nothing of it, and
    the content must be looked at."""
    return str(next((info[key] for key in _CHANGES if info.get(key)), ""))


def _fingerprint(uri: str, size: int) -> str:
    """Hash of the size and the content. Of a large file, only ten samples of 1 MiB are hashed."""
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open_source(uri, ahead=False) as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read(size))  # only `size` bytes, because the file may be growing
        else:
            step = (size - _BLOCK_BYTES) // (_SAMPLES + 1)
            for k in range(_SAMPLES + 2):
                file.seek(min(k * step, size - _BLOCK_BYTES))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _is_same(a: Source, b: Source, retries: int, retry_seconds: float) -> bool:
    """Do two sources with the same fingerprint have the same content? False if one cannot be read."""
    try:
        return retrying(lambda: _same_content(a, b), retries, retry_seconds)
    except Exception:  # the file was deleted after the fingerprint: the next reader reports that in its row
        return False


def _same_content(a: Source, b: Source) -> bool:
    if a.bytes is not None and a.bytes <= _WHOLE_BYTES:  # the fingerprint covers the whole content
        return True
    with open_source(a.uri) as first, open_source(b.uri) as second:
        while True:
            block = first.read(_BLOCK_BYTES)
            if block != second.read(_BLOCK_BYTES):
                return False
            if not block:
                return True
