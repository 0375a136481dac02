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
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, cast, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.store.address import filesystem
from curation.store.rows import CaptionRow, ClipRow, FailureRow, ShardRow, SourceRow, VerdictRow
from curation.store.schema import (
    FIRST_SCORE_COLUMNS,
    MAX_SECONDS,
    NEEDED,
    OPTIONAL,
    READABLE_VERSIONS,
    SCHEMA_VERSION,
    SCORE_COLUMNS,
    SECONDS,
    SOURCES,
    TABLES,
    VERDICTS,
    is_score,
    schema_of,
    with_check_columns,
    with_later_columns,
    with_score_columns,
)
from curation.store.whole_file import Whole, whole_file

LEASE = "_lease.json"  # who writes now: see `curation.store.lease`
_NEXT = "_next-"
_Columns = Sequence[str] | None  # null: all
_WHOLE_BYTES = 4 << 20
_JSON_BYTES = 64 << 20
_JSON_DEPTH = 50  # lists and mappings within each other; ours have 6
_READERS = 8
_SCORE_COLUMN = re.compile(r"(?!caption\.)[a-z][a-z0-9_]*\.[a-z0-9_]+")


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
            self._fs, self._root = filesystem(self.location, typed=True)
        except (ValueError, ImportError) as error:  # no such protocol, or its package is not here
            raise DatasetError(f"{self.location}: {error}") from error
        self.is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else ())
        self.guard: Callable[[], None] | None = None  # raises when this process may write no more (a lease)
        self.token: str | None = None  # the lease's: workers write only as long as it is in place
        self._score_columns: tuple[str, ...] | None = None  # null: dataset.json was not read yet

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
        manifest = self.read_json("dataset.json")
        if not isinstance(manifest, dict) or "schema_version" not in manifest:
            raise self.damaged("dataset.json", "it names no schema_version")
        for key, kind in _KINDS.items():
            if not isinstance(manifest.get(key), kind | None):
                raise self.damaged("dataset.json", f"{key} is {str(manifest[key])[:60]!r}")
        for column in manifest.get("score_columns") or ():
            if not isinstance(column, str) or not _SCORE_COLUMN.fullmatch(column):
                raise self.damaged("dataset.json", f"score_columns holds {str(column)[:60]!r}")
        schema_version = manifest["schema_version"]
        if type(schema_version) is not int or schema_version not in READABLE_VERSIONS:
            raise DatasetError(
                f"{self.location} has schema version {schema_version}, this reelmill writes "
                f"{SCHEMA_VERSION}: build into a new folder"
            )
        if not isinstance(manifest.get("config"), dict):
            raise self.damaged("dataset.json", "it holds no config")
        return manifest

    @property
    def score_columns(self) -> tuple[str, ...]:
        """The score columns of clips and shards. A part without one of them is read as if it were null.

        dataset.json names them, so a dataset does not depend on the filters that are installed. Raises
        `DatasetError`.
        """
        if self._score_columns is None:
            if not self.exists():
                return SCORE_COLUMNS
            named = self.manifest().get("score_columns")
            self._score_columns = FIRST_SCORE_COLUMNS if named is None else tuple(named)
        return self._score_columns

    def schema(self, table: str) -> pa.Schema:
        """The columns of a table of this dataset."""
        return schema_of(table, self.score_columns)

    def damaged(self, name: str, why: str) -> DatasetError:
        """That a file of the dataset is not what it should be, in words for who has it."""
        return DatasetError(
            f"{self.address(name)} cannot be read: {why}; take the file from a copy of the dataset, or build "
            "again into a new folder"
        )

    def read(self, name: str) -> bytes:
        self._check_is_file(name)
        return cast(bytes, self._fs.cat_file(self.path(name)))

    def read_json(self, name: str) -> Any:
        """What is in a JSON file of the dataset. Raises `DatasetError`."""
        if self.is_local and os.path.getsize(self.path(name)) > _JSON_BYTES:
            raise self.damaged(name, f"it is larger than {_JSON_BYTES >> 20} MiB")
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise self.damaged(name, f"it is no JSON ({error})") from error
        if _is_deeper(value, _JSON_DEPTH):
            raise self.damaged(name, f"it has more than {_JSON_DEPTH} levels")
        return value

    def _check_is_file(self, name: str) -> None:
        """A named pipe would be waited for without an end."""
        if self.is_local and not stat.S_ISREG(os.stat(self.path(name)).st_mode):
            kind = "a folder" if os.path.isdir(self.path(name)) else "a pipe or a device"
            raise self.damaged(name, f"it is {kind}, not a file")

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file; readers see the old one or the new one."""
        with self.writing(name) as file:
            file.write(data)
        if name == "dataset.json":
            self._score_columns = None

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

    def remove_unfinished(self, name: str) -> None:
        """Remove what killed processes left of the file `name`. Nobody may be writing it now."""
        for left in self.unfinished():
            if re.fullmatch(rf"_tmp-[0-9a-f]+-{re.escape(name)}", left):
                self.remove(left)

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

    def commit_part(self, part: str, sources: Iterable[SourceRow], clips: Iterable[ClipRow]) -> None:
        """Commit one part: its clips, then its sources. Rows are in a fixed order whatever order they came
        in. Readers of a part that is replaced see the old one or the new one; a part without rows goes."""
        by_uri = sorted(sources, key=lambda s: s["uri"])
        in_order = sorted(clips, key=lambda c: (c["source_id"], c["start_s"]))
        if not by_uri:
            self.remove(f"sources/{part}.parquet")
            self.remove(f"clips/{part}.parquet")
            return
        prefix = _NEXT if self.exists(f"sources/{part}.parquet") else ""
        self.write_table(f"clips/{prefix}{part}.parquet", in_order, self.schema("clips"))
        self.write_table(f"sources/{prefix}{part}.parquet", by_uri, SOURCES)
        if prefix:
            self._take_place(part)

    def _take_place(self, part: str) -> None:
        for table in ("clips", "sources"):
            if self.exists(f"{table}/{_NEXT}{part}.parquet"):
                self.move(f"{table}/{_NEXT}{part}.parquet", f"{table}/{part}.parquet")

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
        with self.writing(name) as file:
            pq.write_table(
                pa.Table.from_pylist(list(rows), schema=schema),
                file,
                compression="zstd",
                write_page_checksum=True,
            )

    def open_part(self, table: str, part: str) -> Part:
        return self._open(table, f"{table}/{part}.parquet")

    def _open(self, table: str, name: str) -> Part:
        try:
            return Part(self, table, name, self.open_table(name, checked=True))
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> Exception:
        # An error of damage, which Arrow finds, has no number. An error of the system has one.
        if isinstance(error, OSError) and error.errno is not None:
            return error
        return self.damaged(name, " ".join(str(error).split())[:300])

    def open_table(self, name: str, *, checked: bool = False) -> pq.ParquetFile:
        """A table as it is, right or wrong; `checked`: every page against its checksum."""
        self._check_is_file(name)
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
        except (OSError, DatasetError):
            if self.is_local:
                raise
            self._fs.invalidate_cache()  # it may have been replaced since it was listed
            return self._read_part(table, part, columns)

    def _read_part(self, table: str, part: str, columns: Sequence[str] | None) -> pa.Table:
        parquet = self.open_part(table, part)
        try:
            if table == "captions":
                return with_check_columns(parquet.read(), columns)
            found = parquet.read(columns)
            return with_later_columns(found, columns) if table == "sources" else found
        finally:
            parquet.close()

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
    @overload
    def rows(self, table: Literal["sources"], columns: _Columns = None) -> Iterator[SourceRow]: ...
    @overload
    def rows(self, table: Literal["clips"], columns: _Columns = None) -> Iterator[ClipRow]: ...
    @overload
    def rows(self, table: Literal["captions"], columns: _Columns = None) -> Iterator[CaptionRow]: ...
    @overload
    def rows(self, table: Literal["failures"], columns: _Columns = None) -> Iterator[FailureRow]: ...
    @overload
    def rows(self, table: Literal["shards"], columns: Sequence[str] | None = None) -> Iterator[ShardRow]: ...
    def rows(self, table: str, columns: _Columns = None) -> Iterator[Any]:
        for _, content in self.tables(table, columns):
            for batch in content.to_batches(max_chunksize=1000):
                yield from batch.to_pylist()

    def verdict_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Without rows where nothing was judged yet."""
        if not self.exists("verdicts.parquet"):
            return VERDICTS.empty_table().select(list(columns or VERDICTS.names))
        parquet = self._open("verdicts", "verdicts.parquet")
        try:
            return parquet.read(columns)
        finally:
            parquet.close()

    def verdicts(self) -> Iterator[VerdictRow]:
        for batch in self.verdict_table().to_batches(max_chunksize=1000):
            yield from batch.to_pylist()


