"""The loader gives the plan's batches bit for bit, for any number of workers, ranks and stops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generation.cache import TensorCache, cache_key
from generation.config import Bucket, Data
from generation.data.loader import Batch, Loader
from generation.data.transform import Sample
from tests import render
from tests.generation import synthetic

VIDEO, IMAGE = Bucket(frames=9, height=32, width=48), Bucket(frames=1, height=32, width=48)


def data(*buckets: Bucket, **changed: Any) -> Data:
    values = {"fps": 8.0, "buckets": buckets or (VIDEO, IMAGE), "validation_fraction": 0.1, "workers": 0}
    return Data.model_validate(values | changed)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 44 videos and 12 images, in row groups of 4 rows."""
    return synthetic.write_dataset(tmp_path_factory.mktemp("d"), 44, images=12)


def digest(batch: Batch) -> tuple[Any, ...]:
    """All values of a batch that a training step uses."""
    assert batch.video is not None
    pixels = hashlib.blake2b(batch.video.numpy().tobytes()).hexdigest()
    return batch.epoch, batch.index, tuple(batch.samples), tuple(batch.video.shape), pixels


def take(loader: Loader, count: int, epoch: int = 0, index: int = 0) -> list[tuple[Any, ...]]:
    return [digest(b) for b in islice(loader.batches(epoch, index), count)]


# ---- order and resume

LIVELY = {"crop": "random", "random_start": True, "single_frame_fraction": 0.3, "motion_tag": True}


def test_workers_change_nothing(dataset: Path) -> None:
    found = []
    for workers in (0, 2):
        with Loader.open(dataset, data(workers=workers, **LIVELY), 3, seed=1) as loader:
            found.append(take(loader, len(loader.plan(0)) + 5))
    assert found[0] == found[1]
    shapes = {d[3] for d in found[0]}
    assert shapes == {(3, 3, 9, 32, 48), (3, 3, 1, 32, 48)}


def test_a_resume_goes_on_with_the_row_from_any_place_any_number_of_times(dataset: Path) -> None:
    with Loader.open(dataset, data(**LIVELY), 3, seed=1) as loader:
        length = len(loader.plan(0))
        whole = take(loader, length + 6)
    for index in range(length + 1):
        with Loader.open(dataset, data(**LIVELY), 3, seed=1) as loader:
            assert take(loader, 2, 0, index) == whole[index : index + 2]
    with Loader.open(dataset, data(**LIVELY), 3, seed=1) as loader:
        first = take(loader, 5)
    with Loader.open(dataset, data(**LIVELY), 3, seed=1) as loader:
        second = take(loader, 6, first[-1][0], first[-1][1] + 1)
    with Loader.open(dataset, data(workers=2, **LIVELY), 3, seed=1) as loader:
        third = take(loader, length - 5, second[-1][0], second[-1][1] + 1)
    assert first + second + third == whole
    with (
        Loader.open(dataset, data(**LIVELY), 3, seed=1) as loader,
        pytest.raises(ValueError, match="cannot resume at batch 17"),
    ):
        take(loader, 1, 0, length + 1)


def test_ranks_see_other_clips_and_equal_batches(dataset: Path) -> None:
    seen = []
    for rank in range(2):
        with Loader.open(dataset, data(), 3, seed=1, rank=rank, world=2) as loader:
            seen.append(list(islice(loader.batches(), len(loader.plan(0)))))
    assert [b.bucket for b in seen[0]] == [b.bucket for b in seen[1]]
    ids = [{c for b in batches for c in b.clip_ids} for batches in seen]
    assert not ids[0] & ids[1]
    positions = sorted(p for batches in seen for b in batches for p in b.positions)
    assert positions == list(range(len(seen[0]) * 6))


