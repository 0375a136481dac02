"""Exports hold the same bytes and captions as the shards, and the libraries they are for can read them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import webdataset

from curation.shards.export import MARKER, export
from curation.store.dataset import Dataset
from tests.curation import dataset_fixture as fixture
from tests.curation.dataset_fixture import rewrite


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return fixture.build(
        str(tmp_path_factory.mktemp("sound") / "dataset"), caption="Über <b>Wasser</b>\nund Wind"
    )


def shard_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    yield from dataset.rows("shards")


def test_files(dataset: Dataset, tmp_path: Path) -> None:
    assert export(dataset, "files", str(tmp_path)) == 6
    rows = list(shard_rows(dataset))
    names = {f"{r['clip_id']}.{suffix}" for r in rows for suffix in ("mp4", "txt")}
    assert {p.name for p in tmp_path.iterdir()} == names | {"metadata.jsonl", MARKER}
    metadata = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text("utf-8").splitlines()]
    for row, line in zip(rows, metadata, strict=True):
        clip_id = row["clip_id"]
        assert (tmp_path / f"{clip_id}.mp4").read_bytes() == row["video"]["bytes"]
        assert (tmp_path / f"{clip_id}.txt").read_text("utf-8") == (row["caption"] or "")
        scalars = {k: v for k, v in row.items() if k not in ("video", "captions")}
        assert line == {"file_name": f"{clip_id}.mp4", **scalars}
    assert [line["caption"] for line in metadata].count(None) == 1  # the still


@pytest.mark.parametrize("to", ["files", "webdataset"])
def test_it_tells_how_far_it_is(dataset: Dataset, tmp_path: Path, to: Any) -> None:
    told: list[tuple[int, int]] = []
    export(dataset, to, str(tmp_path), told=lambda done, total: told.append((done, total)))
    shards = len(dataset.parts("shards"))
    assert shards > 1
    assert told == [(done, shards) for done in range(shards)]


def test_webdataset_reads_the_tars(dataset: Dataset, tmp_path: Path) -> None:
    assert export(dataset, "webdataset", str(tmp_path)) == 6
    samples = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
    rows = list(shard_rows(dataset))
    found = list(samples)
    assert [s["__key__"] for s in found] == [r["clip_id"] for r in rows]
    for sample, row in zip(found, rows, strict=True):
        assert sample["mp4"] == row["video"]["bytes"]
        assert sample["txt"].decode() == (row["caption"] or "")
        assert json.loads(sample["json"]) == {k: v for k, v in row.items() if k not in ("video", "captions")}


def test_tars_are_the_same_bytes_each_time(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(dataset, "webdataset", str(tmp_path / name))
    first, second = ((tmp_path / name / "00000.tar").read_bytes() for name in ("one", "two"))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_tars_are_divided_by_size(dataset: Dataset, tmp_path: Path) -> None:
    rewrite_large = {"bytes": fixture.encode(20) + b"\0" * 400_000, "path": None}
    large = Dataset(str(tmp_path / "large"))
    fixture.write_manifest(large)
    rows = [r | {"video": rewrite_large} for r in shard_rows(dataset)]
    fixture.write_shard(large, "shard-00000", rows)
    out = tmp_path / "out"
    assert export(large, "webdataset", str(out), shard_mb=1) == 6
    assert sorted(p.name for p in out.glob("*.tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    keys = []
    for tar in sorted(out.glob("*.tar")):
        keys += [s["__key__"] for s in webdataset.WebDataset(str(tar), shardshuffle=False)]
    assert keys == [r["clip_id"] for r in rows]


def test_an_export_replaces_an_earlier_one(dataset: Dataset, tmp_path: Path) -> None:
    smaller = fixture.build(str(tmp_path / "smaller"))
    rewrite(smaller, "shards", "shard-00000", lambda rows: rows[:1])
    out = tmp_path / "out"
    export(dataset, "files", str(out))
    (out / "notes.md").write_text("mine")
    assert export(smaller, "files", str(out)) == 3
    assert len(list(out.glob("*.mp4"))) == len(list(out.glob("*.txt"))) == 3
    assert (out / "notes.md").read_text() == "mine"  # not ours to remove
    assert export(smaller, "webdataset", str(out)) == 3
    assert {p.name for p in out.iterdir()} == {"00000.tar", MARKER, "notes.md"}


def test_a_folder_with_something_else_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds something else"):
        export(dataset, "files", str(tmp_path))
    with pytest.raises(ValueError, match="is a file"):
        export(dataset, "files", str(tmp_path / "film.mp4"))
    with pytest.raises(ValueError, match="holds something else"):
        export(dataset, "webdataset", dataset.location)
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_an_id_that_leads_out_of_the_folder_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    bad = Dataset(str(tmp_path / "bad"))
    fixture.write_manifest(bad)
    row = next(shard_rows(dataset))
    fixture.write_shard(bad, "shard-00000", [row | {"clip_id": "../escaped"}])
    with pytest.raises(ValueError, match="not a hexadecimal hash"):
        export(bad, "files", str(tmp_path / "out"))
    assert not (tmp_path / "escaped.mp4").exists()
    assert json.loads((tmp_path / "out" / MARKER).read_text())["clips"] is None
    assert not (tmp_path / "out" / "metadata.jsonl").exists()


def test_a_score_that_is_not_a_number_is_null(dataset: Dataset, tmp_path: Path) -> None:
    other = Dataset(str(tmp_path / "other"))
    fixture.write_manifest(other)
    fixture.write_shard(other, "shard-00000", [next(shard_rows(dataset)) | {"motion.speed": float("nan")}])
    export(other, "files", str(tmp_path / "out"))
    assert '"motion.speed": null' in (tmp_path / "out" / "metadata.jsonl").read_text()


def test_wrong_arguments(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are webdataset, files"):
        export(dataset, "zip", str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard_mb must be above 0"):
        export(dataset, "webdataset", str(tmp_path), shard_mb=0)


def test_from_and_to_a_remote_address(tmp_path: Path) -> None:
    remote = fixture.build("memory://export/dataset")
    for to in ("files", "webdataset"):
        assert export(remote, to, f"memory://export/{to}") == 6  # type: ignore[arg-type]
    filesystem, root = fsspec.url_to_fs("memory://export/files")
    row = next(shard_rows(remote))
    assert filesystem.cat_file(f"{root}/{row['clip_id']}.mp4") == row["video"]["bytes"]
    data = fsspec.url_to_fs("memory://export/webdataset/00000.tar")[0].cat_file(
        "/export/webdataset/00000.tar"
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 18