# What dataset.json says, where it says it.
_KINDS = {
    "created": str,
    "config_hash": str,
    "reelmill_version": str,
    "sources_named": int,
    "score_columns": list,
    "measures": dict,
    "build_ended": bool,
}


def _is_deeper(value: Any, levels: int) -> bool:
    """Are there more lists and mappings within each other?"""
    here = [value]
    for _ in range(levels + 1):
        within = [v for v in here if isinstance(v, dict | list)]
        here = [item for v in within for item in (v.values() if isinstance(v, dict) else v)]
        if not within:
            return False
    return True


class Part:
    """One file of a table, read by row groups. Columns have the types of the contract, and values where no
    reader can do without. Raises `DatasetError`, which names the file, where that is not so."""

    def __init__(self, dataset: Dataset, table: str, name: str, file: pq.ParquetFile):
        self._dataset, self._table, self._name, self._file = dataset, table, name, file
        self._contract = dataset.schema(table)
        self.schema_arrow: pa.Schema = file.schema_arrow
        self.num_row_groups: int = file.num_row_groups

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        # Without threads: of a small part they take twice the time of the reading.
        return self._checked(columns, lambda names: self._file.read(names, use_threads=False))

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        return self._checked(columns, lambda names: self._file.read_row_group(group, names))

    def close(self) -> None:
        self._file.close(force=True)

    def _checked(
        self, columns: Sequence[str] | None, read: Callable[[list[str] | None], pa.Table]
    ) -> pa.Table:
        for column in columns or self._contract.names:
            field = self._contract.field(column)
            if column in self.schema_arrow.names:
                found = self.schema_arrow.field(column).type
                if found != field.type:
                    raise self._dataset.damaged(self._name, f"{column} is {found}, not {field.type}")
            elif column not in OPTIONAL and not is_score(column):
                raise self._dataset.damaged(self._name, f"it has no column {column}")
        try:
            table = read(list(columns) if columns else None)
            table.validate(full=True)  # text that is no UTF-8 is found here, and not by who reads it
        except (OSError, pa.ArrowException) as error:
            raise self._dataset._unreadable(self._name, error) from error
        for column in table.column_names:
            values = table[column]
            if column in NEEDED[self._table] and values.null_count:
                raise self._dataset.damaged(self._name, f"{column} is null in {values.null_count} rows")
            if column in SECONDS[self._table]:
                high = pc.max(pc.abs(values)).as_py() or 0.0
                if pc.any(pc.is_nan(values)).as_py() or high > MAX_SECONDS:
                    raise self._dataset.damaged(self._name, f"{column} has values that are no times")
        return with_score_columns(table, list(columns or self._contract.names))