def test_ten_thousand_rows(tmp_path: Path) -> None:
    """Every row group is read once per epoch, every epoch has another order, and a resume is exact."""
    rng = np.random.default_rng(0)
    mp4s = [synthetic.encode(rng.integers(0, 256, (1, 64, 48, 3), np.uint8), 8, crf=6) for _ in range(16)]
    rows = [synthetic.row(k, mp4s[k % 16], 1, 8, 48, 64) for k in range(10_000)]
    synthetic.write_shards(tmp_path, rows, shards=4, rows_per_group=50)
    size = sum(p.stat().st_size for p in tmp_path.rglob("*.parquet"))

    def open_loader() -> Loader:
        bucket = Bucket(frames=1, height=64, width=48)
        return Loader.open(tmp_path, data(bucket, validation_fraction=0.02), 50, seed=3)

    with open_loader() as loader:
        length = len(loader.plan(0))
        batches = loader.batches()
        first = [digest(b) for b in islice(batches, length)]
        groups = loader.reader.groups_read
        assert set(groups.values()) == {1}
        assert len(groups) >= 199  # the last row group may hold only clips that fill no batch
        read = loader.selection.index.bytes_read + loader.reader.bytes_read
        assert 0.9 < read / size <= 1.05
        before = sum(groups.values())
        second = [digest(b) for b in islice(batches, 8)]
        assert 8 <= sum(groups.values()) - before <= 10  # a batch is about as large as a row group
        rows_used = loader.selection.rows()
    ids = [s.clip_id for d in first for s in d[2]]
    assert len(set(ids)) == len(ids) == length * 50 > len(rows_used) - 50
    assert ids[:400] != [s.clip_id for d in second for s in d[2]]
    with open_loader() as loader:
        assert take(loader, 3, 0, 117) == first[117:120]
    with open_loader() as loader:
        assert take(loader, length - 180 + 2, 0, 180) == first[180:] + second[:2]
    with open_loader() as loader:
        assert take(loader, 2, 1, 3) == second[3:5]


# ---- pixels


@pytest.mark.parametrize("fps", [8, 25, 30000 / 1001])
def test_frames_are_the_right_ones(tmp_path: Path, fps: float) -> None:
    """Each frame carries its number."""
    frames = round(fps * 2)
    pictures = np.stack(list(render.counted(render.scene(1, (128, 64), frames=frames, fps=fps))))
    rows = [synthetic.row(k, synthetic.encode(pictures, fps), frames, fps, 128, 64) for k in range(6)]
    synthetic.write_shards(tmp_path, rows)
    chosen = data(Bucket(frames=9, height=64, width=128), random_start=True, validation_fraction=0)
    with Loader.open(tmp_path, chosen, 2, seed=0) as loader:
        starts = set()
        for batch in islice(loader.batches(), 6):
            assert batch.video is not None
            for sample, video in zip(batch.samples, batch.video, strict=True):
                numbers = [render.read_counter(p) for p in video.permute(1, 2, 3, 0).numpy()]
                assert numbers == list(sample.indices)
                assert all(abs((b - a) - fps / 8) <= 1 for a, b in pairwise(numbers))
                starts.add(numbers[0])
    assert len(starts) > 3


