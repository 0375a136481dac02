"""The dataset's files: whole or not at all, one schema per table, and refusals of what is no dataset."""

from __future__ import annotations

import json
import os
import random
import threading
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.config.load import load_config
from curation.shards.write import write_shard
from curation.store.dataset import Dataset, DatasetError
from curation.store.schema import (
    CAPTIONS,
    CLIPS,
    FAILURES,
    SCHEMA_VERSION,
    SCORE_COLUMNS,
    SHARDS,
    SOURCES,
    TABLES,
    VERDICTS,
)
from filters import SCORERS
from tests.curation import dataset_fixture


def source_row(source_id: str, **changed: Any) -> dict[str, Any]:
    return {"source_id": source_id, "uri": f"/v/{source_id}.mp4", "status": "measured", "clips": 1, **changed}


def clip_row(clip_id: str, source_id: str, start_s: float = 0.0) -> dict[str, Any]:
    span = {"start_s": start_s, "end_s": start_s + 4.0, "frames": 100}
    uri = f"/v/{source_id}.mp4"
    return {"clip_id": clip_id, "source_id": source_id, "uri": uri, **span, "keys": {"motion": "k"}}


@pytest.fixture(params=["local", "memory"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    where = str(tmp_path / "d") if request.param == "local" else f"memory://{uuid.uuid4().hex}/d"
    return Dataset(where)


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "d"))


def names(folder: str | Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())


# --- whole files ----------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(local: Dataset) -> None:
    local.write("a/x.bin", b"old")
    opened: list[Any] = []
    with pytest.raises(RuntimeError, match="in the middle"):
        _fail_while_writing(local, opened)
    assert local.read("a/x.bin") == b"old"
    assert names(local.location) == ["a/x.bin"]
    assert opened[0].closed


def _fail_while_writing(dataset: Dataset, opened: list[Any]) -> None:
    with dataset.writing("a/x.bin") as file:
        opened.append(file)
        file.write(b"new, but not all of it")
        raise RuntimeError("in the middle")


def test_readers_see_the_old_file_until_the_new_one_is_whole(local: Dataset) -> None:
    local.write("shards/x.parquet", b"old")
    with local.writing("shards/x.parquet") as file:
        file.write(b"new")
        file.flush()
        assert local.read("shards/x.parquet") == b"old"
        assert local.parts("shards") == ["x"]  # the unfinished one is no part
        assert len(local.unfinished()) == 1
    assert local.read("shards/x.parquet") == b"new"
    assert local.unfinished() == []


def test_a_row_that_does_not_fit_the_schema_leaves_no_file(local: Dataset) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        local.write_table("clips/p.parquet", [{"clip_id": "c", "start_s": "not a number"}], CLIPS)
    assert names(local.location) == []


def test_write_read_and_remove(dataset: Dataset) -> None:
    assert not dataset.exists("x/y.bin")
    dataset.remove("x/y.bin")  # nothing to do
    dataset.write("x/y.bin", b"\x00data")
    assert dataset.exists("x/y.bin")
    assert dataset.read("x/y.bin") == b"\x00data"
    dataset.write("x/y.bin", b"")
    assert dataset.read("x/y.bin") == b""
    dataset.remove("x/y.bin")
    assert not dataset.exists("x/y.bin")


def test_an_address_opens_with_other_tools(dataset: Dataset) -> None:
    import fsspec

    dataset.write("x.bin", b"1")
    with fsspec.open(dataset.address("x.bin"), "rb") as file:
        assert file.read() == b"1"
    if Path(dataset.location).is_absolute():
        assert Path(dataset.address("x.bin")).read_bytes() == b"1"


# --- tables ---------------------------------------------------------------------------------------


