"""Parquet files that hold videos and pictures in their rows. The truth: levels that the test draws."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioning.base import CaptionRequest
from captioning.sidecar import Sidecar
from curation.decode.video import Video
from curation.sources.identity import changed_since, identify
from curation.sources.listing import list_sources
from curation.sources.lists import read_list
from curation.sources.source import Source, SourcesError
from curation.store.address import AddressRefused, file_of, open_source
from curation.store.table_row import TableRow, forget, table_row

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def video(level: int) -> bytes:
    """Ten frames of one grey."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", "mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def picture(level: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (level,) * 3).save(buffer, kind)
    return buffer.getvalue()


def level_of(uri: str) -> int:
    with Video(uri) as opened:
        return int(next(opened.frames()).rgb(64, 48)[24, 32, 1])


def write(path: Path, files: list[bytes | None], rows_each: int = 2, **columns: list[object]) -> Path:
    held = [{"bytes": data, "path": f"{k}.mp4"} for k, data in enumerate(files)]
    table = pa.table({"video": pa.array(held, KIND), **columns})
    pq.write_table(table, path, row_group_size=rows_each)
    return path


def listed(path: Path) -> list[Source]:
    return read_list(str(path), str(path.parent))


def test_each_row_is_a_source(tmp_path: Path) -> None:
    levels = [30, 80, 130, 180, 230]
    path = write(tmp_path / "a.parquet", [video(n) for n in levels], caption=[f"grey {n}" for n in levels])
    sources = listed(path)
    assert [s.uri for s in sources] == [f"{path}#video={k:09d}" for k in range(5)]
    assert sorted(sources, key=lambda s: s.uri) == sources
    assert sources[3].extra == {"caption": "grey 180", "video.path": "3.mp4"}
    for order in ((0, 1, 2, 3, 4), (4, 0, 3, 3, 1)):  # in order, and sought
        assert [level_of(sources[k].uri) for k in order] == pytest.approx([levels[k] for k in order], abs=3)
    with open_source(sources[2].uri) as file:
        assert file.read() == video(130)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_pictures_without_a_suffix_and_plain_bytes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [picture(90, kind)], "thumbnail": [b"x"], "label": ["a"]}), path)
    (source,) = listed(path)
    assert source.extra == {"label": "a"}
    assert level_of(source.uri) == pytest.approx(90, abs=3)
    with Video(source.uri) as opened:
        assert opened.info.is_image


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_bytes_name_a_file(statistics: bool, tmp_path: Path) -> None:
    held = [{"bytes": b"x", "path": None}, {"bytes": None, "path": "b.mp4"}]
    table = pa.table({"video": pa.array(held, KIND)})
    pq.write_table(table, tmp_path / "a.parquet", write_statistics=statistics)
    assert [s.uri for s in listed(tmp_path / "a.parquet")] == [
        f"{tmp_path}/a.parquet#video=000000000",
        f"{tmp_path}/b.mp4",
    ]
    pq.write_table(
        pa.table({"video": pa.array([{"bytes": None, "path": None}], KIND)}), tmp_path / "b.parquet"
    )
    with pytest.raises(SourcesError, match="row 1 has no video"):
        listed(tmp_path / "b.parquet")


def test_a_column_of_another_name_if_it_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"my #=/ clip": [video(60)], "n": [1]}), path)
    (source,) = listed(path)
    assert "#my%20%23%3D%2F%20clip=000000000" in source.uri
    assert level_of(source.uri) == pytest.approx(60, abs=3)
    pq.write_table(pa.table({"one": [b"x"], "two": [b"y"]}), path)
    with pytest.raises(SourcesError, match="no path column"):
        listed(path)


def test_identity_follows_the_bytes_and_not_the_table(tmp_path: Path) -> None:
    files = [video(n) for n in (30, 80, 30)]
    path = write(tmp_path / "a.parquet", files)
    first = identify(listed(path), {})
    assert [s.bytes for s in first] == [len(f) for f in files]
    assert [s.duplicate_of for s in first] == [None, None, first[0].source_id]
    write(path, [files[0], video(200), files[2]], note=["x", "y", "z"])
    os.utime(path, ns=(1, 1))
    second = identify(listed(path), {s.uri: s for s in first})
    assert [a.source_id == b.source_id for a, b in zip(first, second, strict=True)] == [True, False, True]
    for old, new in zip(first, second, strict=True):
        is_new = changed_since(old.uri, old.bytes, old.mtime_or_etag, old.fingerprint)
        assert is_new == (old.fingerprint != new.fingerprint)
        assert not changed_since(new.uri, new.bytes, new.mtime_or_etag, new.fingerprint)


