"""Reading the shards of a dataset for training: an index of the columns, row groups, and frames of clips.

This module uses only the names of the columns in the schema. Video bytes are read by whole row groups,
because a row group is the smallest unit that a Parquet file can give.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import os
import random
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_VIDEO_HASH = "video_hash"  # a column: blake2b of the clip's bytes; shards of version 0.1.0 have none
_SIZES = ("frames", "fps", "width", "height")
_TEXT = (pa.string(), pa.large_string())
_VIDEO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_TYPES = {"clip_id": _TEXT, "caption": _TEXT, "video": (_VIDEO,)}
_READ_ATTEMPTS = 3
_RETRY_S = 0.5
_KEPT_FOOTERS = 256  # about 100 kB each, decoded
_INDEX_THREADS = 8
_REFUSED_BY_DECORD = (16, 24, 32, 48, 96, 144)  # widths at which decord fails because of its padding of rows


def shard_files(dataset: str | Path) -> list[Path]:
    """The shards of a local dataset, in order. Raises `ValueError` if there are no shards."""
    files = sorted(p for p in (Path(dataset) / "shards").glob("*.parquet") if not p.name.startswith("_"))
    if not files:
        raise ValueError(_no_shards(dataset))
    return files


def _no_shards(dataset: str | Path) -> str:
    return f"{dataset} has no shards: reelmill build makes shards"


def clips(
    dataset: str | Path, columns: Sequence[str] | None = None, *, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of the shards, with one row group in memory at a time.

    seed: shuffles the order of the row groups. Rows were shuffled inside of a shard when the shard was
    written. Rows of a row group therefore keep their order, and one read gives a whole row group. Raises
    `ValueError` for a damaged file.
    """
    groups = []
    for path in shard_files(dataset):
        with _readable(path), pq.ParquetFile(path) as file:
            groups += [(path, k) for k in range(file.num_row_groups)]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    for path, k in groups:
        with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read_row_group(k, columns=list(columns) if columns else None)
        yield from table.to_pylist()


