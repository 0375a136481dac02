"""Reading a dataset's shards for training: an index made of their columns, row groups, and clips' frames.

Of the schema only the names of columns are used here. Video bytes are read row group by row group, never row
by row: a row group is what a Parquet file can give at once.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
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
_READ_ATTEMPTS = 3
_RETRY_S = 0.5
_KEPT_FOOTERS = 256  # some 100 kB each, decoded
_INDEX_THREADS = 8
_REFUSED_BY_DECORD = (16, 24, 32, 48, 96, 144)  # widths: it stumbles over its own padding of rows


def shard_files(dataset: str | Path) -> list[Path]:
    """The shards of a local dataset, in order. Raises `ValueError` when there are none."""
    files = sorted(p for p in (Path(dataset) / "shards").glob("*.parquet") if not p.name.startswith("_"))
    if not files:
        raise ValueError(_no_shards(dataset))
    return files


def _no_shards(dataset: str | Path) -> str:
    return f"{dataset} has no shards: reelmill build makes them"


def clips(
    dataset: str | Path, columns: Sequence[str] | None = None, *, seed: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of the shards, one row group in memory at a time; row groups in an order that `seed` decides.

    Rows are shuffled inside a shard when it is written, so whole row groups are read in order: one read
    per row group, not per row.
    """
    groups = []
    for path in shard_files(dataset):
        with pq.ParquetFile(path) as file:
            groups += [(path, k) for k in range(file.num_row_groups)]
    if seed is not None:
        random.Random(seed).shuffle(groups)
    for path, k in groups:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read_row_group(k, columns=list(columns) if columns else None)
        yield from table.to_pylist()


def _is_damaged(mp4: bytes | None, video_hash: str | None) -> bool:
    return video_hash is not None and hashlib.blake2b(mp4 or b"", digest_size=16).hexdigest() != video_hash


def frames(row: Mapping[str, Any], indices: Sequence[int] | None = None) -> np.ndarray:
    """Frames of one row's clip, (T, H, W, 3) uint8 RGB: all, or those at `indices`.

    Raises `ValueError` when the clip is not what its row says.
    """
    if _is_damaged(row["video"]["bytes"], row.get(_VIDEO_HASH)):
        raise ValueError(f"clip {row['clip_id']}: it is damaged, its bytes are not those that were written")
    wanted = list(range(row["frames"]) if indices is None else indices)
    decoded = _by_av if row["width"] in _REFUSED_BY_DECORD else _by_decord
    count, found = decoded(row["video"]["bytes"], wanted)
    if count != row["frames"]:
        raise ValueError(f"clip {row['clip_id']}: {count} frames, its row says {row['frames']}")
    if found.shape[1:3] != (row["height"], row["width"]):
        raise ValueError(
            f"clip {row['clip_id']}: {found.shape[2]}x{found.shape[1]}, "
            f"its row says {row['width']}x{row['height']}"
        )
    return found


def _by_decord(mp4: bytes, wanted: list[int]) -> tuple[int, np.ndarray]:
    """How many frames there are, and those wanted: seeks to the nearest key frame."""
    if "decord" not in sys.modules:
        # decord loads every CUDA library that it finds, NVBLAS among them: a PyTorch that comes later crashes
        # in its matrix products on the CPU. Processes that only decode import decord before, and no PyTorch.
        import torch  # noqa: F401
    from decord import VideoReader  # half a second, which only those who decode need to spend

    reader = VideoReader(io.BytesIO(mp4), num_threads=1)
    inside = [i for i in wanted if i < len(reader)]
    return len(reader), np.asarray(reader.get_batch(inside or [0]).asnumpy())


