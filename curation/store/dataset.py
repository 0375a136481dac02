"""The dataset on disk: its layout, its schemas, and whole-file commits. The contract that others read.

Every table is a folder of Parquet parts, or one file. A file appears whole or not at all (`whole_file`): it
is written aside under a name that starts with `_` and renamed; for an object store it is written to a
temporary file of this machine, and then put. A part of `clips` counts
only when the part of `sources` with the same name is there. A part that replaces another is put beside it
(`_next-P`, clips first, then sources, which is the commit) and then moved into place; whoever finds it
there finishes the move.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from curation.store.schema import (
    CLIPS,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    SOURCES,
    TABLES,
    with_check_columns,
)
from curation.store.whole_file import Whole, whole_file

LEASE = "_lease.json"  # who writes now: see `curation.store.lease`
_NEXT = "_next-"
_WHOLE_BYTES = 4 << 20
_READERS = 8


def reelmill_version() -> str:
    try:
        return version("reelmill")
    except PackageNotFoundError:  # run from a checkout that was not installed, as a Ray job is
        return "unknown"


class DatasetError(ValueError):
    """The folder is not a dataset, or not one that this version can use."""


class Dataset:
    """A dataset at a local path or an fsspec address. Knows names and files, not what is in them."""

    def __init__(self, location: str):
        self.location = location.rstrip("/")
        try:
            self._fs, self._root = fsspec.url_to_fs(self.location)
        except (ValueError, ImportError) as error:  # no such protocol, or its package is not here
            raise DatasetError(f"{self.location}: {error}") from error
        self.is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else ())
        self.guard: Callable[[], None] | None = None  # raises when this process may write no more (a lease)
        self.token: str | None = None  # the lease's: workers write only as long as it is in place

    def path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def address(self, name: str) -> str:
        """What a user, or another library, can open."""
        return self.path(name) if self.is_local else self._fs.unstrip_protocol(self.path(name))

    def exists(self, name: str = "dataset.json") -> bool:
        return bool(self._fs.exists(self.path(name)))

    def is_made(self) -> bool:
        """Is there a dataset.json? Raises `DatasetError` where the place does not answer."""
        try:
            return self.exists()
        except Exception as error:  # each file system has errors of its own, such as for missing credentials
            raise self.refused("read", error) from error

    def refused(self, what: str, error: Exception) -> DatasetError:
        """That the place cannot be read or written, in words for who named it."""
        said = f"{type(error).__name__}: {error}"
        remedy = (
            "check who may write there"
            if self.is_local
            else "check the address, its bucket, the credentials and, where S3 is not AWS, AWS_ENDPOINT_URL"
        )
        return DatasetError(f"{self.location} cannot be {what}: {said}; {remedy}")

    def check_writable(self) -> None:
        """Raises `DatasetError` when the folder holds something else than a dataset."""
        if self.is_made():
            self.manifest()
            return
        if self._fs.exists(self._root):
            if not self._fs.isdir(self._root):
                raise DatasetError(f"{self.location} is a file; --out names a folder")
            names = (posixpath.basename(p.rstrip("/")) for p in self._fs.ls(self._root, detail=False))
            # A build that was killed before its first commit leaves a lease, and an unfinished dataset.json.
            if any(n != LEASE and not n.startswith("_tmp-") for n in names):
                raise DatasetError(
                    f"{self.location} holds something else (it is not empty and has no dataset.json): "
                    "name a new or empty folder with --out"
                )

    def manifest(self) -> dict[str, Any]:
        """The content of dataset.json. Raises `DatasetError`."""
        if not self.is_made():
            raise DatasetError(
                f"{self.location} is not a dataset (it has no dataset.json): reelmill build makes one"
            )
        try:
            manifest = json.loads(self.read("dataset.json"))
            schema_version = manifest["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self.location}/dataset.json cannot be read: {error}") from error
        if schema_version not in READABLE_VERSIONS:
            raise DatasetError(
                f"{self.location} has schema version {schema_version}, this reelmill writes "
                f"{SCHEMA_VERSION}: build into a new folder"
            )
        if not isinstance(manifest.get("config"), dict):
            raise DatasetError(f"{self.location}/dataset.json cannot be read: it holds no config")
        return cast(dict[str, Any], manifest)

    def read(self, name: str) -> bytes:
        return cast(bytes, self._fs.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file; readers see the old one or the new one."""
        with self.writing(name) as file:
            file.write(data)

    def writing(self, name: str) -> Whole:
        """A binary file that appears under `name` when the block ends without an error."""
        return whole_file(self._fs, self.path(name), is_local=self.is_local, guard=self.guard)

    def remove(self, name: str) -> None:
        if self.guard:
            self.guard()
        if self.exists(name):
            self._fs.rm_file(self.path(name))

    def move(self, name: str, to: str) -> None:
        """Put a finished file in the place of another one."""
        if self.guard:
            self.guard()
        if self.is_local:
            os.replace(self.path(name), self.path(to))
        else:
            self._fs.cp_file(self.path(name), self.path(to))
            self._fs.rm_file(self.path(name))

    def parts(self, table: str) -> list[str]:
        """Names of the finished files of a table, sorted, without folder and suffix."""
        folder = self.path(table)
        self._fs.invalidate_cache()
        if not self._fs.exists(folder):
            return []
        names = (posixpath.basename(p) for p in self._fs.ls(folder, detail=False))
        return sorted(n.removesuffix(".parquet") for n in names if n.endswith(".parquet") and n[0] != "_")

    def unfinished(self) -> list[str]:
        """Names of leftovers of writes that a kill cut short."""
        found = []
        self._fs.invalidate_cache()
        for folder in ("", *TABLES):
            if self._fs.exists(self.path(folder)):
                for p in self._fs.ls(self.path(folder), detail=False):
                    if posixpath.basename(p).startswith(("_tmp-", _NEXT)):
                        found.append(posixpath.join(folder, posixpath.basename(p)))
        return sorted(found)

    def clean(self) -> int:
        """Finish what was committed, remove what was not: parts half moved into place, unfinished files, and
        parts of clips without their sources. Returns how many files that were."""
        unfinished = self.unfinished()
        for name in unfinished:
            if name.startswith(f"sources/{_NEXT}"):
                self._take_place(posixpath.basename(name).removeprefix(_NEXT).removesuffix(".parquet"))
        for name in self.unfinished():
            self.remove(name)
        committed = set(self.parts("sources"))
        uncommitted = [p for p in self.parts("clips") if p not in committed]
        for part in uncommitted:
            self.remove(f"clips/{part}.parquet")
        return len(unfinished) + len(uncommitted)

    def commit_part(
        self, part: str, sources: Iterable[dict[str, Any]], clips: Iterable[dict[str, Any]]
    ) -> None:
        """Commit one part: its clips, then its sources. Rows are in a fixed order whatever order they came
        in. Readers of a part that is replaced see the old one or the new one; a part without rows goes."""
        by_uri = sorted(sources, key=lambda s: cast(str, s["uri"]))
        in_order = sorted(clips, key=lambda c: (c["source_id"], c["start_s"]))
        if not by_uri:
            self.remove(f"sources/{part}.parquet")
            self.remove(f"clips/{part}.parquet")
            return
        prefix = _NEXT if self.exists(f"sources/{part}.parquet") else ""
        self.write_table(f"clips/{prefix}{part}.parquet", in_order, CLIPS)
        self.write_table(f"sources/{prefix}{part}.parquet", by_uri, SOURCES)
        if prefix:
            self._take_place(part)

    def _take_place(self, part: str) -> None:
        for table in ("clips", "sources"):
            if self.exists(f"{table}/{_NEXT}{part}.parquet"):
                self.move(f"{table}/{_NEXT}{part}.parquet", f"{table}/{part}.parquet")

    def write_table(self, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        with self.writing(name) as file:
            pq.write_table(
                pa.Table.from_pylist(list(rows), schema=schema),
                file,
                compression="zstd",
                write_page_checksum=True,
            )

    def open_part(self, table: str, part: str) -> pq.ParquetFile:
        return self.open_table(f"{table}/{part}.parquet", checked=True)

    def open_table(self, name: str, *, checked: bool = False) -> pq.ParquetFile:
        """A table to be read by row groups; `checked`: every page against its checksum."""
        if self.is_local:
            return pq.ParquetFile(self._fs.open(self.path(name), "rb"), page_checksum_verification=checked)
        # fsspec would read 50 MiB ahead of each place in a remote file. Parquet knows which bytes it wants,
        # and asks for neighbours at once; of a small file all is cheaper than one more request.
        file = self._fs.open(self.path(name), "rb", cache_type="none")
        size = file.seek(0, 2)
        file.seek(0)
        if size <= _WHOLE_BYTES:
            with file:
                file = io.BytesIO(file.read())
        return pq.ParquetFile(file, page_checksum_verification=checked, pre_buffer=True)

    def read_part(self, table: str, part: str, columns: Sequence[str] | None = None) -> pa.Table:
        try:
            return self._read_part(table, part, columns)
        except (OSError, pa.ArrowException):
            if self.is_local:
                raise
            self._fs.invalidate_cache()  # it may have been replaced since it was listed
            return self._read_part(table, part, columns)

    def _read_part(self, table: str, part: str, columns: Sequence[str] | None) -> pa.Table:
        # Not `pq.read_table`, nor its threads: of a small part they take twice the time of the reading.
        parquet = self.open_part(table, part)
        try:
            if table == "captions":
                return with_check_columns(parquet.read(use_threads=False), columns)
            return parquet.read(columns=list(columns) if columns else None, use_threads=False)
        finally:
            parquet.close(force=True)

    def tables(self, table: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """(part, its rows) in order of parts; of clips only what is committed.

        A few parts are read ahead: on an object store each one is a wait.
        """
        committed = set(self.parts("sources")) if table == "clips" else None
        # Listed last: the file system then knows the sizes of what is read next.
        parts = [part for part in self.parts(table) if committed is None or part in committed]
        with ThreadPoolExecutor(_READERS) as pool:
            ahead: deque[Future[pa.Table]] = deque()
            for i, part in enumerate(parts):
                wanted = parts[i + len(ahead) : i + _READERS]
                ahead.extend(pool.submit(self.read_part, table, p, columns) for p in wanted)
                yield part, ahead.popleft().result()

    # A part of shards is as large as `shards.target_mb`: ask for columns, or go by row groups (`open_part`).
    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        for _, content in self.tables(table, columns):
            for batch in content.to_batches(max_chunksize=1000):
                yield from cast(list[dict[str, Any]], batch.to_pylist())

    def verdicts(self) -> Iterator[dict[str, Any]]:
        if self.exists("verdicts.parquet"):
            table = pq.read_table(io.BytesIO(self.read("verdicts.parquet")))
            for batch in table.to_batches(max_chunksize=1000):
                yield from cast(list[dict[str, Any]], batch.to_pylist())