@contextlib.contextmanager
def _readable(path: Any) -> Iterator[None]:
    """Errors of reading a shard as a `ValueError` that names the file and the remedy."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {why}; reelmill verify lists all damage") from error


def _is_damaged(mp4: bytes | None, video_hash: str | None) -> bool:
    return video_hash is not None and hashlib.blake2b(mp4 or b"", digest_size=16).hexdigest() != video_hash


def frames(row: Mapping[str, Any], indices: Sequence[int] | None = None) -> np.ndarray:
    """The frames of a row's clip, (T, H, W, 3) uint8 RGB. indices: only these frames.

    Raises `ValueError` if the clip has another number of frames or another size than its row says.
    """
    if _is_damaged(row["video"]["bytes"], row.get(_VIDEO_HASH)):
        raise ValueError(f"clip {row['clip_id']}: it is damaged, its bytes are not those that were written")
    wanted = list(range(row["frames"]) if indices is None else indices)
    mp4 = row["video"]["bytes"]
    if mp4[4:8] != b"ftyp":  # decoders would try a playlist, which names other files
        raise ValueError(f"clip {row['clip_id']}: its bytes are no mp4")
    decoded = _by_av if row["width"] in _REFUSED_BY_DECORD else _by_decord
    count, found = decoded(mp4, wanted)
    if count != row["frames"]:
        raise ValueError(f"clip {row['clip_id']}: {count} frames, its row says {row['frames']}")
    if found.shape[1:3] != (row["height"], row["width"]):
        raise ValueError(
            f"clip {row['clip_id']}: {found.shape[2]}x{found.shape[1]}, "
            f"its row says {row['width']}x{row['height']}"
        )
    return found


def _by_decord(mp4: bytes, wanted: list[int]) -> tuple[int, np.ndarray]:
    """The number of frames, and the wanted frames (T, H, W, 3) uint8. Seeks to the nearest key frame."""
    if "decord" not in sys.modules:
        # decord loads every CUDA library that it finds, including NVBLAS. If PyTorch is imported later, it
        # crashes in matrix products on the CPU. Processes that only decode have imported decord before, and
        # never import PyTorch.
        import torch  # noqa: F401
    from decord import VideoReader  # here, because the import takes half a second

    with _muted_stderr():  # decord prints the content of what it cannot open
        reader = VideoReader(io.BytesIO(mp4), num_threads=1)
    inside = [i for i in wanted if i < len(reader)]
    return len(reader), np.asarray(reader.get_batch(inside or [0]).asnumpy())


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere for a moment: native code does not know `sys.stderr`."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _by_av(mp4: bytes, wanted: list[int]) -> tuple[int, np.ndarray]:
    """The number of frames, and the wanted frames (T, H, W, 3) uint8. Decodes all frames."""
    import av

    with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
        container.streams.video[0].codec_context.thread_count = 1
        found = [f.to_ndarray(format="rgb24", threads=1) for f in container.decode(video=0)]
    return len(found), np.stack([found[i] for i in wanted if i < len(found)] or found[:1])


class UnknownColumn(ValueError):
    """A column that no shard has. The first argument is the message, the second the name of the column."""


class Unreadable(Exception):
    """A row group that cannot be read, even after several attempts, or a clip that is damaged."""


@dataclass(frozen=True)
class Index:
    """The facts about a dataset that training knows before it reads any video.

    Arrays have one element per row, in the order of the shards.
    """

    dataset: str
    files: tuple[str, ...]  # addresses, sorted
    clip_ids: pa.ChunkedArray
    captions: pa.ChunkedArray  # null: unconditional
    numbers: Mapping[str, np.ndarray]  # by column, including _SIZES: (rows,) float64, NaN for null
    group: np.ndarray  # (rows,) number of the row group in the dataset
    group_file: np.ndarray  # (row groups,) position of the row group's file in `files`
    group_in_file: np.ndarray  # (row groups,) number of the row group in its file
    group_start: np.ndarray  # (row groups + 1,) first row of each row group
    dataset_hash: str  # of clip ids, captions and sizes, in order, and of the bounds of row groups
    measured: tuple[str, ...] = ()  # the numeric columns that have values
    bytes_read: int = 0  # number of bytes that were read for the index

    def __len__(self) -> int:
        return len(self.group)

    def clip_id(self, row: int) -> str:
        return str(self.clip_ids[row].as_py())

    def caption(self, row: int) -> str | None:
        """The caption of a row. None for a null or empty caption."""
        text = self.captions[row].as_py()
        return text if text and text.strip() else None

    def file(self, row: int) -> str:
        return self.files[self.group_file[self.group[row]]]


def read_index(dataset: str | Path, columns: Collection[str] = ()) -> Index:
    """Read columns of all shards: ids, captions, sizes, and the numeric `columns`.

    dataset: a local folder or an fsspec address. A column that only some shards have is null in the others.
    Raises `ValueError` if there are no shards, if a file is not a shard, or if no shard has one of `columns`.
    """
    location = str(dataset).rstrip("/")
    fs, root = fsspec.url_to_fs(location)
    folder = f"{root}/shards"
    found = fs.ls(folder, detail=False) if fs.isdir(folder) else []
    files = tuple(sorted(p for p in found if p.endswith(".parquet") and p.rsplit("/", 1)[1][0] != "_"))
    if not files:
        raise ValueError(_no_shards(dataset))
    wanted = tuple(dict.fromkeys((*_SIZES, *columns)))
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        parts = list(pool.map(lambda path: _read_columns(fs, path, wanted), files))
    known = {name for part in parts for name in part.known}
    measured = sorted({name for part in parts for name in part.measured})
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(name, measured, 3, 0.4)
            there = ", ".join([*near, *(n for n in measured if n not in near)])
            raise UnknownColumn(f"{dataset} has no numeric column {name!r}; the columns are {there}", name)

    digest = hashlib.blake2b(digest_size=16)
    counts: list[int] = []
    group_file: list[int] = []
    group_in_file: list[int] = []
    for k, part in enumerate(parts):
        start = 0
        for g, count in enumerate(part.group_rows):
            rows = slice(start, start + count)
            ids, texts = (part.table[c][rows].to_pylist() for c in ("clip_id", "caption"))
            sizes = [part.numbers[name][rows].tolist() for name in _SIZES]
            digest.update(json.dumps([ids, texts, sizes]).encode())
            counts.append(count)
            group_file.append(k)
            group_in_file.append(g)
            start += count
    return Index(
        dataset=location,
        files=files,
        clip_ids=pa.chunked_array([c for p in parts for c in p.table["clip_id"].chunks], pa.string()),
        captions=pa.chunked_array([c for p in parts for c in p.table["caption"].chunks], pa.string()),
        numbers={name: np.concatenate([p.numbers[name] for p in parts]) for name in wanted},
        group=np.repeat(np.arange(len(counts)), counts),
        group_file=np.array(group_file, dtype=np.int64),
        group_in_file=np.array(group_in_file, dtype=np.int64),
        group_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        dataset_hash=digest.hexdigest(),
        measured=tuple(measured),
        bytes_read=sum(p.bytes_read for p in parts),
    )


@dataclass(frozen=True)
class _Columns:
    """The columns of one shard."""

    table: pa.Table
    numbers: dict[str, np.ndarray]
    known: set[str]  # the numeric columns
    measured: set[str]  # the numeric columns that have values
    group_rows: list[int]
    bytes_read: int


def _read_columns(fs: Any, path: str, wanted: Sequence[str]) -> _Columns:
    read: list[int] = []
    if _is_local(fs) and not os.path.isfile(path):  # a named pipe would be waited for without an end
        raise ValueError(f"{path} is no file; take the shard from a copy of the dataset")
    try:
        with (
            _Counted(fs, path, read.append) as source,
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            schema = file.schema_arrow
            needed = ("clip_id", "caption", "video", *_SIZES)
            missing = [n for n in needed if n not in schema.names]
            if missing:
                raise ValueError(f"{path} is not a shard of reelmill: it has no column {', '.join(missing)}")
            for name, kind in _TYPES.items():
                if (found := schema.field(name).type) not in kind:
                    raise ValueError(f"{path} is not a shard of reelmill: {name} is {found}, not {kind[0]}")
            numeric = {f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)}
            table = file.read(["clip_id", "caption", *(n for n in wanted if n in numeric)])
            table.validate(full=True)
            groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            measured = numeric & _with_values(file.metadata)
    except (pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: {why}; reelmill verify lists all damage") from error
    if table["clip_id"].null_count:
        raise ValueError(f"{path} cannot be trained on: it has clips without a clip_id")
    text = pa.schema([("clip_id", pa.string()), ("caption", pa.string())])
    numbers = {
        name: table[name].cast(pa.float64()).to_numpy()
        if name in numeric
        else np.full(table.num_rows, np.nan)
        for name in wanted
    }
    return _Columns(
        table.select(["clip_id", "caption"]).cast(text), numbers, numeric, measured, groups, sum(read)
    )


def _with_values(footer: Any) -> set[str]:
    """The columns that have a value, according to the footer's statistics."""
    found = set()
    for c in range(footer.num_columns if footer.num_row_groups else 0):
        chunks = (footer.row_group(g).column(c) for g in range(footer.num_row_groups))
        if any(not k.statistics or (k.statistics.null_count or 0) < k.num_values for k in chunks):
            found.add(footer.row_group(0).column(c).path_in_schema)
    return found