def test_tables_give_back_what_was_written(dataset: Dataset) -> None:
    assert dataset.parts("clips") == []
    assert list(dataset.rows("clips")) == []
    assert list(dataset.verdicts()) == []
    for part in ("b", "a", "c"):
        dataset.commit_part(
            part,
            [source_row(f"{part}2"), source_row(f"{part}1", extra='{"é": 1}')],
            [clip_row("late", f"{part}1", 5.0), clip_row("other", f"{part}2"), clip_row("early", f"{part}1")],
        )
    assert dataset.parts("clips") == dataset.parts("sources") == ["a", "b", "c"]
    assert [s["source_id"] for s in dataset.rows("sources")] == ["a1", "a2", "b1", "b2", "c1", "c2"]
    found = list(dataset.rows("clips", ["clip_id", "start_s"]))
    assert found[:3] == [
        {"clip_id": "early", "start_s": 0.0},
        {"clip_id": "late", "start_s": 5.0},
        {"clip_id": "other", "start_s": 0.0},
    ]
    (first, *_) = dataset.rows("clips")
    assert dict(first["keys"]) == {"motion": "k"}
    assert first["motion.speed"] is None
    dataset.write_table("verdicts.parquet", [{"clip_id": "early", "status": "accepted"}], VERDICTS)
    assert [v["status"] for v in dataset.verdicts()] == ["accepted"]
    dataset.remove("sources/b.parquet")
    assert [part for part, _ in dataset.tables("clips")] == ["a", "c"]  # b is not committed
    assert dataset.open_part("sources", "a").read().num_rows == 2


def test_many_parts_come_in_order_whatever_is_read_ahead(dataset: Dataset) -> None:
    parts = [f"{i:02d}" for i in range(30)]
    for part in reversed(parts):
        dataset.commit_part(part, [source_row(part)], [clip_row(f"{part}-0", part)])
    assert [(p, t["source_id"].to_pylist()) for p, t in dataset.tables("sources")] == [
        (p, [p]) for p in parts
    ]
    assert [c["clip_id"] for c in dataset.rows("clips", ["clip_id"])] == [f"{p}-0" for p in parts]
    before = threading.active_count()
    reading = dataset.tables("clips")
    next(reading)
    reading.close()
    assert threading.active_count() == before  # who reads no further leaves nothing behind
    dataset.write("clips/20.parquet", b"damaged")
    read: list[str] = []
    with pytest.raises(DatasetError, match=r"clips/20\.parquet cannot be read"):
        read.extend(part for part, _ in dataset.tables("clips"))
    assert read == parts[:20]  # all that come before it


def test_parts_are_finished_parquet_files_in_order(dataset: Dataset) -> None:
    for name in ("10", "9", "_tmp-1234-x", "_plan"):
        dataset.write_table(f"shards/{name}.parquet", [], SHARDS)
    dataset.write("shards/_plan.json", b"{}")
    dataset.write("shards/notes.txt", b"")
    assert dataset.parts("shards") == ["10", "9"]


def test_every_part_has_its_table_s_schema_whatever_its_rows_lack(local: Dataset) -> None:
    local.commit_part("empty", [source_row("s", clips=0)], [])
    local.commit_part("full", [source_row("t", bytes=3, fps=25.0)], [clip_row("c", "t")])
    for part in ("p", "q"):
        rows = [{"clip_id": part}] if part == "q" else []
        for table in ("captions", "failures", "shards"):
            local.write_table(f"{table}/{part}.parquet", rows, TABLES[table])
    for table, schema in TABLES.items():
        parts = local.parts(table)
        assert len(parts) == 2
        for part in parts:
            assert pq.read_schema(local.address(f"{table}/{part}.parquet")).equals(schema), (table, part)


