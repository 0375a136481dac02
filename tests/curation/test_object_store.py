"""How much is asked of an object store: requests, and bytes of what is large."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from s3fs.core import S3File, S3FileSystem
from typer.testing import CliRunner

from benchmarks.footage import loop
from curation.config.load import load_config
from curation.config.named import load_named_config
from curation.config.schema import ConfigError
from curation.decode.video import Video
from curation.sources.identity import identify
from curation.sources.listing import list_sources
from curation.sources.source import SourcesError
from curation.store.dataset import Dataset
from curation.store.schema import SHARDS
from jobs.cli import app
from tests import render
from tests.jobs.clusters import s3_server

MB = 1_000_000


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with s3_server(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3")
        fs.mkdir("reelmill")
        yield fs


class Asked:
    """Requests by their name, and bytes that opened files fetched."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes = 0

    def clear(self) -> None:
        self.requests.clear()
        self.bytes = 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    call, fetch = S3FileSystem._call_s3, S3File._fetch_range

    async def counted_call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        found.requests[method] += 1
        return await call(self, method, *args, **kwargs)

    def counted_fetch(self: Any, start: int, end: int) -> Any:
        found.bytes += end - start
        return fetch(self, start, end)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted_call)
    monkeypatch.setattr(S3File, "_fetch_range", counted_fetch)
    return found


def test_a_large_source_is_known_by_ten_mib_of_it(s3: Any, asked: Asked) -> None:
    size = 60 * MB
    s3.pipe("reelmill/large/a.mp4", np.random.default_rng(0).bytes(size))
    asked.clear()
    (source,) = identify(list_sources(["s3://reelmill/large"]), {})
    assert (source.error, source.bytes) == (None, size)
    assert asked.bytes == 10 << 20


def test_a_thousand_known_sources_are_looked_at_by_listing(s3: Any, asked: Asked) -> None:
    named = ["s3://reelmill/many"]
    s3.pipe({f"reelmill/many/{k:03d}.mp4": f"{k}".encode() for k in range(300)})
    known = {s.uri: s for s in identify(list_sources(named), {})}
    s3.pipe("reelmill/many/007.mp4", b"another")
    asked.clear()
    again = identify(list_sources(named), known)
    assert [s.uri for s in again if s != known[s.uri]] == ["s3://reelmill/many/007.mp4"]
    assert again[7].bytes == len(b"another")
    assert asked.requests["get_object"] == 1
    assert asked.requests.total() < 10

    asked.clear()
    globbed = identify(list_sources(["s3://reelmill/many/*.mp4"]), {s.uri: s for s in again})
    assert globbed == again
    assert asked.requests.total() < 10


# In a transport stream, which has no index, a place is found by bisection.
@pytest.mark.parametrize(("name", "more_mb"), [("index-at-the-end.mp4", 9), ("streamed.ts", 22)])
def test_a_clip_costs_little_more_than_its_bytes(
    s3: Any, asked: Asked, tmp_path: Path, name: str, more_mb: float
) -> None:
    noise = np.random.default_rng(0)
    pictures = (noise.integers(0, 256, (128, 160, 3), np.uint8) for _ in range(50))
    render.write_video(tmp_path / "once.mp4", pictures, fps=25)
    bit_rate = loop(tmp_path / "once.mp4", tmp_path / name, 400)
    size = (tmp_path / name).stat().st_size
    assert size > 80 * MB
    s3.put(str(tmp_path / name), f"reelmill/{name}")
    asked.clear()
    with Video(f"s3://reelmill/{name}") as video:
        opened = through = asked.bytes
        if name.endswith(".ts"):  # read through once, to know whether its timestamps start again
            assert video.may_seek()
            through = asked.bytes
            assert through - opened < 1.1 * size
        for start_s in (100.0, 300.0):
            for frame in video.frames_from(start_s):
                if frame.time_s > start_s + 5:
                    break
    assert opened < 10 * MB
    assert asked.bytes - through < 2 * (5 * bit_rate / 8 + more_mb) * MB


