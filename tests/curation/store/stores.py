"""Stores of every kind that a dataset may lie on: a disk, memory, an S3 server, and a file system that has
nothing but what fsspec gives it."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile

from curation.store.dataset import Dataset
from tests.jobs.clusters import s3_server

KINDS = ("local", "memory", "s3", "plain")


class PlainFile(AbstractBufferedFile):
    """Its `discard` does nothing, as fsspec's own. What was written is committed when the file is closed, and
    also when it is forgotten."""

    fs: PlainStore

    def _initiate_upload(self) -> None:
        self.sent = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.sent += self.buffer.getvalue()
        if final:
            PlainStore.files[self.path] = self.sent
        return True

    def _fetch_range(self, start: int, end: int) -> bytes:
        return PlainStore.files[self.path][start:end]


class PlainStore(fsspec.AbstractFileSystem):
    """`plain://…`: the least that a file system is, as gcsfs and others were in what matters here."""

    protocol = "plain"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}

    def _open(self, path: str, mode: str = "rb", block_size: int = 5000, **kwargs: Any) -> PlainFile:
        if mode == "rb" and path not in self.files:
            raise FileNotFoundError(path)
        return PlainFile(self, path, mode, block_size=5000, **kwargs)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for name, data in self.files.items():
            if name == path:
                found[name] = {"name": name, "size": len(data), "type": "file"}
            elif name.startswith(path + "/"):
                child = path + "/" + name.removeprefix(path + "/").split("/")[0]
                kind = "file" if child == name else "directory"
                found[child] = {"name": child, "size": len(data), "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def _rm(self, path: str) -> None:
        del self.files[self._strip_protocol(path)]

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.files[self._strip_protocol(path2)] = self.files[self._strip_protocol(path1)]


fsspec.register_implementation("plain", PlainStore, clobber=True)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("reelmill")
        yield "s3://reelmill"


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Dataset:
    """An empty folder on each kind of store."""
    kind, name = request.param, uuid.uuid4().hex
    if kind == "local":
        return Dataset(str(request.getfixturevalue("tmp_path") / name))
    if kind == "s3":
        return Dataset(f"{request.getfixturevalue('s3')}/{name}")
    return Dataset(f"{kind}://{name}")


def files(dataset: Dataset) -> dict[str, bytes]:
    """Everything that is there, as a reader who has just come finds it."""
    fs, root = fsspec.url_to_fs(dataset.location)
    fs.invalidate_cache()
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)}


def noise(size: int) -> bytes:
    return io.BytesIO(bytes(range(256)) * (size // 256 + 1)).read(size)