def _by_av(mp4: bytes, wanted: list[int]) -> tuple[int, np.ndarray]:
    """How many frames there are, and those wanted: decodes all."""
    import av

    with av.open(io.BytesIO(mp4), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        found = [f.to_ndarray(format="rgb24", threads=1) for f in container.decode(video=0)]
    return len(found), np.stack([found[i] for i in wanted if i < len(found)] or found[:1])


class UnknownColumn(ValueError):
    """The second argument is its name."""


class Unreadable(Exception):
    """A row group that cannot be read, after some attempts, or a clip that is damaged."""


@dataclass(frozen=True)
class Index:
    """What training knows of a dataset before it reads any video: arrays with an element for each row, in
    the order of the shards."""

    dataset: str
    files: tuple[str, ...]  # addresses, sorted
    clip_ids: pa.ChunkedArray
    captions: pa.ChunkedArray  # null: unconditional
    numbers: Mapping[str, np.ndarray]  # by column, with those of _SIZES: float64, NaN where null
    group: np.ndarray  # (rows,) which of the dataset's row groups
    group_file: np.ndarray  # (row groups,) which of `files`
    group_in_file: np.ndarray
    group_start: np.ndarray  # (row groups + 1,) first row of each
    dataset_hash: str  # of clip ids, captions and sizes, in order, and of the row groups' bounds
    measured: tuple[str, ...] = ()  # the numeric columns that have values
    bytes_read: int = 0  # what making the index took

    def __len__(self) -> int:
        return len(self.group)

    def clip_id(self, row: int) -> str:
        return str(self.clip_ids[row].as_py())

    def caption(self, row: int) -> str | None:
        """Null and empty captions are None."""
        text = self.captions[row].as_py()
        return text if text and text.strip() else None

    def file(self, row: int) -> str:
        return self.files[self.group_file[self.group[row]]]


def read_index(dataset: str | Path, columns: Collection[str] = ()) -> Index:
    """Read the shards' columns: ids, captions, sizes, and the numeric `columns` asked for.

    dataset: a local folder or an fsspec address. A column that only some shards have is null in the others.
    Raises `ValueError` when there are no shards, when a file is none, or when no shard has one of `columns`.
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
            raise UnknownColumn(f"{dataset} has no numeric column {name!r}; there is {there}", name)

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
    """Of one shard."""

    table: pa.Table
    numbers: dict[str, np.ndarray]
    known: set[str]  # numeric columns
    measured: set[str]  # of these, those with values
    group_rows: list[int]
    bytes_read: int


def _read_columns(fs: Any, path: str, wanted: Sequence[str]) -> _Columns:
    read: list[int] = []
    try:
        with (
            _Counted(fs, path, read.append) as source,
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            schema = file.schema_arrow
            needed = ("clip_id", "caption", "video", *_SIZES)
            missing = [n for n in needed if n not in schema.names]
            if missing:
                raise ValueError(f"{path} is no shard of reelmill: it has no column {', '.join(missing)}")
            numeric = {f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)}
            table = file.read(["clip_id", "caption", *(n for n in wanted if n in numeric)])
            groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            measured = numeric & _with_values(file.metadata)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
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
    """Columns that are not null throughout, as far as the footer tells."""
    found = set()
    for c in range(footer.num_columns if footer.num_row_groups else 0):
        chunks = (footer.row_group(g).column(c) for g in range(footer.num_row_groups))
        if any(not k.statistics or (k.statistics.null_count or 0) < k.num_values for k in chunks):
            found.add(footer.row_group(0).column(c).path_in_schema)
    return found


class GroupReader:
    """Reads the clips of whole row groups, and counts what it reads. For one thread at a time."""

    def __init__(self, index: Index):
        self.index = index
        self.bytes_read = 0
        self.groups_read: Counter[int] = Counter()
        self._fs, _ = fsspec.url_to_fs(index.dataset)
        self._footers: OrderedDict[str, Any] = OrderedDict()

    def read(self, group: int, rows: Collection[int] | None = None) -> dict[int, bytes | Unreadable]:
        """Row of the index -> its mp4, or that it is damaged; of all rows of one row group, or of `rows`.

        Raises `Unreadable`; `ValueError` when the shards have changed since the index was read.
        """
        index = self.index
        path = index.files[index.group_file[group]]
        start, end = int(index.group_start[group]), int(index.group_start[group + 1])
        table = self._attempt(path, int(index.group_in_file[group]))
        self.groups_read[group] += 1
        if not table["clip_id"].combine_chunks().equals(_whole(index.clip_ids[start:end])):
            raise ValueError(f"{path} has changed since training began; start again, on the new dataset")
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
                # Without pre_buffer exactly these column chunks are read.
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
            except (pa.ArrowInvalid, OSError) as error:
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


class _Counted(io.RawIOBase):
    """A file opened for reading that tells how many bytes each read gave."""

    def __init__(self, fs: Any, path: str, count: Callable[[int], None]):
        local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
        # A remote file must not read ahead: Parquet knows exactly which bytes it wants.
        self._file = fs.open(path, "rb") if local else fs.open(path, "rb", cache_type="none")
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