class GroupReader:
    """Reads the clips of whole row groups, and counts bytes. Only one thread at a time may use a reader."""

    def __init__(self, index: Index):
        self.index = index
        self.bytes_read = 0
        self.groups_read: Counter[int] = Counter()
        self._fs, _ = fsspec.url_to_fs(index.dataset)
        self._footers: OrderedDict[str, Any] = OrderedDict()

    def read(self, group: int, rows: Collection[int] | None = None) -> dict[int, bytes | Unreadable]:
        """The clips of one row group: row of the index -> bytes of its mp4, or that the clip is damaged.
        rows: only these rows.

        Raises `Unreadable`, and `ValueError` if the shards have changed since the index was read.
        """
        index = self.index
        path = index.files[index.group_file[group]]
        start, end = int(index.group_start[group]), int(index.group_start[group + 1])
        table = self._attempt(path, int(index.group_in_file[group]))
        self.groups_read[group] += 1
        if not table["clip_id"].combine_chunks().equals(_whole(index.clip_ids[start:end])):
            raise ValueError(f"{path} has changed since training began; start again with the new dataset")
        videos = _leaf(table)
        hashes = table[_VIDEO_HASH].to_pylist() if _VIDEO_HASH in table.column_names else [None] * len(table)
        found: dict[int, bytes | Unreadable] = {}
        for row in range(start, end) if rows is None else rows:
            mp4 = videos[row - start].as_py()
            if _is_damaged(mp4, hashes[row - start]):
                mp4 = Unreadable(f"damaged in {path}: its bytes are not those that were written")
            found[row] = mp4
        return found

    def _attempt(self, path: str, group: int) -> pa.Table:
        for attempt in range(_READ_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_S * attempt)
            footer = self._footers.get(path)
            try:
                # Without pre_buffer, exactly these column chunks are read.
                with (
                    _Counted(self._fs, path, self._count) as source,
                    pq.ParquetFile(
                        source, metadata=footer, pre_buffer=False, page_checksum_verification=True
                    ) as file,
                ):
                    columns = ["clip_id", "video.bytes", _VIDEO_HASH]
                    there = [c for c in columns if c != _VIDEO_HASH or c in file.schema_arrow.names]
                    table = file.read_row_group(group, there, use_threads=False)
                    self._keep(path, file.metadata)
                return table
            except (pa.ArrowException, OSError) as error:
                last = error
                self._footers.pop(path, None)
        raise Unreadable(f"row group {group} of {path} cannot be read: {last}")

    def _count(self, read: int) -> None:
        self.bytes_read += read

    def _keep(self, path: str, footer: Any) -> None:
        self._footers[path] = footer
        self._footers.move_to_end(path)
        if len(self._footers) > _KEPT_FOOTERS:
            self._footers.popitem(last=False)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _leaf(table: pa.Table) -> pa.ChunkedArray:
    """The column `video.bytes`."""
    return pa.chunked_array([c.field("bytes") for c in table["video"].chunks], pa.binary())


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


class _Counted(io.RawIOBase):
    """A file opened for reading. `count` is called with the number of bytes of each read."""

    def __init__(self, fs: Any, path: str, count: Callable[[int], None]):
        # A remote file must not read ahead, because Parquet asks for exactly the bytes that it needs.
        self._file = fs.open(path, "rb") if _is_local(fs) else fs.open(path, "rb", cache_type="none")
        self._count = count

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = self._file.read(-1 if size is None else size)
        self._count(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
