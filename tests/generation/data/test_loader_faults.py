"""Clips and shards that cannot be read are replaced, named and counted. Too many of them end the training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from generation.config import Data
from generation.data.loader import Loader
from tests.generation import synthetic
from tests.generation.data.test_loader import VIDEO, take


def data(**changed: Any) -> Data:
    values = {"fps": 8.0, "buckets": (VIDEO,), "validation_fraction": 0.0, "workers": 0}
    return Data.model_validate(values | changed)


def with_bad(folder: Path, bad: Sequence[int], clips: int = 24, **changed: Any) -> Path:
    """A dataset in which some clips are cut short."""

    def change(k: int, row: dict[str, Any]) -> dict[str, Any]:
        cut = row["video"]["bytes"][: len(row["video"]["bytes"]) // 2]
        return row | (synthetic.video(cut) | changed if k in bad else {})

    return synthetic.write_dataset(folder, clips, change=change)


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 4), (2, 1)])
def test_a_bad_clip_is_named_and_another_one_takes_its_place(
    tmp_path: Path, workers: int, batch_size: int
) -> None:
    with_bad(tmp_path, [5])
    chosen = data(workers=workers, max_bad_fraction=0.1)
    with Loader.open(tmp_path, chosen, batch_size, seed=0) as loader:
        batches = list(islice(loader.batches(), len(loader.plan(0))))
        lost = loader.selection.index.clip_id(5)
    told = [line for b in batches for line in b.bad]
    assert len(told) == 1
    assert f"clip {lost} of {tmp_path}/shards/shard-00000.parquet: " in told[0]
    ids = [c for b in batches for c in b.clip_ids]
    assert lost not in ids
    assert len(ids) == 24
    (batch,) = (b for b in batches if b.bad)
    assert told[0].rsplit("; ", 1)[1].split()[0] in batch.clip_ids
    assert batch.video is not None
    assert len(batch.video) == batch_size
    assert len({p for b in batches for p in b.positions}) == 24


def test_what_takes_the_place_is_drawn_by_the_plan(tmp_path: Path) -> None:
    with_bad(tmp_path, [2, 5, 11])
    chosen = data(max_bad_fraction=0.5, random_start=True)
    for batch_size in (1, 4):
        with Loader.open(tmp_path, chosen, batch_size, seed=0) as loader:
            whole = take(loader, 24 // batch_size)
        with Loader.open(tmp_path, chosen.model_copy(update={"workers": 1}), batch_size, seed=0) as loader:
            assert take(loader, 3) == whole[:3]
        with Loader.open(tmp_path, chosen, batch_size, seed=0) as loader:
            assert take(loader, 4, 0, 2) == whole[2:6]


def test_too_many_bad_clips_end_the_training_and_are_named(tmp_path: Path) -> None:
    with_bad(tmp_path, [3, 9, 10])
    with Loader.open(tmp_path, data(max_bad_fraction=0.1), 4, seed=0) as loader:
        ids = [loader.selection.index.clip_id(k) for k in (3, 9, 10)]
        with pytest.raises(ValueError, match=r"3 of 24 clips of epoch 0.*max_bad_fraction=0.1") as error:
            list(islice(loader.batches(), 6))
    assert all(i in str(error.value) for i in ids)
    assert "shard-00000.parquet" in str(error.value)


def test_a_bucket_without_a_good_clip_ends_the_training(tmp_path: Path) -> None:
    with_bad(tmp_path, range(8), clips=8)
    chosen = data(max_bad_fraction=1.0)
    with (
        Loader.open(tmp_path, chosen, 2, seed=0) as loader,
        pytest.raises(ValueError, match="9 clips of a bucket were tried, and none"),
    ):
        next(loader.batches())


def test_a_row_that_lies_is_a_bad_row(tmp_path: Path) -> None:
    def change(k: int, row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"frames": 18} if k == 1 else {"width": 66} if k == 2 else {})

    synthetic.write_dataset(tmp_path, 24, change=change)
    with Loader.open(tmp_path, data(max_bad_fraction=0.2), 4, seed=0) as loader:
        told = sorted(line for b in islice(loader.batches(), 6) for line in b.bad)
    assert len(told) == 2
    assert any("17 frames, its row says 18" in line for line in told)
    assert any("64x48, its row says 66x48" in line for line in told)


def test_a_shard_that_went_away_costs_its_rows(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 24, shards=4)
    chosen = data(max_bad_fraction=0.5)
    with Loader.open(tmp_path, chosen, 4, seed=0) as loader:
        (tmp_path / "shards" / "shard-00001.parquet").unlink()
        told = [line for b in islice(loader.batches(), 6) for line in b.bad]
    assert len(told) == 6
    assert all("shard-00001.parquet" in line for line in told)


def test_shards_that_changed_are_refused(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 24)
    with Loader.open(tmp_path, data(workers=1), 4, seed=0) as loader:
        synthetic.write_dataset(tmp_path, 24, seed=1)
        with pytest.raises(ValueError, match="has changed since training began"):
            next(loader.batches())


def test_a_bad_clip_counts_once_an_epoch_and_not_at_validation(tmp_path: Path) -> None:
    with_bad(tmp_path, range(0, 24, 2))
    chosen = data(validation_fraction=0.3, max_bad_fraction=0.7)
    with Loader.open(tmp_path, chosen, 3, seed=0) as loader:
        held_out = loader.selection.rows(validation=True)
        assert any(row % 2 == 0 for row in held_out)
        assert any(row % 2 for row in held_out)
        for _ in range(20):
            told = [line for b in loader.validation() for line in b.bad]
            assert told
        for _ in range(5):  # a loader that starts again several times
            list(islice(loader.batches(), len(loader.plan(0))))


def test_validation_without_clips_is_empty(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 8)
    with Loader.open(tmp_path, data(), 3, seed=0) as loader:
        assert list(loader.validation()) == []
