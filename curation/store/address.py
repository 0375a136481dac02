"""Addresses of files: local paths, and addresses such as `s3://bucket/name` that fsspec opens.

Which of them may be opened is decided here alone. What a list, a table or a manifest names was written by
whoever made that file: it is opened only if it is a local path or of one of a few protocols, and it is never
a chain (`simplecache::…`), by which fsspec would open a second address inside the first. What the user
types himself may be of any protocol that is no chain.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import fsspec

PROTOCOLS = ("file", "s3", "s3a", "gs", "gcs", "hf")
# More of them, by commas. The environment is the user's own word, and workers of a local Ray inherit it.
MORE_PROTOCOLS = "REELMILL_PROTOCOLS"
_AHEAD_BYTES = 4 << 20


class AddressRefused(ValueError):
    """An address that is not opened; the message names its protocol and the allowed ones."""


def is_remote(uri: str) -> bool:
    return "://" in uri


def protocols() -> tuple[str, ...]:
    """Of which an address may be that somebody else wrote."""
    more = (name.strip() for name in os.environ.get(MORE_PROTOCOLS, "").split(","))
    return tuple(dict.fromkeys([*PROTOCOLS, *filter(None, more)]))


def allow(typed: Iterable[str]) -> None:
    """Let this process, and those that it starts, open addresses of the protocols that the user typed."""
    more = [a.partition("://")[0] for a in typed if is_remote(a) and "::" not in a]
    if new := [protocol for protocol in more if protocol not in protocols()]:
        os.environ[MORE_PROTOCOLS] = ",".join([*protocols()[len(PROTOCOLS) :], *dict.fromkeys(new)])


def refusal(address: str) -> str | None:
    """Why an address that somebody else wrote is not opened; None where it may be. Nothing is contacted."""
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
    """fsspec's file system of an address, and the path there. Raises `AddressRefused` before anything is
    contacted.

    typed: the user typed the address himself. Otherwise it comes from a list, a table or a manifest.
    """
    if not is_remote(address):  # not by `url_to_fs`: it reads more into a name (`a::b.png`)
        local = fsspec.filesystem("file")
        return local, local._strip_protocol(address)
    if reason := _chain(address) if typed else refusal(address):
        raise AddressRefused(reason)
    return cast(tuple[Any, str], fsspec.url_to_fs(address))


def open_source(uri: str, *, ahead: bool = True, typed: bool = False) -> BinaryIO:
    """The file of a source. A remote one is read some MiB ahead, or no byte more than is asked for.

    `typed` and what is raised: see `filesystem`.
    """
    if not is_remote(uri):
        return open(uri, "rb")
    fs, path = filesystem(uri, typed=typed)
    cache = "readahead" if ahead else "none"
    # With S3's own 50 MiB every visit to the index, and to a clip, would cost that much.
    return cast(BinaryIO, fs.open(path, "rb", block_size=_AHEAD_BYTES, cache_type=cache))