def test_a_clip_shows_what_its_caption_says(dataset: Path) -> None:
    """Captions stay with their clips, and channels have the order red, green, blue."""
    with Loader.open(dataset, data(), 3, seed=0) as loader:
        for batch in islice(loader.batches(), 10):
            assert batch.video is not None
            for caption, video in zip(batch.captions, batch.video, strict=True):
                assert caption
                t, h, w = (n // 2 for n in video.shape[1:])
                middle = video[:, t, h - 3 : h + 3, w - 3 : w + 3].float().mean((1, 2))
                colour = torch.tensor(synthetic.COLOURS[caption.split()[2]], dtype=torch.float)
                assert torch.cosine_similarity(middle, colour, 0) > 0.98, caption


# ---- the cache


def keys(sample: Sample) -> list[str]:
    return [cache_key(sample.clip_id, sample.transform, "codec", k) for k in range(2)]


def store(cache: TensorCache, batches: Iterator[Batch], count: int) -> None:
    for batch in islice(batches, count):
        missing = [i for i, found in enumerate(batch.latents) if found is None]
        for video, i in zip(batch.video if batch.video is not None else (), missing, strict=True):
            for k, key in enumerate(batch.keys[i]):
                cache.put(key, video + k)


@pytest.mark.parametrize("workers", [0, 1])
def test_cached_clips_are_not_read_again(dataset: Path, tmp_path: Path, workers: int) -> None:
    cache = TensorCache(tmp_path)
    chosen = data(VIDEO, workers=workers, validation_fraction=0)
    with Loader.open(dataset, chosen, 2, seed=0, cache=cache, keys=keys) as loader:
        length = len(loader.plan(0))
        assert length == 22
        store(cache, loader.batches(), length)
    with Loader.open(dataset, data(VIDEO, validation_fraction=0), 2, seed=0) as loader:
        plain = list(islice(loader.batches(1), length))
    with Loader.open(dataset, chosen, 2, seed=0, cache=cache, keys=keys) as loader:
        cached = list(islice(loader.batches(1), length))
        assert loader.reader.bytes_read == 0
    for a, b in zip(plain, cached, strict=True):
        assert b.video is None
        assert a.samples == b.samples
        assert a.video is not None
        for video, found in zip(a.video, b.latents, strict=True):
            assert found is not None
            assert torch.equal(found[0], video)
            assert torch.equal(found[1], video + 1)


def test_a_damaged_cache_file_is_made_again(dataset: Path, tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    chosen = data(VIDEO, validation_fraction=0)
    with Loader.open(dataset, chosen, 2, seed=0, cache=cache, keys=keys) as loader:
        store(cache, loader.batches(), 22)
        whole = take(Loader(loader.selection, 2, seed=0), 1)
    batch_keys = keys(whole[0][2][1])
    path = tmp_path / batch_keys[1][:2] / f"{batch_keys[1]}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with Loader.open(dataset, chosen, 2, seed=0, cache=cache, keys=keys) as loader:
        batches = loader.batches()
        batch = next(batches)
        assert [found is None for found in batch.latents] == [False, True]
        assert batch.video is not None
        assert len(batch.video) == 1
        missing = keys(batch.samples[1])
        for k, key in enumerate(missing):
            cache.put(key, batch.video[0] + k)
        assert sum(loader.reader.groups_read.values()) == 1
    with Loader.open(dataset, chosen, 2, seed=0, cache=cache, keys=keys) as loader:
        assert next(loader.batches()).video is None


# ---- validation


def test_validation_is_the_same_whenever_it_is_wanted(dataset: Path) -> None:
    with Loader.open(dataset, data(workers=1, **LIVELY), 2, seed=0) as loader:
        held_out = {loader.selection.index.clip_id(r) for r in loader.selection.rows(validation=True)}
        first = [digest(b) for b in loader.validation()]
        used = {c for b in islice(loader.batches(), len(loader.plan(0))) for c in b.clip_ids}
        assert [digest(b) for b in loader.validation()] == first
    assert {s.clip_id for d in first for s in d[2]} == held_out
    assert held_out
    assert not used & held_out
    with Loader.open(dataset, data(**LIVELY), 2, seed=99) as loader:
        assert [digest(b)[2:] for b in loader.validation()] == [d[2:] for d in first]
        assert len(list(loader.validation(1))) == 1


def test_captions_may_be_missing(tmp_path: Path) -> None:
    synthetic.write_dataset(
        tmp_path, 12, change=lambda k, row: row | {"caption": [None, "", " ", "a clip"][k % 4]}
    )
    with Loader.open(tmp_path, data(VIDEO, motion_tag=True, validation_fraction=0), 4, seed=0) as loader:
        captions = [c for b in islice(loader.batches(), 3) for c in b.captions]
    assert captions.count(None) == 9
    assert captions.count("very high motion, a clip") == 3


def test_the_table_of_buckets_is_told(dataset: Path) -> None:
    with Loader.open(dataset, data(), 3, seed=0) as loader:
        assert any("9         32 x 48" in line for line in loader.table())
