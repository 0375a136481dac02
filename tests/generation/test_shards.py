"""The contract between curation and training: what one writes, the other reads, frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.config import load_config
from curation.dataset import SCORE_COLUMNS, Dataset
from curation.shards import shard_row, write_shard
from generation.shards import clips, frames, shard_files
from tests import render
from tests.conftest import CHEAP
from tests.curation.helpers import cut, decode, measure


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of counted clips, as the cutter writes them."""
    folder = tmp_path_factory.mktemp("d")
    config = load_config(
        CHEAP, ["spans.min_seconds=1", "spans.max_seconds=1", "shards.row_group_mb=0.05", "cut.crf=10"]
    )
    source = folder / "a.mp4"
    render.write_video(source, render.counted(render.scene(1, (320, 192), frames=150, fps=25)), fps=25)
    found, _ = measure(source, config)
    rows = []
    for clip, (encoded, mp4) in zip(found, cut(source, found, config), strict=True):
        scores = dict.fromkeys(SCORE_COLUMNS, None) | clip["scores"]
        row = {**clip, **scores, "source_id": "s", "uri": str(source)}
        rows.append(shard_row(row, encoded, mp4, [], None, config.hash()))
    out = Dataset(str(folder / "out"))
    write_shard(out, "shard-00000", rows[:4], config)
    write_shard(out, "shard-00001", rows[4:], config)
    return Path(out.location)


def test_every_row_decodes_to_the_frames_that_it_names(dataset: Path) -> None:
    seen: list[int] = []
    for row in clips(dataset):
        pictures = frames(row)
        assert pictures.shape == (row["frames"], row["height"], row["width"], 3)
        numbers = [render.read_counter(p) for p in pictures]
        first = round(row["start_s"] * 25)
        assert numbers == list(range(first, first + row["frames"]))
        seen += numbers
        # decord against PyAV, which wrote it
        assert np.abs(pictures.astype(int) - np.stack(decode(row["video"]["bytes"]))).mean() < 1.0
        some = frames(row, [row["frames"] - 1, 0])
        assert [render.read_counter(p) for p in some] == [numbers[-1], numbers[0]]
    assert len(seen) == len(set(seen)) >= 100


def test_row_groups_are_shuffled_by_the_seed_and_nothing_is_lost(dataset: Path) -> None:
    plain = [r["clip_id"] for r in clips(dataset, ["clip_id"])]
    orders = {tuple(r["clip_id"] for r in clips(dataset, ["clip_id"], seed=s)) for s in range(8)}
    assert len(orders) > 1
    assert all(sorted(o) == sorted(plain) for o in orders)
    again = [r["clip_id"] for r in clips(dataset, ["clip_id"], seed=3)]
    assert again == [r["clip_id"] for r in clips(dataset, ["clip_id"], seed=3)]


def test_a_row_that_lies_about_its_clip_is_refused(dataset: Path) -> None:
    row = next(clips(dataset))
    with pytest.raises(ValueError, match="its row says"):
        frames({**row, "frames": row["frames"] + 1})
    with pytest.raises(ValueError, match="its row says"):
        frames({**row, "width": row["width"] + 2})


def test_a_folder_without_shards_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shards"):
        shard_files(tmp_path)
