"""Real clips for evaluation: which clips are chosen, and that they equal those of the dataset."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from generation.config import Bucket, Data
from generation.data.plan import open_selection
from generation.data.shards import clips, frames
from generation.evaluate import real_clips
from generation.evaluate.real_clips import Clips
from generation.media import from_uint8
from tests.generation import synthetic

VIDEO = Bucket(frames=5, height=16, width=24)
IMAGE = Bucket(frames=1, height=16, width=24)
Which = Literal["trained on", "held out", "all"]


def data(*buckets: Bucket, **changed: Any) -> Data:
    values = {"fps": 8.0, "buckets": buckets or (VIDEO,), "validation_fraction": 0.25, "workers": 0}
    return Data.model_validate(values | changed)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of 20 videos of 13 frames, 24 x 16, and 4 images."""
    folder = tmp_path_factory.mktemp("d")
    return str(synthetic.write_dataset(folder, 20, images=4, frames=13, width=24, height=16))


def held_out(dataset: str, settings: Data) -> set[str]:
    """The ids of the clips that training holds out."""
    selection = open_selection(dataset, settings)
    return {selection.index.clip_id(int(row)) for row in selection.rows(validation=True)}


def load(dataset: str, which: Which, limit: int = 100, **changed: Any) -> Clips:
    return real_clips.load(dataset, data(**changed), VIDEO, which=which, limit=limit)


def videos(dataset: str) -> dict[str, dict[str, Any]]:
    """The rows of videos, by id."""
    return {row["clip_id"]: row for row in clips(dataset) if row["frames"] > 1}


def test_each_has_its_clips(dataset: str) -> None:
    apart = held_out(dataset, data())
    every = set(videos(dataset))
    assert 1 < len(apart) < 10
    assert len(every) == 20
    for which, expected in (("held out", apart), ("all", every)):
        found = load(dataset, which)
        assert len(found.ids) == len(set(found.ids)) == len(found) == len(expected)
        assert set(found.ids) == expected
    seen = load(dataset, "trained on", limit=len(every) - len(apart))
    assert len(seen.ids) == len(set(seen.ids))
    assert set(seen.ids) == every - apart


@pytest.mark.parametrize("which", ["trained on", "held out", "all"])
def test_shape_range_and_captions(dataset: str, which: Which) -> None:
    found = load(dataset, which)
    rows = videos(dataset)
    assert found.video.shape == (len(found), 3, 5, 16, 24)
    assert found.video.dtype == torch.float32
    assert -1 <= float(found.video.min()) < -0.5
    assert 0.5 < float(found.video.max()) <= 1
    assert found.captions == [rows[i]["caption"] for i in found.ids]
    assert len(set(found.captions)) > 2


@pytest.mark.parametrize("which", ["held out", "all"])
@pytest.mark.parametrize(
    "changed", [{}, {"random_start": True, "crop": "random", "single_frame_fraction": 1}]
)
def test_clips_are_their_middle(dataset: str, which: Which, changed: dict[str, Any]) -> None:
    """Frames 4 to 8 of 13 are read, whatever training does."""
    found = load(dataset, which, **changed)
    for video, clip_id in zip(found.video, found.ids, strict=True):
        assert torch.equal(video, from_uint8(frames(videos(dataset)[clip_id])[4:9]))


def test_random_windows_are_the_middle_one(dataset: str) -> None:
    bucket = Bucket(frames=5, height=16, width=16)
    found = real_clips.load(dataset, data(crop="random"), bucket, which="all", limit=3)
    for video, clip_id in zip(found.video, found.ids, strict=True):
        assert torch.equal(video, from_uint8(frames(videos(dataset)[clip_id])[4:9, :, 4:20]))


def test_what_is_trained_on_comes_again_with_other_starts(dataset: str) -> None:
    found = load(dataset, "trained on", limit=90)
    assert len(found) == 90
    rows = videos(dataset)
    starts = defaultdict(set)
    for video, clip_id in zip(found.video, found.ids, strict=True):
        whole = from_uint8(frames(rows[clip_id]))
        starts[clip_id].add(next(k for k in range(9) if torch.equal(video, whole[:, k : k + 5])))
    assert all(len(s) > 1 for s in starts.values())
    assert set.union(*starts.values()) == set(range(9))


@pytest.mark.parametrize("which", ["trained on", "held out", "all"])
def test_the_same_again(dataset: str, which: Which) -> None:
    one, two = (load(dataset, which, limit=6) for _ in range(2))
    assert one.ids == two.ids
    assert one.captions == two.captions
    assert torch.equal(one.video, two.video)


def test_a_seed_changes_the_clips_of_training_alone(dataset: str) -> None:
    def ids(which: Which, seed: int) -> list[str]:
        return real_clips.load(dataset, data(), VIDEO, which=which, limit=8, seed=seed).ids

    assert ids("trained on", 0) != ids("trained on", 1)
    assert ids("held out", 0) == ids("held out", 1)
    assert ids("all", 0) == ids("all", 1)


@pytest.mark.parametrize("which", ["trained on", "held out", "all"])
def test_no_more_than_the_limit(dataset: str, which: Which) -> None:
    assert len(load(dataset, which, limit=3)) == 3


def test_nothing_held_out_is_an_error_with_a_remedy(dataset: str) -> None:
    with pytest.raises(ValueError, match=r"no clip is held out; .*--held-out.*data\.validation_fraction"):
        load(dataset, "held out", validation_fraction=0)
    assert len(load(dataset, "all", validation_fraction=0)) == 20


def test_held_out_is_what_training_held_out(tmp_path: Path) -> None:
    """Of few clips, the first by hash over all buckets is held out.

    If this clip is an image, all videos are training clips. Videos alone would hold a video out.
    """
    folder = str(synthetic.write_dataset(tmp_path, 6, images=12, frames=5, width=24, height=16, seed=1))
    settings = data(VIDEO, IMAGE, validation_fraction=0.001)
    (apart,) = held_out(folder, settings)
    assert apart not in videos(folder)
    with pytest.raises(ValueError, match="no clip is held out"):
        real_clips.load(folder, settings, VIDEO, which="held out", limit=9)
    seen = real_clips.load(folder, settings, VIDEO, which="trained on", limit=6)
    assert set(seen.ids) == set(videos(folder))


def test_a_dataset_without_clips_of_the_shape_is_an_error(dataset: str) -> None:
    with pytest.raises(ValueError, match="no clip to train on"):
        real_clips.load(dataset, data(), Bucket(frames=49, height=16, width=24), which="all", limit=3)
