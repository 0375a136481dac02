"""A sound dataset verifies clean; every kind of damage is found, and by one message that names it."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation.audit.accounting import Accounting, accounting
from curation.audit.decoder import Decoder
from curation.audit.verify import verify
from curation.store.dataset import Dataset, DatasetError
from curation.store.schema import CAPTIONS, CLIPS, VERDICTS
from tests.curation import dataset_fixture as fixture
from tests.curation.dataset_fixture import Row, id_of, rewrite

FIRST_ACCEPTED = id_of(fixture.CLIPS[0])
REJECTED = id_of(fixture.CLIPS[3])
FAILED = id_of(fixture.CLIPS[10])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "dataset"
    fixture.build(str(folder))
    return folder


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(sound, tmp_path / "dataset")
    return Dataset(str(tmp_path / "dataset"))


def rewrite_verdicts(dataset: Dataset, change: Callable[[list[Row]], list[Row]]) -> None:
    fixture.write_checked(dataset, "verdicts.parquet", change(list(dataset.verdicts())), VERDICTS)


def changed(clip_id: str, **values: Any) -> Callable[[list[Row]], list[Row]]:
    def change(rows: list[Row]) -> list[Row]:
        assert any(r["clip_id"] == clip_id for r in rows)
        return [r | values if r["clip_id"] == clip_id else r for r in rows]

    return change


def without(clip_id: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [r for r in rows if r["clip_id"] != clip_id]


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(bytes(data))


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


def test_a_sound_dataset_has_no_violations(dataset: Dataset) -> None:
    assert verify(dataset) == []
    assert verify(dataset, decode=True) == []


def test_it_tells_how_far_it_is(dataset: Dataset) -> None:
    told: list[tuple[int, int]] = []
    verify(dataset, told=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]
    told.clear()
    dataset.remove("verdicts.parquet")  # then nobody knows how many clips there should be
    verify(dataset, told=lambda done, total: told.append((done, total)))
    assert told == [(done, done) for done in range(1, 7)]


def test_a_remote_dataset_verifies(sound: Path) -> None:
    remote = fixture.build("memory://verify/dataset")
    assert verify(remote) == []
    assert accounting(remote) == accounting(Dataset(str(sound)))


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a dataset"):
        verify(Dataset(str(tmp_path)))


def test_a_missing_shard_row(dataset: Dataset) -> None:
    rewrite(dataset, "shards", "shard-00000", without(FIRST_ACCEPTED))
    assert only(verify(dataset)) == f"clip {FIRST_ACCEPTED} is accepted and in no shard"


def test_a_missing_shard(dataset: Dataset) -> None:
    dataset.remove("shards/shard-00001.parquet")
    problems = verify(dataset)
    assert len(problems) == 2
    assert all("accepted and in no shard" in p for p in problems)


def test_a_shard_row_twice_in_one_shard(dataset: Dataset) -> None:
    rewrite(dataset, "shards", "shard-00000", lambda rows: [*rows, rows[1]])
    assert only(verify(dataset)).endswith("is there twice")


def test_a_shard_row_in_two_shards(dataset: Dataset) -> None:
    row = dataset.read_part("shards", "shard-00000").to_pylist()[0]
    rewrite(dataset, "shards", "shard-00001", lambda rows: [*rows, row])
    assert only(verify(dataset)) == (
        f"shards/shard-00001.parquet: clip {row['clip_id']} is there in shards/shard-00000.parquet as well"
    )


def test_a_shard_row_of_a_rejected_clip(dataset: Dataset) -> None:
    clip = next(c for c in dataset.rows("clips") if c["clip_id"] == REJECTED)
    rewrite(dataset, "shards", "shard-00001", lambda rows: [*rows, fixture.shard_row(clip, None)])
    assert only(verify(dataset)) == f"shards/shard-00001.parquet: clip {REJECTED} is in a shard and rejected"


def test_a_missing_verdict(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, without(FIRST_ACCEPTED))
    assert only(verify(dataset)) == f"clips/a0.parquet: clip {FIRST_ACCEPTED} has no verdict"


def test_all_verdicts_missing(dataset: Dataset) -> None:
    dataset.remove("verdicts.parquet")
    assert only(verify(dataset)) == "verdicts.parquet is missing"


def test_two_verdicts_on_a_clip(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, lambda rows: [*rows, rows[0]])
    assert only(verify(dataset)).endswith("has two verdicts")


def test_a_verdict_on_no_clip(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, lambda rows: [*rows, rows[3] | {"clip_id": "0" * 24}])
    assert only(verify(dataset)) == f"verdicts.parquet: clip {'0' * 24} is no committed clip"


def test_an_unknown_status(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, changed(REJECTED, status="undecided"))
    assert "is 'undecided', not accepted, rejected, failed" in only(verify(dataset))


def test_a_verdict_that_the_rules_do_not_give(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, changed(REJECTED, reason="aesthetics.mean"))
    assert only(verify(dataset)).endswith(
        "is rejected by aesthetics.mean, and the rules of dataset.json reject it by motion.speed"
    )


def test_rules_that_changed_after_the_verdicts(dataset: Dataset) -> None:
    fixture.write_manifest(dataset, fixture.RULES | {"motion.speed": {"min": 0.02, "max": 1.0}})
    assert only(verify(dataset)).endswith(
        "is rejected by motion.speed, and the rules of dataset.json accept it"
    )


def test_a_failed_verdict_without_a_failure(dataset: Dataset) -> None:
    dataset.remove("failures/f0.parquet")
    assert only(verify(dataset)) == (
        f"verdicts.parquet: clip {FAILED} failed by cut, and failures has no such row"
    )


def test_a_caption_of_no_clip(dataset: Dataset) -> None:
    rewrite(dataset, "captions", "sidecar-0", lambda rows: [*rows, rows[0] | {"clip_id": "f" * 24}])
    assert only(verify(dataset)) == f"captions/sidecar-0.parquet: clip {'f' * 24} is no committed clip"


def test_a_clip_twice(dataset: Dataset) -> None:
    rewrite(dataset, "clips", "a0", lambda rows: [*rows, rows[0]])
    assert only(verify(dataset)).endswith("is there twice")


def test_a_source_twice(dataset: Dataset) -> None:
    row = dataset.read_part("sources", "b1").to_pylist()[0]
    rewrite(dataset, "sources", "a0", lambda rows: [*rows, row])
    assert only(verify(dataset)) == f"sources/b1.parquet: source {row['source_id']} is there twice"


def test_a_source_that_is_neither_measured_nor_failed(dataset: Dataset) -> None:
    rewrite(dataset, "sources", "a0", lambda rows: [rows[0] | {"status": "new"}, *rows[1:]])
    assert only(verify(dataset)).endswith("is 'new', not measured or failed")


def test_a_source_with_another_number_of_clips(dataset: Dataset) -> None:
    rewrite(dataset, "sources", "a0", lambda rows: [rows[0] | {"clips": 7}, *rows[1:]])
    assert only(verify(dataset)).endswith("says 7 clips and has 6 clip rows")


def test_clips_longer_than_their_source(dataset: Dataset) -> None:
    rewrite(dataset, "sources", "a0", lambda rows: [r | {"duration_s": 29.9} for r in rows])
    assert only(verify(dataset)).endswith("is 29.900 s long, its clips span 30.000 s")


def test_a_span_that_its_id_does_not_name(dataset: Dataset) -> None:
    rewrite(dataset, "clips", "a0", changed(REJECTED, end_s=16.75))
    assert only(verify(dataset)) == (
        f"clips/a0.parquet: clip {REJECTED} has an id that is not the hash of its source and times"
    )


def test_a_video_span_without_length(dataset: Dataset) -> None:
    rewrite(dataset, "clips", "a0", changed(REJECTED, end_s=12.0))
    assert only(verify(dataset)).endswith("has 20 frames at 4 per second from 12 s to 12 s")


def test_an_uncommitted_part_of_clips(dataset: Dataset) -> None:
    dataset.write_table("clips/zz.parquet", [], CLIPS)
    assert only(verify(dataset)) == ("clips/zz.parquet was never committed: there is no sources/zz.parquet")


def test_a_lost_part_of_clips(dataset: Dataset) -> None:
    dataset.remove("clips/a0.parquet")
    assert only(verify(dataset)) == "clips/a0.parquet is missing, and sources/a0.parquet is there"


def test_leftovers(dataset: Dataset) -> None:
    dataset.write("shards/_tmp-1234-shard-00000.parquet", b"PAR1")
    assert only(verify(dataset)) == (
        "shards/_tmp-1234-shard-00000.parquet is a leftover of a write that was cut short"
    )


def test_a_flipped_byte_of_video(dataset: Dataset) -> None:
    """The checksum of the page finds it, without decoding anything."""
    path = Path(dataset.path("shards/shard-00000.parquet"))
    mp4 = dataset.read_part("shards", "shard-00000").to_pylist()[2]["video"]["bytes"]
    flip_byte(path, path.read_bytes().index(mp4) + len(mp4) // 2)
    problem = only(verify(dataset))
    assert problem.startswith("shards/shard-00000.parquet, row group 0, cannot be read")
    assert "CRC" in problem


def test_a_flipped_byte_of_a_thumbnail(dataset: Dataset) -> None:
    rewrite(dataset, "clips", "a0", lambda rows: rows)
    path = Path(dataset.path("clips/a0.parquet"))
    flip_byte(path, path.read_bytes().index(fixture.jpeg(4)) + 50)
    assert only(verify(dataset)).startswith("clips/a0.parquet, row group 1, cannot be read")


def test_a_truncated_part(dataset: Dataset) -> None:
    path = Path(dataset.path("clips/b1.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    assert only(verify(dataset)).startswith("clips/b1.parquet cannot be read")


def test_a_column_of_another_type(dataset: Dataset) -> None:
    table = dataset.read_part("captions", "sidecar-0")
    table = table.set_column(0, "clip_id", table["clip_id"].cast(pa.large_string())).drop_columns(["key"])
    fixture.write_checked(dataset, "captions/sidecar-0.parquet", table.to_pylist(), table.schema)
    assert only(verify(dataset)) == (
        "captions/sidecar-0.parquet: the schema is not the contract's: "
        "missing key; clip_id is large_string, not string"
    )


def set_video(dataset: Dataset, mp4: bytes | None) -> str:
    """Replace the video of the first row of the first shard, and its hash. Returns the clip's id."""
    changed = {"video": {"bytes": mp4, "path": None}, "video_hash": fixture.hash_of(mp4 or b"")}
    rewrite(dataset, "shards", "shard-00000", lambda rows: [rows[0] | changed, *rows[1:]])
    return str(dataset.read_part("shards", "shard-00000", ["clip_id"])["clip_id"][0])