def test_the_schemas_are_the_contract_s() -> None:
    assert set(TABLES) == {"sources", "clips", "captions", "failures", "shards"}
    made = [column.name for scorer in SCORERS.values() for column in scorer.columns]
    assert list(SCORE_COLUMNS) == made
    assert len(set(made)) == len(made)
    for schema in (CLIPS, SHARDS):
        assert all(schema.field(c).type == pa.float64() for c in SCORE_COLUMNS)
    wanted = {
        "source_id uri fingerprint mtime_or_etag duplicate_of bytes container codec width height fps is_vfr "
        "duration_s frames status stage error message clips seconds config_hash extra": SOURCES,
        "clip_id source_id uri start_s end_s frames fps width height embedding thumbnail keys": CLIPS,
        "clip_id captioner kind text model revision prompt_version key": CAPTIONS,
        "clip_id stage error message": FAILURES,
        "clip_id status reason value message": VERDICTS,
        "clip_id video caption captions width height fps frames duration_s source_id uri start_s end_s extra "
        "config_hash": SHARDS,
    }
    for columns, schema in wanted.items():
        assert set(columns.split()) <= set(schema.names)
    assert CLIPS.field("embedding").type == pa.list_(pa.float16())
    assert SHARDS.field("video").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_sources_of_an_earlier_version_have_no_transfer(dataset: Dataset) -> None:
    old = pa.schema([field for field in SOURCES if field.name != "transfer"])
    dataset.write_table("clips/a.parquet", [], CLIPS)
    dataset.write_table("sources/a.parquet", [source_row("s")], old)
    dataset.commit_part("b", [{**source_row("t"), "transfer": "smpte2084"}], [])
    assert [s["transfer"] for s in dataset.rows("sources")] == [None, "smpte2084"]
    assert [s["transfer"] for s in dataset.rows("sources", ["uri", "transfer"])] == [None, "smpte2084"]
    assert set(next(dataset.rows("sources", ["uri"]))) == {"uri"}


# --- leftovers ------------------------------------------------------------------------------------


def test_clean_removes_what_a_kill_left_and_nothing_else(dataset: Dataset) -> None:
    dataset.commit_part("whole", [source_row("s")], [clip_row("c", "s")])
    dataset.write_table("clips/uncommitted.parquet", [clip_row("d", "t")], CLIPS)
    dataset.write_table("shards/shard-00000.parquet", [], SHARDS)
    dataset.write("shards/_plan.json", b"{}")
    dataset.write("dataset.json", b"{}")
    dataset.write("_tmp-1234-dataset.json", b"half")
    dataset.write("shards/_tmp-1234-shard-00001.parquet", b"half")
    dataset.write("clips/_tmp-1234-p.parquet", b"half")
    assert dataset.clean() == 4
    assert dataset.parts("clips") == ["whole"]
    assert dataset.unfinished() == []
    for kept in ("dataset.json", "shards/_plan.json", "shards/shard-00000.parquet", "sources/whole.parquet"):
        assert dataset.exists(kept), kept
    assert dataset.clean() == 0


def test_clean_of_a_folder_that_is_not_there_makes_none(local: Dataset) -> None:
    assert local.clean() == 0
    assert not Path(local.location).exists()


# --- refusals -------------------------------------------------------------------------------------


def test_new_and_empty_folders_and_datasets_are_writable(tmp_path: Path) -> None:
    Dataset(str(tmp_path / "new")).check_writable()
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    Dataset(str(tmp_path / "empty")).check_writable()
    dataset_fixture.build(str(tmp_path / "d")).check_writable()
    Dataset(f"memory://{uuid.uuid4().hex}").check_writable()


def test_a_build_that_was_killed_before_its_first_commit_can_go_on(tmp_path: Path) -> None:
    """What `kill -9` leaves while dataset.json is written."""
    local = Dataset(str(tmp_path / "d"))
    local.write("_tmp-0123abcd-dataset.json", b'{"half')
    local.check_writable()
    local.write("_lease.json", b"{}")  # of a first build that was killed, or that has just begun
    local.check_writable()
    (tmp_path / "d" / "_lease.json").unlink()
    assert local.clean() == 1
    assert os.listdir(local.location) == []


@pytest.mark.parametrize("place", ["local", "memory"])
@pytest.mark.parametrize(
    ("written", "wins"),
    [(["clips"], "old"), (["clips", "sources"], "new"), (["sources"], "new")],
    ids=["before the commit", "committed", "half moved"],
)
def test_a_part_that_replaces_another_is_the_old_one_or_the_new_one(
    tmp_path: Path, place: str, written: list[str], wins: str
) -> None:
    """As a kill leaves it at each point of the way."""
    dataset = Dataset(str(tmp_path / "d") if place == "local" else f"memory://{tmp_path.name}-{wins}")
    new = Dataset(str(tmp_path / "new"))
    for target, source_id in ((dataset, "old"), (new, "new")):
        target.commit_part("p", [source_row(source_id)], [clip_row(f"{source_id} clip", source_id)])
    for table in ("clips", "sources"):
        data = new.read(f"{table}/p.parquet")
        if table in written:
            dataset.write(f"{table}/_next-p.parquet", data)
        elif wins == "new":
            dataset.write(f"{table}/p.parquet", data)  # it has its place already
    assert len(dataset.unfinished()) == len(written)
    dataset.clean()
    assert dataset.unfinished() == []
    assert [s["source_id"] for s in dataset.rows("sources")] == [wins]
    assert [c["source_id"] for c in dataset.rows("clips")] == [wins]
    dataset.commit_part("p", [], [])  # and a part without rows is none
    assert dataset.parts("sources") == dataset.parts("clips") == []


