"""Clips out of a dataset, for tools that do not read Parquet: tar shards, or plain files."""

from __future__ import annotations

import contextlib
import io
import json
import math
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import pyarrow as pa

from curation.store.address import filesystem
from curation.store.dataset import LEASE, Dataset, reelmill_version
from curation.store.intact import intact_groups
from curation.store.lease import Lease
from curation.store.schema import VIDEO_HASH

Format = Literal["webdataset", "files"]
_Clip = tuple[dict[str, Any], bytes]  # scalar columns, mp4

MARKER = "reelmill-export.json"  # what makes a folder an export, which a later one may replace
_TAR_BLOCK = 512  # bytes: a header is one, data fill whole ones
_ID = re.compile(r"[0-9a-f]{1,64}")
_OURS = re.compile(r"[0-9a-f]{1,64}\.(mp4|txt)|\d{5,}\.tar|metadata\.jsonl|_tmp-.*")


def export(
    dataset: Dataset,
    to: Format,
    out: str,
    *,
    shard_mb: int = 512,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Copy the clips of the shards, in their order, to the folder `out`. Returns how many.

    `files`: CLIP_ID.mp4, CLIP_ID.txt (the caption; empty where there is none) and metadata.jsonl, a row
    per clip with its file name, its caption and every scalar column.
    `webdataset`: 00000.tar, 00001.tar … of at most `shard_mb` (10^6 bytes), or one clip that is larger;
    each clip is CLIP_ID.mp4, .txt and .json. The same dataset gives the same bytes.

    `told` gets the number of shards of the dataset that were copied, and the number of all.

    `out` may be remote. It is empty, new, or an earlier export, which is replaced: afterwards it holds
    the clips of this dataset and no others. Raises `ValueError` for anything else, where another export
    is at work, and for a damaged clip.
    """
    if to not in get_args(Format):
        raise ValueError(f"cannot export to {to!r}: there are {', '.join(get_args(Format))}")
    if shard_mb <= 0:
        raise ValueError(f"shard_mb must be above 0, not {shard_mb}")
    dataset.manifest()
    folder = Dataset(out)  # its way to write: whole files, local or remote
    _check_free(out)
    with Lease(folder, "export") as lease:
        folder.guard = lease.check
        _mark(folder, to, None)
        write = _write_tars if to == "webdataset" else _write_files
        written, clips = write(_clips(dataset, told), folder, shard_mb)
        for name in _names(out):
            if name not in written and _OURS.fullmatch(name):
                folder.remove(name)
        _mark(folder, to, clips)
    return clips


def _names(out: str) -> list[str]:
    fs, root = filesystem(out, typed=True)
    fs.invalidate_cache()
    if not fs.exists(root):
        return []
    if not fs.isdir(root):
        raise ValueError(f"{out} is a file; --out names a folder")
    return [posixpath.basename(p.rstrip("/")) for p in fs.ls(root, detail=False)]


def _check_free(out: str) -> None:
    # An export that was killed before it had begun leaves its lease, and an unfinished marker.
    names = [n for n in _names(out) if n != LEASE and not n.startswith("_tmp-")]
    if names and MARKER not in names:
        raise ValueError(
            f"{out} holds something else (it is not empty and has no {MARKER}): name a new or empty folder"
        )


def _mark(folder: Dataset, to: str, clips: int | None) -> None:
    """`clips` is null while the export is under way."""
    value = {"format": to, "reelmill_version": reelmill_version(), "clips": clips}
    folder.write(MARKER, json.dumps(value).encode())


def _clips(dataset: Dataset, told: Callable[[int, int], None]) -> Iterator[_Clip]:
    """Every shard row; one row group in memory."""
    schema = [f for f in dataset.schema("shards") if not pa.types.is_nested(f.type) and f.name != VIDEO_HASH]
    scalars = [field.name for field in schema]
    parts = dataset.parts("shards")
    for done, part in enumerate(parts):
        told(done, len(parts))
        for table in intact_groups(dataset, part, [*scalars, "video"]):
            hashed = VIDEO_HASH in table.column_names  # older shards have no hash
            columns = [*scalars, VIDEO_HASH] if hashed else scalars
            for i, row in enumerate(table.select(columns).to_pylist()):
                clip_id = row["clip_id"]
                # A hash by contract, and what keeps a file name from leading out of the folder.
                if not _ID.fullmatch(clip_id):
                    shown = f"{clip_id[:60]!r}{'…' if len(clip_id) > 60 else ''}"
                    raise dataset.damaged(
                        f"shards/{part}.parquet", f"clip id {shown} is not a hexadecimal hash"
                    )
                video = table["video"][i].as_py()
                if not video or not video["bytes"]:
                    raise dataset.damaged(f"shards/{part}.parquet", f"clip {clip_id} has no video bytes")
                yield {k: _plain(v) for k, v in row.items()}, video["bytes"]


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_files(rows: Iterator[_Clip], folder: Dataset, _: int) -> tuple[set[str], int]:
    written = {"metadata.jsonl"}
    clips = 0
    with folder.writing("metadata.jsonl") as metadata:
        for row, mp4 in rows:
            name = row["clip_id"]
            folder.write(f"{name}.mp4", mp4)
            folder.write(f"{name}.txt", (row["caption"] or "").encode())
            line = {"file_name": f"{name}.mp4", "caption": row["caption"], **row}
            metadata.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            written |= {f"{name}.mp4", f"{name}.txt"}
            clips += 1
    return written, clips


def _write_tars(rows: Iterator[_Clip], folder: Dataset, shard_mb: int) -> tuple[set[str], int]:
    written: set[str] = set()
    clips = filled_bytes = 0
    tar: tarfile.TarFile | None = None
    with contextlib.ExitStack() as stack:
        for row, mp4 in rows:
            members = {
                "mp4": mp4,
                "txt": (row["caption"] or "").encode(),
                "json": json.dumps(row, ensure_ascii=False, sort_keys=True).encode(),
            }
            size_bytes = sum(_TAR_BLOCK + -(-len(d) // _TAR_BLOCK) * _TAR_BLOCK for d in members.values())
            if tar is None or filled_bytes + size_bytes > shard_mb * 1e6:
                stack.close()  # the file before this one is whole, and appears
                name = f"{len(written):05d}.tar"
                file = stack.enter_context(folder.writing(name))
                tar = stack.enter_context(tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT))
                written.add(name)
                filled_bytes = 0
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{row['clip_id']}.{suffix}")  # no owner, no time: the same bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            filled_bytes += size_bytes
            clips += 1
    return written, clips
