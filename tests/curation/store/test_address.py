"""Which addresses are opened: those of a few protocols, no chains, and what the user typed himself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curation.store.address import (
    MORE_PROTOCOLS,
    PROTOCOLS,
    AddressRefused,
    allow,
    filesystem,
    open_source,
    protocols,
    refusal,
)
from curation.store.dataset import Dataset, DatasetError
from tests.loopback import Loopback


@pytest.fixture(autouse=True)
def _no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MORE_PROTOCOLS, "")


@pytest.mark.parametrize(
    "address",
    [
        "/videos/a.mp4",
        "a.mp4",
        "/videos/a::b.png",
        "/videos/http:/a.mp4",
        *(f"{protocol}://bucket/a.mp4" for protocol in PROTOCOLS),
    ],
)
def test_paths_and_known_protocols_may_be_opened(address: str) -> None:
    assert refusal(address) is None


@pytest.mark.parametrize(
    ("address", "protocol"),
    [
        ("http://host/a.mp4", "http"),
        ("https://host/a.mp4", "https"),
        ("ftp://host/a.mp4", "ftp"),
        ("sftp://host/a.mp4", "sftp"),
        ("ssh://-oProxyCommand=x/a.mp4", "ssh"),
        ("github://o:r@main/a.mp4", "github"),
        ("memory://a.mp4", "memory"),
        ("reference://a.mp4", "reference"),
        ("S3://bucket/a.mp4", "S3"),
        ("a://b", "a"),
        ("://b", ""),
        ("nonsense/s3://b", "nonsense/s3"),
    ],
)
def test_other_protocols_are_named_and_so_are_the_allowed_ones(address: str, protocol: str) -> None:
    reason = refusal(address)
    assert reason is not None
    assert repr(protocol) in reason
    assert all(known in reason for known in PROTOCOLS)
    with pytest.raises(AddressRefused):
        filesystem(address)
    with pytest.raises(AddressRefused):
        open_source(address)


@pytest.mark.parametrize(
    "address",
    [
        "reference://x.mp4::{server}/refs.json",
        "simplecache::{server}/a.mp4",
        "filecache::{server}/a.mp4",
        "zip://a.mp4::{server}/a.zip",
        "s3://bucket/a.mp4::{server}/a.mp4",
        "file::{server}/a.mp4",
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_chains_are_never_opened(address: str, typed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MORE_PROTOCOLS, "http,reference,simplecache,filecache,zip")
    with Loopback({"/refs.json": b"{}", "/a.mp4": b"video"}) as server:
        with pytest.raises(AddressRefused, match="'::' is a chain of protocols") as error:
            open_source(address.format(server=server.address), typed=typed)
        assert "'http'" in str(error.value)
        with pytest.raises(DatasetError, match="chain"):
            Dataset(address.format(server=server.address))
    assert server.got == []


def test_what_the_user_typed_may_be_of_any_protocol() -> None:
    fs, path = filesystem("memory://typed/a.mp4", typed=True)
    fs.pipe_file(path, b"video")
    with open_source("memory://typed/a.mp4", typed=True) as file:
        assert file.read() == b"video"
    with pytest.raises(AddressRefused):
        open_source("memory://typed/a.mp4")
    allow(["/videos", "memory://typed", "a::memory://x", "s3://bucket", "memory://typed/two"])
    assert protocols() == (*PROTOCOLS, "memory")
    assert os.environ[MORE_PROTOCOLS] == "memory"
    with open_source("memory://typed/a.mp4") as file:
        assert file.read() == b"video"


def test_names_with_two_colons_are_local_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a::b.png").write_bytes(b"picture")
    with open_source(str(tmp_path / "a::b.png")) as file:
        assert file.read() == b"picture"
    dataset = Dataset(str(tmp_path / "http::d"))
    dataset.write("x", b"1")
    assert (tmp_path / "http::d" / "x").read_bytes() == b"1"
