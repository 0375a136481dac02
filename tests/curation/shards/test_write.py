"""Shards: a plan that is a pure function of the clips, files that are one of the plan, rows that only go."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.captions.chosen import Captions
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode.answers import EncodedAnswer
from curation.driver.manifest import write_manifest
from curation.shards.align import align, drop_other_encodings
from curation.shards.plan import PLAN, Shard, estimated_bytes, plan_shards, settle_plan, sharded_clips
from curation.shards.write import shard_row, shard_schema, write_shard
from curation.store.dataset import Dataset
from curation.store.schema import CAPTIONS, SCORE_COLUMNS, SHARDS
from curation.tasks.cut import CutClip, SourceFile
from filters.base import Scorer

Row = dict[str, Any]


def clip(source: str, k: int, *, width: int = 320, height: int = 180, seconds: float = 4.0) -> Row:
    return {
        "clip_id": f"{source}-{k:03d}",
        "source_id": source,
        "uri": f"/v/{source}.mp4",
        "start_s": 10.0 * k,
        "end_s": 10.0 * k + seconds,
        "fps": 25.0,
        "width": width,
        "height": height,
        **dict.fromkeys(SCORE_COLUMNS),
    }


def row(clip_id: str, size: int, caption: str | None = None) -> Row:
    encoded = EncodedAnswer(clip_id, 320, 180, 25.0, 100, 4.0, random.Random(clip_id).randbytes(size))
    said = {"text": caption, "captioner": "sidecar", "kind": "sidecar"}
    listed = [said | dict.fromkeys(("model", "revision", "prompt_version"))] if caption else []
    of = to_cut(clip("s", 0), {"motion.speed": 0.25}, caption, listed, '{"licence": "CC0"}')
    return cast(Row, shard_row({**of, "clip_id": clip_id}, encoded, "hash"))


def to_cut(of: Row, scores: Row, caption: str | None, captions: list[Any], extra: str | None) -> CutClip:
    source: SourceFile = {"uri": of["uri"], "bytes": 1, "mtime_or_etag": None, "fingerprint": None}
    said = {"caption": caption, "captions": captions, "extra": extra}
    plain = {k: v for k, v in of.items() if k not in SCORE_COLUMNS}
    scores = {**dict.fromkeys(SCORE_COLUMNS), **scores}
    return cast(CutClip, {**plain, "frames": 100, "scores": scores, **said, "source": source})


def said(rows: Iterable[Row]) -> Captions:
    """The table of captions that shard rows came from."""
    found = [{"clip_id": r["clip_id"], **c, "key": "sidecar-1-caption"} for r in rows for c in r["captions"]]
    return Captions([pa.Table.from_pylist(found, schema=CAPTIONS)], load_config(""))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "d"))


def settings_of(*overrides: str) -> Config:
    return load_config("", overrides)


# --- the plan -------------------------------------------------------------------------------------

clip_lists = st.lists(
    st.builds(
        clip,
        st.sampled_from("abcdef"),
        st.integers(0, 500),
        width=st.sampled_from([64, 640, 1920]),
        height=st.sampled_from([64, 360, 1080]),
        seconds=st.floats(0, 10),
    ),
    unique_by=lambda c: c["clip_id"],
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(clip_lists, st.sampled_from([0.01, 0.5, 3.0, 512.0]), st.integers(0, 7), st.randoms())
def test_a_plan_holds_each_clip_once_in_hash_order_and_fills_shards(
    clips: list[Row], target_mb: float, first_index: int, order: random.Random
) -> None:
    config = settings_of(f"shards.target_mb={target_mb}")
    plan = plan_shards(clips, config, first_index)
    shuffled = clips.copy()
    order.shuffle(shuffled)
    assert plan_shards(shuffled, config, first_index) == plan

    in_order = sorted(clips, key=lambda c: (c["source_id"], c["start_s"]))
    assert [i for s in plan for i in s.clip_ids] == [c["clip_id"] for c in in_order]
    assert [s.name for s in plan] == [f"shard-{first_index + k:05d}" for k in range(len(plan))]
    size = {c["clip_id"]: estimated_bytes(c, config) for c in clips}
    limit = min(target_mb * 1e6, max(16e6, sum(size.values()) / 16))
    for k, shard in enumerate(plan):
        filled = sum(size[i] for i in shard.clip_ids)
        assert shard.clip_ids
        assert filled <= limit or len(shard.clip_ids) == 1
        if k + 1 < len(plan):  # it was closed because the next clip did not fit
            assert filled + size[plan[k + 1].clip_ids[0]] > limit


def test_few_clips_are_still_work_for_several() -> None:
    clips = [clip(f"{k:03d}", 0, width=1920, height=1080, seconds=10.0) for k in range(400)]
    size = estimated_bytes(clips[0], settings_of())
    assert 7e6 < size < 8e6

    def shards(count: int) -> list[int]:
        return [len(s.clip_ids) for s in plan_shards(clips[:count], settings_of("shards.target_mb=256"), 0)]

    assert shards(2) == [2]  # 16 MB
    assert shards(20) == [2] * 10
    assert shards(64) == [4] * 16
    assert shards(400) == [25] * 16

    large = [clip(f"{k:04d}", 0, width=1920, height=1080, seconds=10.0) for k in range(1000)]
    per_shard = int(256e6 // size)
    plan = plan_shards(large, settings_of("shards.target_mb=256"), 0)
    assert {len(s.clip_ids) for s in plan[:-1]} == {per_shard}


def test_a_source_that_fits_stays_together() -> None:
    clips = [clip(s, k) for s in "cab" for k in range(3)]
    one = sum(estimated_bytes(c, settings_of()) for c in clips[:3])
    plan = plan_shards(clips, settings_of(f"shards.target_mb={one * 1.01 / 1e6}"), 0)
    assert [{i[0] for i in s.clip_ids} for s in plan] == [{"a"}, {"b"}, {"c"}]


def test_the_estimate_follows_what_will_be_encoded() -> None:
    plain = estimated_bytes(clip("s", 0), settings_of())
    assert plain == pytest.approx(100 * 320 * 180 * 0.12 / 8)
    assert estimated_bytes(clip("s", 0), settings_of("cut.fps=12.5")) == pytest.approx(plain / 2)
    assert estimated_bytes(clip("s", 0), settings_of("cut.max_side=160")) == pytest.approx(
        plain / 4, rel=0.05
    )
    image = {**clip("s", 0), "fps": None, "end_s": 0.0}
    assert estimated_bytes(image, settings_of()) == pytest.approx(plain / 100)


# --- an earlier plan ------------------------------------------------------------------------------

SMALL = "shards.target_mb=0.2"  # two of these clips


def put_shard(dataset: Dataset, shard: Shard, config: Config) -> None:
    write_shard(dataset, shard.name, [row(i, 10) for i in shard.clip_ids], config)


def test_a_plan_that_was_cut_short_is_kept_to(dataset: Dataset) -> None:
    config = settings_of(SMALL)
    clips = [clip(s, k) for s in "abcd" for k in range(2)]
    plan = settle_plan(dataset, clips, config)
    assert [s.clip_ids for s in plan] == [[f"{s}-000", f"{s}-001"] for s in "abcd"]
    put_shard(dataset, plan[0], config)
    put_shard(dataset, plan[2], config)
    left = [c for c in clips if c["source_id"] in "bd"]
    assert settle_plan(dataset, left, config) == [plan[1], plan[3]]
    # Sources that came later do not get into the shards that were planned, nor take their names.
    more = [*left, clip("0", 0), clip("c", 7)]
    again = settle_plan(dataset, more, config)
    assert again[:2] == [plan[1], plan[3]]
    assert again[2:] == [Shard("shard-00004", ["0-000", "c-007"])]
    assert settle_plan(dataset, more, config) == again
    # Another target size is for what is planned anew.
    assert settle_plan(dataset, more, settings_of("shards.target_mb=100"))[:2] == [plan[1], plan[3]]


def test_a_plan_is_dropped_where_its_clips_are_no_longer_wanted(dataset: Dataset) -> None:
    config = settings_of(SMALL)
    clips = [clip(s, k) for s in "ab" for k in range(2)]
    _, second = settle_plan(dataset, clips, config)
    again = settle_plan(dataset, clips[1:], config)
    assert again[0] == second
    assert [s.clip_ids for s in again[1:]] == [["a-001"]]
    assert again[1].name != second.name


def test_a_plan_made_for_other_cut_settings_is_dropped(dataset: Dataset) -> None:
    clips = [clip(s, k) for s in "ab" for k in range(2)]
    assert len(settle_plan(dataset, clips, settings_of(SMALL))) == 2
    assert len(settle_plan(dataset, clips, settings_of("shards.target_mb=100"))) == 2  # kept
    assert len(settle_plan(dataset, clips, settings_of("shards.target_mb=100", "cut.crf=30"))) == 1


def test_the_plan_s_file_is_there_as_long_as_there_is_something_to_make(dataset: Dataset) -> None:
    config = settings_of(SMALL)
    (shard,) = settle_plan(dataset, [clip("a", 0)], config)
    stored = json.loads(dataset.read(PLAN))
    assert stored["shards"] == [{"name": "shard-00000", "clip_ids": ["a-000"]}]
    assert dataset.parts("shards") == []
    put_shard(dataset, shard, config)
    assert settle_plan(dataset, [], config) == []
    assert not dataset.exists(PLAN)


def test_new_shards_are_numbered_after_those_that_are_there(dataset: Dataset) -> None:
    config = settings_of()
    put_shard(dataset, Shard("shard-00007", ["x"]), config)
    put_shard(dataset, Shard("shard-100000", ["y"]), config)
    assert [s.name for s in settle_plan(dataset, [clip("a", 0)], config)] == ["shard-100001"]


@settings(deadline=None, max_examples=30)
@given(clip_lists, st.data())
def test_however_often_a_build_is_cut_short_each_clip_is_in_one_shard(clips: list[Row], data: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(folder)
        config = settings_of("shards.target_mb=1")
        uncut = plan_shards(clips, config, 0)
        made: dict[str, list[str]] = {}
        while True:
            done = {i for ids in made.values() for i in ids}
            plan = settle_plan(dataset, [c for c in clips if c["clip_id"] not in done], config)
            if not plan:
                break
            for shard in data.draw(st.lists(st.sampled_from(plan), min_size=1, unique_by=lambda s: s.name)):
                assert shard.name not in made
                made[shard.name] = shard.clip_ids
                dataset.write(f"shards/{shard.name}.parquet", b"")
        assert made == {s.name: s.clip_ids for s in uncut}


# --- files ----------------------------------------------------------------------------------------


def groups_of(dataset: Dataset, name: str) -> list[list[int]]:
    """Bytes of video of each row of each row group."""
    file = dataset.open_part("shards", name)
    return [
        [len(v["bytes"]) for v in file.read_row_group(g, ["video"])["video"].to_pylist()]
        for g in range(file.num_row_groups)
    ]


def test_row_groups_come_near_their_size(dataset: Dataset) -> None:
    config = settings_of("shards.row_group_mb=0.05")
    rows = [row(f"c{k:02d}", 20_000) for k in range(8)] + [row("large", 90_000)]
    assert write_shard(dataset, "shard-00000", rows, config) == 250_000
    groups = groups_of(dataset, "shard-00000")
    assert sum(map(len, groups)) == 9
    for group in groups[:-1]:
        assert sum(group) >= 50_000 > sum(group[:-1])


def test_rows_are_shuffled_by_a_seed_of_their_own(dataset: Dataset) -> None:
    config = settings_of()
    rows = [row(f"c{k:02d}", 10) for k in range(20)]

    def order(name: str, of: list[Row], config: Config) -> list[str]:
        write_shard(dataset, name, of, config)
        return [str(i) for i in dataset.read_part("shards", name, ["clip_id"])["clip_id"].to_pylist()]

    ids = sorted(r["clip_id"] for r in rows)
    first = order("shard-00000", rows, config)
    data = dataset.read("shards/shard-00000.parquet")
    assert first != ids
    assert sorted(first) == ids
    assert order("shard-00000", rows[::-1], config) == first
    assert dataset.read("shards/shard-00000.parquet") == data  # every byte
    assert order("shard-00001", rows, config) != first
    assert order("shard-00000", rows, settings_of("shards.seed=1")) != first


def test_a_row_holds_what_was_written_and_what_was_measured() -> None:
    encoded = EncodedAnswer("x", 160, 90, 12.0, 48, 4.0, b"mp4")
    captions = [{"text": "long"}, {"text": "short"}]
    of = to_cut(clip("s", 3), {"motion.speed": 0.5}, "long", captions, None)
    made: Row = {**shard_row(of, encoded, "hash")}
    assert set(made) == set(SHARDS.names)
    assert (made["clip_id"], made["width"], made["fps"], made["frames"]) == ("s-003", 160, 12.0, 48)
    assert (made["motion.speed"], made["start_s"], made["caption"]) == (0.5, 30.0, "long")
    assert made["captions"] == captions
    assert shard_row({**of, "caption": None, "captions": []}, encoded, "hash")["caption"] is None


def test_other_libraries_see_a_video(dataset: Dataset, tmp_path: Path) -> None:
    write_shard(dataset, "shard-00000", [row("a", 100, "said"), row("b", 100)], settings_of())
    path = dataset.address("shards/shard-00000.parquet")
    schema = pq.read_schema(path)
    assert schema.equals(SHARDS)
    features = datasets.Features.from_arrow_schema(schema)
    assert isinstance(features["video"], datasets.Video)
    assert features["motion.speed"] == datasets.Value("float64")
    assert schema.metadata.items() >= shard_schema(dataset).metadata.items()
    assert pq.ParquetFile(path).metadata.row_group(0).column(1).compression == "UNCOMPRESSED"


# --- rows that go ---------------------------------------------------------------------------------


def test_dropping_rows_keeps_the_others_as_they_are(dataset: Dataset) -> None:
    config = settings_of("shards.row_group_mb=0.03")
    for n, name in enumerate(("shard-00000", "shard-00001", "shard-00002")):
        write_shard(dataset, name, [row(f"{n}{k}", 10_000, f"said {k}") for k in range(9)], config)
    before = list(dataset.rows("shards"))
    untouched = dataset.read("shards/shard-00002.parquet")
    changed = Path(dataset.path("shards/shard-00002.parquet")).stat().st_mtime_ns
    gone = {"01", "04", "05", *(f"1{k}" for k in range(9))}
    accepted = {r["clip_id"]: r for r in before if r["clip_id"] not in gone}

    assert align(dataset, accepted, said(before)) == 12
    assert dataset.parts("shards") == ["shard-00000", "shard-00002"]  # the empty one went
    assert list(dataset.rows("shards")) == [r for r in before if r["clip_id"] not in gone]
    assert dataset.read("shards/shard-00002.parquet") == untouched
    assert Path(dataset.path("shards/shard-00002.parquet")).stat().st_mtime_ns == changed
    assert dataset.unfinished() == []
    metadata = pq.read_schema(dataset.address("shards/shard-00000.parquet")).metadata
    assert metadata.items() >= shard_schema(dataset).metadata.items()
    assert all(groups_of(dataset, "shard-00000"))  # no empty row group
    assert align(dataset, accepted, said(before)) == 0
    assert sharded_clips(dataset) == {i: f"shard-0000{i[0]}" for i in accepted}


def test_scores_that_were_computed_anew_are_taken_over_and_nothing_else_changes(dataset: Dataset) -> None:
    config = settings_of("shards.row_group_mb=0.03")
    for n, name in enumerate(("shard-00000", "shard-00001")):
        write_shard(dataset, name, [row(f"{n}{k}", 10_000, f"said {k}") for k in range(9)], config)
    before = list(dataset.rows("shards"))
    other = dataset.read("shards/shard-00001.parquet")
    accepted = {r["clip_id"]: dict(r) for r in before if r["clip_id"] != "08"}
    accepted["03"] |= {"motion.speed": 0.75, "text.area": math.nan}
    assert align(dataset, accepted, said(before)) == 2  # one went, one changed
    after = {r["clip_id"]: r for r in dataset.rows("shards")}
    assert (after["03"]["motion.speed"], math.isnan(after["03"]["text.area"])) == (0.75, True)
    for r in before:
        if r["clip_id"] not in ("03", "08"):
            assert after.pop(r["clip_id"]) == r
    assert list(after) == ["03"]
    assert after["03"]["video"] == next(r for r in before if r["clip_id"] == "03")["video"]
    assert dataset.read("shards/shard-00001.parquet") == other
    assert align(dataset, accepted, said(before)) == 0  # not even for a NaN


def test_a_column_that_came_later_comes_into_every_shard(dataset: Dataset) -> None:
    """Hugging Face `datasets` refuses files whose columns differ."""
    for name in ("shard-00000", "shard-00001"):
        write_shard(dataset, name, [row(f"{name[-1]}{k}", 500) for k in range(3)], settings_of())
    before = list(dataset.rows("shards"))
    config = settings_of("filters={'tests.curation.shards.test_write:Later': {}}")
    write_manifest(dataset, config)
    assert all(r["later.value"] is None for r in dataset.rows("shards"))
    accepted = {r["clip_id"]: dict(r) for r in dataset.rows("shards")}
    accepted["01"]["later.value"] = 7.0  # the clips of the other shard were not scored
    assert align(dataset, accepted, said(before)) == 1
    files = [dataset.address(f"shards/{part}.parquet") for part in dataset.parts("shards")]
    assert [pq.read_schema(f).equals(dataset.schema("shards")) for f in files] == [True, True]
    cache = dataset.path("cache")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert sorted(loaded["later.value"], key=str) == [7.0, None, None, None, None, None]
    after = {r["clip_id"]: r["video"] for r in dataset.rows("shards")}
    assert after == {r["clip_id"]: r["video"] for r in before}
    assert align(dataset, accepted, said(before)) == 0


@dataclass(frozen=True)
class Later(Scorer):
    """A filter that a dataset gets later."""


@pytest.mark.parametrize("extra", ['{"licence": "all rights reserved"}', None])
def test_other_columns_of_the_list_are_taken_over(dataset: Dataset, extra: str | None) -> None:
    """A licence that was corrected must reach the shards, where nothing else of the clip has changed."""
    write_shard(dataset, "shard-00000", [row(f"c{k}", 100) for k in range(3)], settings_of())
    before = list(dataset.rows("shards"))
    accepted = {r["clip_id"]: dict(r) for r in before}
    accepted["c1"]["extra"] = extra
    assert align(dataset, accepted, said(before)) == 1
    assert list(dataset.rows("shards")) == [
        r | {"extra": extra} if r["clip_id"] == "c1" else r for r in before
    ]


def test_shards_of_other_encoder_settings_go(dataset: Dataset) -> None:
    write_shard(dataset, "shard-00000", [row("a", 10)], settings_of())
    write_shard(dataset, "shard-00001", [row("b", 10)], settings_of("cut.crf=30"))
    changed = {"a": row("a", 0), "b": {**row("b", 0), "motion.speed": 1.0}}
    align(dataset, changed, said([]))  # keeps what it was made with
    assert drop_other_encodings(dataset, settings_of("shards.target_mb=3")) == 1
    assert dataset.parts("shards") == ["shard-00000"]


def test_dropping_everything_leaves_no_shard(dataset: Dataset) -> None:
    write_shard(dataset, "shard-00000", [row("a", 10)], settings_of())
    assert align(dataset, {}, said([])) == 1
    assert dataset.parts("shards") == []
    assert sharded_clips(dataset) == {}
    assert align(dataset, {}, said([])) == 0


def test_shards_of_a_remote_dataset(tmp_path: Path) -> None:
    remote = Dataset(f"memory://{tmp_path.name}-shards")
    config = settings_of()
    write_shard(remote, "shard-00000", [row(f"c{k}", 500) for k in range(4)], config)
    assert align(remote, {i: row(i, 0) for i in ("c0", "c3")}, said([])) == 2
    assert sorted(sharded_clips(remote)) == ["c0", "c3"]
    found = {r["clip_id"]: r["video"]["bytes"] for r in remote.rows("shards")}
    assert found == {i: random.Random(i).randbytes(500) for i in ("c0", "c3")}
