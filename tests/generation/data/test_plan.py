"""Plans: which rows are used, in which buckets and order. These tests read no file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.config import Between, Bucket, Data
from generation.data.plan import Plan, Selection, plan_epoch, plan_validation, select
from generation.data.shards import Index

VIDEO = (33, 24.0, 640, 360)  # frames, fps, width, height
IMAGE = (1, math.nan, 640, 360)


def index_of(
    rows: Sequence[tuple[float, float, float, float]], per_group: int = 5, **columns: Sequence[float]
) -> Index:
    ids = [f"{k:08x}" for k in range(len(rows))]
    values = np.array(rows, dtype=float).reshape(-1, 4)
    groups = -(-len(rows) // per_group)
    starts = [*range(0, len(rows), per_group), len(rows)]
    return Index(
        dataset="made up",
        files=("a.parquet",),
        clip_ids=pa.chunked_array([ids]),
        captions=pa.chunked_array([[f"clip {i}" for i in ids]]),
        numbers={name: values[:, k] for k, name in enumerate(("frames", "fps", "width", "height"))}
        | {name: np.array(column, dtype=float) for name, column in columns.items()},
        group=np.arange(len(rows)) // per_group,
        group_file=np.zeros(groups, dtype=int),
        group_in_file=np.arange(groups),
        group_start=np.array(starts),
        dataset_hash="0",
    )


def bucket(frames: int, height: int, width: int) -> Bucket:
    return Bucket(frames=frames, height=height, width=width)


def data(*buckets: Bucket, **changed: object) -> Data:
    values = {"fps": 8.0, "buckets": buckets or (bucket(9, 32, 64),), "validation_fraction": 0.0}
    return Data.model_validate(values | changed)


# ---- buckets


@pytest.mark.parametrize(
    ("frames", "source_fps", "fps", "expected"),
    [
        (25, 24.0, 8.0, 9),  # 24 intervals of 1/24 s: exactly the second that 9 frames at 8 a second span
        (24, 24.0, 8.0, 5),
        (49, 24.0, 8.0, 17),
        (500, 24.0, 8.0, 17),
        (28, 24.0, 7.0, 9),  # 8 / 7 s are 27.43 intervals and the clip has 27: half a frame may be missing
        (27, 24.0, 7.0, 5),
        (9, 8.0, 8.0, 9),
        (5, 4.0, 8.0, 9),  # some frames of a slow clip are used twice
        (12, 25.0, 8.0, None),  # 0.46 s: 5 frames need half a second
        (31, 30000 / 1001, 8.0, 9),
        (1, math.nan, 8.0, 1),
        (1, 24.0, 8.0, 1),
    ],
)
def test_a_clip_gets_the_most_frames_that_its_duration_can_fill(
    frames: int, source_fps: float, fps: float, expected: int | None
) -> None:
    buckets = [bucket(n, 64, 112) for n in (9, 17, 5)]
    buckets += [bucket(1, 64, 112)] if expected == 1 else []
    found = select(index_of([(frames, source_fps, 640, 360), (999, 24.0, 64, 36)]), data(*buckets, fps=fps))
    b = found.bucket[0]
    assert (None if b < 0 else buckets[b].frames) == expected
    assert sum(found.reasons.values()) == (expected is None)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        # the nearest aspect
        (640, 360, (128, 224)),
        (360, 640, (112, 64)),
        (500, 500, (80, 80)),
        (500, 400, (80, 80)),
        (3000, 300, (128, 224)),
        # with one aspect: the largest bucket that is not larger than the clip, or else the smallest bucket
        (1920, 1080, (128, 224)),
        (224, 128, (128, 224)),
        (222, 128, (64, 112)),
        (64, 36, (64, 112)),
        (40, 40, (80, 80)),
    ],
)
def test_a_clip_gets_the_nearest_aspect_and_then_a_size_it_can_fill(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    buckets = [bucket(9, *size) for size in ((64, 112), (128, 224), (112, 64), (80, 80))]
    found = select(index_of([(33, 24.0, width, height)]), data(*buckets))
    b = buckets[found.bucket[0]]
    assert (b.height, b.width) == expected


def test_a_short_video_is_used_as_an_image_where_there_is_a_bucket_for_images() -> None:
    found = select(index_of([(3, 24.0, 640, 360), VIDEO]), data(bucket(9, 32, 64), bucket(1, 32, 64)))
    assert found.bucket.tolist() == [1, 0]


def test_sizes_of_nearly_one_aspect_compete_by_size() -> None:
    """480x256 has aspect 1.875 and 960x544 has 1.765. A 16:9 clip smaller than 960x544 takes 480x256."""
    buckets = (bucket(9, 544, 960), bucket(9, 256, 480))
    clips = [(33, 24.0, 854, 480), (33, 24.0, 1920, 1080), (33, 24.0, 100, 56)]
    assert select(index_of(clips), data(*buckets)).bucket.tolist() == [1, 0, 1]


def test_clips_that_would_have_to_be_enlarged_are_left_out_where_that_is_asked_for() -> None:
    """Stage II would learn the blur of upscaled clips as its target."""
    buckets = (Bucket(frames=9, height=360, width=640), Bucket(frames=9, height=720, width=1280))
    rows = [(33, 24.0, 1280, 720), (33, 24.0, 1220, 686), (33, 24.0, 640, 360), (33, 24.0, 320, 180)]
    free = select(index_of(rows), Data(buckets=buckets, validation_fraction=0))
    assert free.bucket.tolist() == [1, 0, 0, 0]
    strict = select(index_of(rows), Data(buckets=buckets, validation_fraction=0, max_upscale=1.1))
    assert strict.bucket.tolist() == [1, 0, 0, -1]
    assert strict.reasons == {"data.max_upscale: smaller than its bucket by more than 1.1": 1}
    only_large = Data(buckets=buckets[1:], validation_fraction=0, max_upscale=1.1)
    assert select(index_of(rows), only_large).bucket.tolist() == [0, 0, -1, -1]


def test_every_row_that_is_left_out_has_its_reason() -> None:
    rows = [VIDEO, IMAGE, (5, 24.0, 640, 360), (33, math.nan, 640, 360), (math.nan, 24.0, 640, 360)]
    rows += [VIDEO] * 4
    speed = [0.1, 0.1, 0.1, 0.1, 0.1, math.nan, 0.01, 0.9, 0.5]
    chosen = data(where={"motion.speed": Between(min=0.05, max=0.5)})
    found = select(index_of(rows, **{"motion.speed": speed}), chosen)
    assert found.rows().tolist() == [0, 8]
    assert found.reasons == {
        "an image, and no bucket in data.buckets has 1 frame": 1,
        "too short: 9 frames at 8 a second need 1 s": 1,
        "no frame rate": 1,
        "no frames or no size": 1,
        "data.where: no motion.speed": 1,
        "data.where: motion.speed below 0.05": 1,
        "data.where: motion.speed above 0.5": 1,
    }
    table = "\n".join(found.table())
    assert "left out: 7 of 9 clips" in table
    assert all(reason in table for reason in found.reasons)


def test_nothing_to_train_on_is_an_error_that_shows_the_table() -> None:
    with pytest.raises(ValueError, match=r"(?s)data.buckets.*9 +32 x 64 +0.*3  an image, and no bucket"):
        select(index_of([IMAGE] * 3), data())


def test_fewer_clips_than_processes_is_an_error_that_shows_the_table() -> None:
    found = select(index_of([VIDEO] * 3), data())
    with pytest.raises(ValueError, match=r"(?s)no batch to 4 processes.*9 +32 x 64 +3"):
        plan_epoch(found, 1, seed=0, epoch=0, world=4)


# ---- validation


def test_held_out_clips_stay_held_out_when_clips_are_added() -> None:
    few = select(index_of([VIDEO] * 200), data(validation_fraction=0.1))
    many = select(index_of([VIDEO] * 1000), data(validation_fraction=0.1))
    assert few.held_out.tolist() == many.held_out[:200].tolist()
    assert 70 <= many.held_out.sum() <= 130
    assert not set(many.rows()) & set(many.rows(validation=True))


@pytest.mark.parametrize(("rows", "fraction", "expected"), [(4, 1e-6, 1), (3, 0.5, 0), (100, 0.0, 0)])
def test_at_least_one_is_held_out_of_four(rows: int, fraction: float, expected: int) -> None:
    found = select(index_of([VIDEO] * rows), data(validation_fraction=fraction))
    assert len(found.rows(validation=True)) == expected


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_shows_every_held_out_clip_equally_often_on_all_ranks(world: int) -> None:
    rows = [VIDEO if k % 5 else IMAGE for k in range(120)]
    found = select(index_of(rows), data(bucket(9, 32, 64), bucket(1, 32, 64), validation_fraction=0.2))
    plans = [plan_validation(found, 4, rank=r, world=world) for r in range(world)]
    assert {tuple(p.bucket) for p in plans} == {tuple(plans[0].bucket)}
    seen = [r for p in plans for r in p.rows.ravel()]
    assert set(seen) == set(found.rows(validation=True))
    assert not any(p.single_frame.any() for p in plans)


# ---- order


@st.composite
def cases(draw: st.DrawFn) -> tuple[Selection, int, int]:
    """A selection, a batch size and a world size."""
    kinds = {
        "video": (33, 24.0, 640, 360),
        "upright": (33, 24.0, 360, 640),
        "image": IMAGE,
        "useless": (2, 24.0, 640, 360),
    }
    weights = draw(
        st.sampled_from([("video",), ("video", "image"), ("video", "video", "upright", "useless")])
    )
    rows = draw(st.lists(st.sampled_from(weights), min_size=3, max_size=120))
    index = index_of([kinds["video"], *(kinds[r] for r in rows)], per_group=draw(st.integers(1, 20)))
    buckets = [bucket(9, 32, 64), bucket(9, 64, 32), *([bucket(1, 32, 64)] if "image" in weights else [])]
    chosen = data(*buckets, validation_fraction=0.1, single_frame_fraction=0.3)
    return select(index, chosen), draw(st.integers(1, 7)), draw(st.integers(1, 4))


def plans_of(found: Selection, batch: int, world: int, epoch: int = 0, seed: int = 0) -> list[Plan] | None:
    """The plans of all ranks. None if there are fewer clips than ranks."""
    if all((found.bucket[found.rows()] == k).sum() < world for k in range(len(found.data.buckets))):
        return None
    return [plan_epoch(found, batch, seed=seed, epoch=epoch, rank=r, world=world) for r in range(world)]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_ranks_agree_and_share_out_the_rows(case: tuple[Selection, int, int]) -> None:
    found, batch, world = case
    plans = plans_of(found, batch, world)
    if plans is None:
        return
    first = plans[0]
    assert len(first) >= 1
    for p in plans:
        assert p.bucket.tolist() == first.bucket.tolist()
        assert p.single_frame.tolist() == first.single_frame.tolist()
        assert p.rows.shape == (len(first), batch)
        assert (found.bucket[p.rows] == p.bucket[:, None]).all()
        assert not found.held_out[p.rows].any()
    frames = np.array([b.frames for b in found.data.buckets])[first.bucket]
    assert not first.single_frame[frames == 1].any()
    positions = [p.position(k, i) for p in plans for k in range(len(p)) for i in range(batch)]
    assert sorted(positions) == list(range(len(first) * world * batch))
    # A row occurs twice only in the single batch of a small bucket, and never on two ranks.
    for k in range(len(found.data.buckets)):
        per_rank = [p.rows[p.bucket == k] for p in plans]
        distinct = [len(set(r.ravel())) for r in per_rank]
        assert len({x for r in per_rank for x in r.ravel()}) == sum(distinct)
        if any(d < r.size for d, r in zip(distinct, per_rank, strict=True)):
            assert len(per_rank[0]) == 1
        total = (found.bucket[found.rows()] == k).sum()
        assert bool(len(per_rank[0])) == (total >= world)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 5), st.integers(0, 2**40))
def test_a_plan_is_a_function_of_its_arguments(
    case: tuple[Selection, int, int], epoch: int, seed: int
) -> None:
    found, batch, world = case
    plans, again = (plans_of(found, batch, world, epoch, seed) for _ in range(2))
    for a, b in zip(plans or [], again or [], strict=True):
        assert a.rows.tolist() == b.rows.tolist()
        assert a.group_rank.tolist() == b.group_rank.tolist()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_one_rank_holds_a_row_group_and_unfinished_batches_at_most(case: tuple[Selection, int, int]) -> None:
    found, batch, _ = case
    plan = plan_epoch(found, batch, seed=0, epoch=0)
    step = plan.group_rank[found.index.group[plan.rows]]  # (batches, batch size)
    largest = int(np.diff(found.index.group_start).max())
    for k in range(len(plan)):
        read = step[: k + 1].max()
        held = {r for r, s in zip(plan.rows[k:].ravel(), step[k:].ravel(), strict=True) if s <= read}
        assert len(held) <= largest + len(found.data.buckets) * (batch - 1) + batch


def test_two_ranks_share_one_row_group_at_most() -> None:
    found = select(index_of([VIDEO] * 1000, per_group=10), data())
    a, b = plans_of(found, 4, 2) or []
    groups = [set(found.index.group[p.rows.ravel()]) for p in (a, b)]
    assert len(groups[0] & groups[1]) <= 1
    assert abs(len(groups[0]) - len(groups[1])) <= 1


def test_epochs_seeds_and_phases_have_orders_of_their_own() -> None:
    found = select(index_of([VIDEO] * 100), data())
    orders = {
        tuple(plan_epoch(found, 4, seed=s, epoch=e, phase=p).rows.ravel())
        for s, e, p in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 0)]
    }
    assert len(orders) == 5
    groups = {tuple(plan_epoch(found, 4, seed=0, epoch=e).group_rank) for e in range(5)}
    assert len(groups) == 5


@pytest.mark.parametrize("world", [1, 3])
def test_every_row_gets_its_turn(world: int) -> None:
    """Batches of 7 leave rows out in each epoch, and the rows differ between epochs."""
    rows = [VIDEO if k % 4 else IMAGE for k in range(101)]
    found = select(index_of(rows), data(bucket(9, 32, 64), bucket(1, 32, 64)))
    seen: Counter[int] = Counter()
    for epoch in range(60):
        for plan in plans_of(found, 7, world, epoch) or []:
            seen.update(plan.rows.ravel().tolist())
    assert set(seen) == set(range(101))
    assert max(seen.values()) <= 60
    assert min(seen.values()) >= 15


def test_a_bucket_too_small_for_a_batch_is_repeated() -> None:
    found = select(index_of([VIDEO] * 3), data())
    plan = plan_epoch(found, 8, seed=0, epoch=0)
    assert plan.rows.shape == (1, 8)
    assert sorted(Counter(plan.rows.ravel().tolist()).values()) == [2, 3, 3]


def test_a_rare_bucket_is_used_wherever_its_rows_lie() -> None:
    """Only one row group holds images, and it holds two: both ranks get one image."""
    found = select(index_of([IMAGE] * 2 + [VIDEO] * 98), data(bucket(9, 32, 64), bucket(1, 32, 64)))
    for epoch in range(5):
        a, b = plans_of(found, 2, 2, epoch) or []
        assert {*a.rows[a.bucket == 1].ravel(), *b.rows[b.bucket == 1].ravel()} == {0, 1}


def test_some_batches_are_used_as_images() -> None:
    rows = [VIDEO] * 4000 + [IMAGE] * 400
    chosen = data(bucket(9, 32, 64), bucket(1, 32, 64), single_frame_fraction=0.25)
    plan = plan_epoch(select(index_of(rows, 100), chosen), 4, seed=0, epoch=0)
    videos = plan.bucket == 0
    assert 0.2 < plan.single_frame[videos].mean() < 0.3
    k = int(np.flatnonzero(plan.single_frame)[0])
    assert plan.shape(k) == bucket(1, 32, 64)
    assert plan.shape(int(np.flatnonzero(videos & ~plan.single_frame)[0])) == bucket(9, 32, 64)


def test_the_hash_says_whether_plans_are_of_the_same_rows() -> None:
    def digest(speed: float, minimum: float) -> str:
        index = index_of([VIDEO] * 3, **{"motion.speed": [0.1, speed, 0.3]})
        return select(index, data(where={"motion.speed": Between(min=minimum)})).hash

    assert digest(0.2, 0.05) == digest(0.2, 0.09) == digest(0.15, 0.05)
    assert digest(0.2, 0.05) != digest(0.01, 0.05)  # new scores remove another row