def test_a_column_of_a_shard_is_read_without_its_videos(s3: Any, asked: Asked) -> None:
    dataset = Dataset("s3://reelmill/data")
    row: dict[str, Any] = {f.name: None for f in SHARDS}
    random = np.random.default_rng(0)
    rows = [{**row, "clip_id": f"{k}", "video": {"bytes": random.bytes(MB), "path": None}} for k in range(60)]
    with dataset.writing("shards/a.parquet") as file, pa.parquet.ParquetWriter(file, SHARDS) as writer:
        for start in range(0, 60, 20):
            writer.write_table(pa.Table.from_pylist(rows[start : start + 20], schema=SHARDS))
    asked.clear()
    ((_, table),) = dataset.tables("shards", ["clip_id", "caption"])
    assert table["clip_id"].to_pylist() == [r["clip_id"] for r in rows]
    assert asked.bytes < MB
    assert asked.requests.total() < 12


def test_a_part_that_was_replaced_since_it_was_listed_is_read(s3: Any, tmp_path: Path) -> None:
    dataset, rows = Dataset("s3://reelmill/replaced"), [{"source_id": "a", "uri": "a.mp4"}]
    dataset.commit_part("a", rows, [])
    assert dataset.parts("sources") == ["a"]
    longer = Dataset(str(tmp_path))
    longer.commit_part("a", [*rows, {"source_id": "b", "uri": "b" * 5000}], [])
    elsewhere = S3FileSystem(skip_instance_cache=True)
    elsewhere.put(f"{tmp_path}/sources/a.parquet", "reelmill/replaced/sources/a.parquet")
    assert dataset.read_part("sources", "a", ["source_id"])["source_id"].to_pylist() == ["a", "b"]


def test_a_part_is_one_request_for_what_is_in_it(s3: Any, asked: Asked) -> None:
    dataset = Dataset("s3://reelmill/small")
    rows = [{"source_id": f"{k}", "uri": f"{k}.mp4", "status": "measured"} for k in range(32)]
    dataset.commit_part("a", rows, [])
    asked.clear()
    assert dataset.read_part("sources", "a", ["uri"]).num_rows == 32
    assert asked.requests["get_object"] == 1


@pytest.mark.parametrize(
    "name", ["s3://reelmill/vidoes", "s3://reelmill/one.mp4", "s3://no-such-bucket/videos"]
)
def test_what_is_not_there_is_refused_before_any_work(s3: Any, name: str) -> None:
    """As a local path is. With --prune a word misspelt would else take all sources for gone."""
    with pytest.raises(SourcesError, match=f"{name}: there is no such file or folder"):
        list_sources([name])


def test_one_file_is_a_source(s3: Any, asked: Asked) -> None:
    s3.pipe("reelmill/alone/a.mp4", b"alone")
    (source,) = identify(list_sources(["s3://reelmill/alone/a.mp4"]), {})
    assert (source.uri, source.bytes, source.error) == ("s3://reelmill/alone/a.mp4", 5, None)


def test_a_configuration_is_read_from_where_the_dataset_is(s3: Any) -> None:
    """As `status` tells to go on."""
    config = load_config("spans: {max_seconds: 4.5}")
    stored = {"schema_version": 2, "config": config.model_dump(mode="json")}
    s3.pipe("reelmill/config/dataset.json", json.dumps(stored).encode())
    assert load_named_config("s3://reelmill/config/dataset.json", None) == config
    with pytest.raises(
        ConfigError, match=r"cannot read the configuration s3://reelmill/config/other\.json: "
    ):
        load_named_config("s3://reelmill/config/other.json", None)


REMEDY = "check the address, its bucket, the credentials"


@pytest.mark.parametrize(
    ("out", "endpoint", "says"),
    [
        (
            "s3://no-such-bucket/out",
            None,
            "s3://no-such-bucket/out cannot be written: .*bucket does not exist",
        ),
        ("s3://reelmill/out", "http://127.0.0.1:1", "s3://reelmill/out cannot be read: .*Could not connect"),
        ("s3://reelmill/out", "127.0.0.1:1", "s3://reelmill/out cannot be read: .*Invalid endpoint"),
        ("s4://reelmill/out", None, "s4://reelmill/out: Protocol not known: s4"),
    ],
)
def test_a_dataset_out_of_reach_is_one_line(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, endpoint: str | None, says: str
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"none")
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        S3FileSystem.clear_instance_cache()
    try:
        ran = CliRunner().invoke(
            app, ["build", str(tmp_path), "--out", out, "--set", "filters.aesthetics=null"]
        )
    finally:
        S3FileSystem.clear_instance_cache()
    assert ran.exit_code == 2, ran.output
    (line,) = ran.stderr.strip().split("\n")
    assert re.search(f"^reelmill: {says}", line), line
    assert out.startswith("s4") or REMEDY in line