@pytest.mark.parametrize("empty", [b"", None])
def test_an_empty_video(dataset: Dataset, empty: bytes | None) -> None:
    clip_id = set_video(dataset, empty)
    assert only(verify(dataset)) == f"shards/shard-00000.parquet: clip {clip_id} has no video bytes"


def test_a_truncated_video_is_found_by_decoding(dataset: Dataset) -> None:
    mp4 = fixture.encode(20)
    clip_id = set_video(dataset, mp4[: len(mp4) // 2])
    assert verify(dataset) == []
    assert only(verify(dataset, decode=True)).startswith(
        f"shards/shard-00000.parquet: clip {clip_id} does not decode"
    )


@pytest.mark.parametrize("width", [2, 16, 48, 96, 100, 144])
def test_narrow_clips_are_correct(width: int) -> None:
    """decord counts the padding of their rows as channels."""
    decoder = Decoder()
    try:
        row = {"frames": 3, "width": width, "height": 48}
        assert decoder.problem(fixture.encode(3, width=width, height=48), row) is None
        assert decoder.problem(fixture.encode(3, width=width, height=48), row | {"height": 50}) is not None
    finally:
        decoder.stop()


def test_decode_problems() -> None:
    mp4 = fixture.encode(9, width=80, height=48)
    damaged = bytearray(mp4)
    start = damaged.index(b"mdat") + 900  # past the headers, inside the pictures
    damaged[start : start + 200] = b"\xff" * 200
    row = {"frames": 9, "width": 80, "height": 48}
    decoder = Decoder()
    try:
        assert decoder.problem(mp4, row) is None
        assert decoder.problem(mp4, row | {"frames": 10}) == "has 9 frames of video, not 10"
        assert decoder.problem(mp4, row | {"width": 48, "height": 80}) == "decodes to 80x48, not 48x80"
        assert str(decoder.problem(bytes(damaged), row)).startswith("does not decode")
        assert decoder.process is not None
        decoder.process.kill()
        decoder.process.wait()
        assert decoder.problem(mp4, row) == "crashes the decoder"
        assert decoder.problem(mp4, row) is None  # in a new child
    finally:
        decoder.stop()


class Evil:
    """Runs code in whoever unpickles it."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("answer", [None, b"[1]", b"\xff", b"1" * 70_000])
def test_a_child_that_was_taken_over_has_no_more_to_say_than_a_text(
    answer: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = multiprocessing.Pipe()
    decoder = Decoder()
    monkeypatch.setattr(decoder, "_pipe", ours)
    theirs.send(Evil(tmp_path / "ran")) if answer is None else theirs.send_bytes(answer)
    row = {"frames": 1, "width": 64, "height": 48}
    assert decoder.problem(b"", row) == "crashes the decoder"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [b"", b"AAAAftypmp42"])
def test_the_content_of_a_clip_is_not_printed(head: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    decoder = Decoder()
    try:
        problem = decoder.problem(head + b"\x1b[2JEVIL" * 100, {"frames": 1, "width": 64, "height": 48})
    finally:
        decoder.stop()
    assert problem is not None
    assert problem.isprintable()
    assert "EVIL" not in capfd.readouterr().err


def test_many_violations_of_a_kind_do_not_hide_another(dataset: Dataset) -> None:
    extra = [{"clip_id": f"{k:024x}", "status": "accepted"} for k in range(100)]
    rewrite_verdicts(dataset, lambda rows: [*rows, *extra])
    dataset.write("_tmp-1-report.html", b"")
    problems = verify(dataset)
    assert "_tmp-1-report.html is a leftover of a write that was cut short" in problems
    assert problems[-1] == "verdict without a clip: 80 more"
    assert len(problems) == 1 + 20 + 1


def test_the_accounting(dataset: Dataset) -> None:
    found = accounting(dataset)
    assert found == Accounting(
        sources=5,
        measured=4,
        failed_sources=1,
        duplicates=1,
        clips=13,
        accepted=6,
        rejected=6,
        failed_clips=1,
        by_reason={"duration.seconds": 1, "motion.speed": 2, "aesthetics.mean": 3, "cut": 1},
        shard_rows=6,
        accepted_seconds=25.0,
    )
    assert list(found.by_reason) == ["duration.seconds", "motion.speed", "aesthetics.mean", "cut"]
    assert found.check() == []
    assert found.lines() == [
        "sources 5 = measured 4 + failed 1",
        "  1 of the measured is a duplicate of another source",
        "clips 13 = accepted 6 + rejected 6 + failed 1",
        "  rejected 1 by duration.seconds",
        "  rejected 2 by motion.speed",
        "  rejected 3 by aesthetics.mean",
        "  failed 1 by cut",
    ]


def test_sums_that_do_not_hold_are_said(dataset: Dataset) -> None:
    rewrite_verdicts(dataset, without(REJECTED))
    rewrite(dataset, "shards", "shard-00000", without(FIRST_ACCEPTED))
    found = accounting(dataset)
    assert "clips 13 = accepted 6 + rejected 5 + failed 1 + not judged yet 1" in found.lines()
    assert found.check() == [
        "clips 13 is not accepted 6 + rejected 5 + failed 1",
        "6 clips are accepted, and the shards have 5 rows",
    ]


def test_a_shard_row_with_another_caption_than_its_own(dataset: Dataset) -> None:
    table = dataset.read_part("captions", "sidecar-0").to_pylist()
    table[0]["text"] = "edited, and no shard told"
    dataset.write_table("captions/sidecar-0.parquet", table, CAPTIONS)
    assert "captions say 'edited, and no shard told'" in only(verify(dataset))


def test_two_captions_of_one_kind_and_key(dataset: Dataset) -> None:
    table = dataset.read_part("captions", "sidecar-0").to_pylist()
    dataset.write_table("captions/sidecar-1.parquet", table[:1], CAPTIONS)
    assert "two captions of one kind and key" in only(verify(dataset))


def test_a_caption_rule_that_the_verdict_does_not_know(dataset: Dataset) -> None:
    """Its check is in the table; the clip is accepted all the same."""
    table = dataset.read_part("captions", "sidecar-0").to_pylist()
    table[0]["caption.repetition"] = 0.9
    dataset.write_table("captions/sidecar-0.parquet", table, CAPTIONS)
    fixture.write_manifest(dataset, {**fixture.RULES, "caption.repetition": {"min": None, "max": 0.3}})
    assert "reject it by caption.repetition" in only(verify(dataset))
