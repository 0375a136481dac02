"""Addresses of files: local paths, and addresses such as `s3://bucket/name` that fsspec opens."""

from __future__ import annotations

from typing import BinaryIO, cast

import fsspec

_AHEAD_BYTES = 4 << 20


def is_remote(uri: str) -> bool:
    return "://" in uri


def open_source(uri: str, *, ahead: bool = True) -> BinaryIO:
    """The file of a source. A remote one is read some MiB ahead, or no byte more than is asked for."""
    if not is_remote(uri):  # not by fsspec: it reads more into a name (`a::b.png`)
        return open(uri, "rb")
    fs, path = fsspec.url_to_fs(uri)
    cache = "readahead" if ahead else "none"
    # With S3's own 50 MiB every visit to the index, and to a clip, would cost that much.
    return cast(BinaryIO, fs.open(path, "rb", block_size=_AHEAD_BYTES, cache_type=cache))