def test_an_unchanged_table_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", [video(n) for n in (30, 80)])
    first = identify(listed(path), {})

    def refuse(*_: object) -> bytes:
        raise AssertionError("the bytes were read")

    monkeypatch.setattr("curation.store.address.read_row", refuse)
    assert identify(listed(path), {s.uri: s for s in first}) == first
    assert not changed_since(first[0].uri, first[0].bytes, first[0].mtime_or_etag, first[0].fingerprint)


def test_a_table_that_was_replaced_is_opened_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"one", b"two"])
    uri = TableRow(str(path), "video", 1).address
    assert open_source(uri).read() == b"two"
    write(tmp_path / "b.parquet", [b"one", b"changed"])
    os.replace(tmp_path / "b.parquet", path)
    assert open_source(uri).read() == b"changed"


def test_remote_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELMILL_PROTOCOLS", "memory")
    path = write(tmp_path / "a.parquet", [video(n) for n in (30, 80)])
    with fsspec.open("memory://held/a.parquet", "wb") as file:
        file.write(path.read_bytes())
    sources = identify(list_sources(["memory://held/a.parquet"]), {})
    assert [s.uri for s in sources] == [f"memory://held/a.parquet#video={k:09d}" for k in range(2)]
    assert [s.error for s in sources] == [None, None]
    assert [level_of(s.uri) for s in sources] == pytest.approx([30, 80], abs=3)


def test_what_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"one", None])
    for column, row, words in (
        ("video", 2, "has 2 rows"),
        ("clip", 0, "no column clip"),
        ("video", 1, "no bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            open_source(TableRow(str(path), column, row).address)
    with pytest.raises(FileNotFoundError):
        open_source(f"{tmp_path}/b.parquet#video=000000000")
    with pytest.raises(AddressRefused):
        open_source("https://example.com/b.parquet#video=000000000")


def test_a_cell_does_not_name_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [video(30)])
    (tmp_path / "l.csv").write_text(f"path\n{path}#video=000000000\na.parquet#video=000000000\n")
    for source in listed(tmp_path / "l.csv"):
        assert source.error is not None
        assert source.error[0] == "AddressRefused"
        assert "name the Parquet file itself" in source.error[1]


def test_captions_come_from_the_columns_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [video(30)], caption=["a grey wall"])
    (tmp_path / "a.txt").write_text("about the table")
    (source,) = listed(path)
    request = CaptionRequest("c", source.uri, 0, 1, extra=source.extra)
    assert [c.text for c in Sidecar()([request])] == ["a grey wall"]
    assert Sidecar()([replace(request, extra={})]) == []
    assert file_of(source.uri) == str(path)
    assert table_row("/a/b.mp4") is None


@pytest.mark.parametrize(("rows_each", "rows_per_page"), [(5, 1024), (40, 1)])
def test_reading_a_row_holds_a_row_group_at_most(tmp_path: Path, rows_each: int, rows_per_page: int) -> None:
    """Of 320 MB, says the kernel: row groups of 40 MB with one page, as most writers leave it, or one row
    group with a page for each row."""
    path = tmp_path / "a.parquet"
    block = np.random.default_rng(1).bytes(8 << 20)
    table = pa.table({"video": [{"bytes": bytes([k]) + block, "path": None} for k in range(40)]})
    pq.write_table(table, path, row_group_size=rows_each, write_batch_size=rows_per_page)
    del table
    code = (
        "import re, sys\nimport pyarrow.parquet\nfrom curation.store.address import open_source\n"
        "def peak():\n    text = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+) kB', text)[1])\n"
        "before = peak()\n"
        "for row in (37, 38):\n    data = open_source(f'{sys.argv[1]}#video={row:09d}').read()\n"
        "    assert data[0] == row\n"
        "print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(run.stdout) / 1024 < 160, run.stdout  # MiB
    forget()
