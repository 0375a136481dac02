"""Addresses of files: local paths, and addresses such as `s3://bucket/name` that fsspec opens.

Only this module decides which addresses may be opened. Another person may have written the addresses in a
list, a table or a manifest. Such an address is opened only if the address is a local path or has one of a
few protocols. A chain (`simplecache::…`) is never opened, because fsspec would open a second address inside
the first one. An address that the user types may have any protocol, but must not be a chain.

A file may lie in a row of a Parquet file (`store.table_row`). The listing of a Parquet file that the user
named makes such addresses, and a list's cells may not hold them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import fsspec

from curation.store.table_row import TableRow, read_row, table_row

PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "hf")
# More protocols, separated by commas. The user sets the environment, and workers of a local Ray inherit it.
MORE_PROTOCOLS = "REELMILL_PROTOCOLS"
_AHEAD_BYTES = 4 << 20


class AddressRefused(ValueError):
    """The address is not opened. The message names its protocol and the allowed protocols."""


def is_remote(uri: str) -> bool:
    return "://" in uri


def absolute(name: str) -> str:
    return name if is_remote(name) else os.path.abspath(name)


def file_of(uri: str) -> str:
    """The address of the file that is opened: of a row of a Parquet file, that of the Parquet file."""
    row = table_row(uri)
    return row.file if row else uri


def protocols() -> tuple[str, ...]:
    """The protocols that are allowed in an address from another person."""
    more = (name.strip() for name in os.environ.get(MORE_PROTOCOLS, "").split(","))
    return tuple(dict.fromkeys([*PROTOCOLS, *filter(None, more)]))


def allow(typed: Iterable[str]) -> None:
    """Let this process and its child processes open addresses of the protocols that the user typed."""
    more = [a.partition("://")[0] for a in typed if is_remote(a) and "::" not in a]
    if new := [protocol for protocol in more if protocol not in protocols()]:
        os.environ[MORE_PROTOCOLS] = ",".join([*protocols()[len(PROTOCOLS) :], *dict.fromkeys(new)])


def refusal(address: str) -> str | None:
    """The reason why an address from another person is not opened, or None if the address may be opened.

    The function contacts no server.
    """
    if not is_remote(address):
        return None
    if chain := _chain(address):
        return chain
    protocol = address.partition("://")[0]
    if protocol in protocols():
        return None
    return (
        f"addresses of the protocol {protocol[:40]!r} are not opened; allowed are local paths and "
        f"{', '.join(protocols())} (to allow {protocol[:40]!r}, too, set {MORE_PROTOCOLS}={protocol[:40]} in "
        "the environment)"
    )


def _chain(address: str) -> str | None:
    if "::" not in address:
        return None
    parts = [part.partition("://")[0][:40] for part in address.split("::")]
    return (
        f"an address with '::' is a chain of protocols ({', '.join(map(repr, parts[:4]))}) and is never "
        f"opened; allowed are local paths and {', '.join(PROTOCOLS)}, one at a time"
    )


def filesystem(address: str, *, typed: bool = False) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in that file system.

    Raises `AddressRefused` before any server is contacted.

    typed: the user typed the address. Otherwise the address comes from a list, a table or a manifest.
    """
    if not is_remote(address):  # `url_to_fs` would take a file name such as `a::b.png` for a chain
        local = fsspec.filesystem("file")
        return local, local._strip_protocol(address)
    if reason := _chain(address) if typed else refusal(address):
        raise AddressRefused(reason)
    return cast(tuple[Any, str], fsspec.url_to_fs(address))


def open_source(uri: str, *, ahead: bool = True, typed: bool = False) -> BinaryIO:
    """The open file of a source, in binary mode.

    ahead: a remote file is read 4 MiB ahead. Otherwise only the requested bytes are read.
    `filesystem` describes `typed` and the errors that are raised.
    """
    if row := table_row(uri):
        return io.BytesIO(read_row(row, _version(row), lambda name: open_source(name, typed=typed)))
    if not is_remote(uri):
        return open(uri, "rb")
    fs, path = filesystem(uri, typed=typed)
    cache = "readahead" if ahead else "none"
    # S3's own block is 50 MiB: each read of the index and of a clip would transfer that much.
    return cast(BinaryIO, fs.open(path, "rb", block_size=_AHEAD_BYTES, cache_type=cache))


def _version(row: TableRow) -> str:
    """What the file system says of the Parquet file: another text when it is another file."""
    if is_remote(row.file):
        fs, path = filesystem(row.file)
        return repr(sorted(fs.info(path).items(), key=str))
    status = os.stat(row.file)
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