@pytest.mark.parametrize("before", [False, True], ids=["new", "replaced"])
def test_clips_are_written_before_the_sources_that_commit_them(dataset: Dataset, before: bool) -> None:
    """Killed between the two, a build finds no source whose clips are missing."""
    if before:
        dataset.commit_part("p", [source_row("old")], [clip_row("old clip", "old")])
    write, asked = dataset.writing, list[str]()

    def once(name: str) -> Any:
        asked.append(name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return write(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "writing", once)
        with pytest.raises(KeyboardInterrupt):
            dataset.commit_part("p", [source_row("new")], [clip_row("new clip", "new")])
    assert [name.split("/")[0] for name in asked] == ["clips", "sources"]
    dataset.clean()
    assert [s["source_id"] for s in dataset.rows("sources")] == ["old"] * before
    assert [c["clip_id"] for c in dataset.rows("clips")] == ["old clip"] * before


@pytest.mark.parametrize("table", ["clips", "shards"])
def test_one_wrong_bit_in_a_page_is_found(local: Dataset, table: str) -> None:
    """Random bytes: compression leaves them as they are, so that only the checksum of the page can tell."""
    noise = random.Random(0).randbytes(5000)
    if table == "clips":
        local.commit_part("p", [source_row("s")], [clip_row("c", "s") | {"thumbnail": noise}])
    else:
        row = dict.fromkeys(SHARDS.names) | {"clip_id": "p", "video": {"bytes": noise, "path": None}}
        write_shard(local, "p", [row], load_config(""))
    path = Path(local.path(f"{table}/p.parquet"))
    data = bytearray(path.read_bytes())
    place = bytes(data).index(noise[2000:2100])
    data[place] ^= 1
    path.write_bytes(data)
    assert pq.ParquetFile(path).read().num_rows == 1  # nothing else notices
    with pytest.raises(OSError, match="CRC"):
        local.open_table(f"{table}/p.parquet", checked=True).read()


@pytest.mark.parametrize("content", ["notes.txt", ".hidden", "shards/shard-00000.parquet", "_plan.json"])
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "d" / content
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(DatasetError, match="holds something else") as error:
        Dataset(str(tmp_path / "d")).check_writable()
    assert str(tmp_path / "d") in str(error.value)
    assert names(tmp_path) == [f"d/{content}"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    with pytest.raises(DatasetError, match="is a file"):
        Dataset(str(tmp_path / "d")).check_writable()
    with pytest.raises(DatasetError, match="not a dataset"):
        Dataset(str(tmp_path / "d")).manifest()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}).encode(), f"schema version {SCHEMA_VERSION + 1}"),
        (json.dumps({"schema_version": str(SCHEMA_VERSION)}).encode(), "schema version"),
        (json.dumps({"version": 1}).encode(), "cannot be read"),
        (json.dumps({"schema_version": SCHEMA_VERSION}).encode(), "no config"),
        (b"[1, 2]", "cannot be read"),
        (b"null", "cannot be read"),
        (b"{half", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none_of_ours_is_refused(dataset: Dataset, content: bytes, says: str) -> None:
    dataset.write("dataset.json", content)
    for refuses in (dataset.manifest, dataset.check_writable):
        with pytest.raises(DatasetError, match=says) as error:
            refuses()
        assert dataset.location.split("//")[-1] in str(error.value)
    assert dataset.read("dataset.json") == content


def test_a_folder_without_a_manifest_is_no_dataset(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="reelmill build makes one"):
        dataset.manifest()
