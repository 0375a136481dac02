"""The contract between curation and training: training reads exactly the frames that curation writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.config.load import load_config
from curation.decode.answers import EncodedAnswer
from curation.shards.write import shard_row, write_shard
from curation.store.dataset import Dataset
from curation.store.schema import SCORE_COLUMNS
from curation.tasks.cut import CutClip
from generation.config import Data
from generation.data.plan import open_selection
from generation.data.shards import (
    GroupReader,
    Unreadable,
    _by_av,
    _by_decord,
    clips,
    frames,
    read_index,
    shard_files,
)
from tests import render
from tests.conftest import CHEAP
from tests.curation.helpers import cut, decode, measure
from tests.generation import synthetic


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of clips with numbered frames, as the cutter writes them."""
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
        named = {"source_id": "s", "uri": str(source), "scores": scores}
        to_cut = {**clip, **named, "caption": None, "captions": [], "extra": None}
        shape = {k: encoded[k] for k in ("width", "height", "fps", "frames", "duration_s")}
        answer = EncodedAnswer(clip_id=clip["clip_id"], mp4=mp4, **shape)
        rows.append(shard_row(cast(CutClip, to_cut), answer, config.hash()))
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
        # decord compared with PyAV, which wrote the clip
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


def test_decord_and_pyav_give_the_same_frames_where_both_can() -> None:
    (what,) = synthetic.contents(1)
    mp4 = synthetic.encode(synthetic.render_clip(what, 9, 64, 48, 8), 8)
    counts, found = zip(_by_decord(mp4, [0, 5, 8]), _by_av(mp4, [0, 5, 8]), strict=True)
    assert counts == (9, 9)
    assert found[0].shape == (3, 48, 64, 3)
    assert np.abs(found[0].astype(int) - found[1]).max() <= 2


@pytest.mark.parametrize("width", [16, 24, 32, 48, 80, 96, 112, 144, 160, 240])
def test_narrow_clips_are_decoded(width: int) -> None:
    """decord cannot read clips of some widths."""
    (what,) = synthetic.contents(1)
    pictures = synthetic.render_clip(what, 5, width, 64, 8)
    row = synthetic.row(0, synthetic.encode(pictures, 8), 5, 8, width, 64)
    found = frames(row, [4, 0])
    assert np.abs(found.astype(int) - pictures[[4, 0]]).mean() < 6  # chroma is stored at half size


# ---- the index


def test_the_index_is_the_columns(dataset: Path) -> None:
    index = read_index(dataset, ["motion.speed", "duration_s"])
    rows = list(clips(dataset))
    assert [index.clip_id(k) for k in range(len(index))] == [r["clip_id"] for r in rows]
    for name in ("frames", "fps", "width", "height", "motion.speed", "duration_s"):
        expected = np.array([r[name] for r in rows], dtype=float)
        assert np.array_equal(index.numbers[name], expected, equal_nan=True)
    assert [Path(index.file(k)).name for k in (0, len(index) - 1)] == [
        "shard-00000.parquet",
        "shard-00001.parquet",
    ]
    assert len(index.group_start) == len(index.group_file) + 1 >= 5
    assert index.group_start[-1] == len(index)


def test_the_index_reads_no_video(dataset: Path) -> None:
    size = sum(p.stat().st_size for p in shard_files(dataset))
    assert read_index(dataset).bytes_read < 0.2 * size + 2 * 65536  # the footer of each file


def test_nulls_and_images(tmp_path: Path) -> None:
    synthetic.write_dataset(
        tmp_path, 3, images=3, change=lambda k, r: r | {"caption": None if k == 1 else "c"}
    )
    index = read_index(tmp_path, ["motion.speed"])
    still = index.numbers["frames"] == 1
    assert still.sum() == 3
    assert np.isnan(index.numbers["fps"][still]).all()
    assert np.isnan(index.numbers["motion.speed"][still]).all()
    assert not np.isnan(index.numbers["fps"][~still]).any()
    assert [index.caption(k) for k in range(3)] == ["c", None, "c"]


def test_the_hash_is_of_ids_captions_sizes_and_order(tmp_path: Path) -> None:
    def digest(name: str, order: int = 1, per_group: int = 4, **changed: object) -> str:
        rows = [synthetic.row(k, b"mp4 %d" % k, 17, 8, 64, 48) for k in range(8)]
        rows[2] |= changed
        synthetic.write_shards(tmp_path / name, rows[::order], 2, per_group)
        return read_index(tmp_path / name).dataset_hash

    first = digest("a")
    assert digest("b") == first  # the location does not count
    assert digest("c", **{"motion.speed": 0.9, "uri": "other"}) == first
    others = [
        digest("d", clip_id="x"),
        digest("e", caption="x"),
        digest("f", frames=18),
        digest("g", width=66),
        digest("h", order=-1),
        digest("i", per_group=3),
    ]
    assert len({first, *others}) == 7


def test_a_misspelt_column_is_answered_with_what_there_is(dataset: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no numeric column 'motion.sped'; the columns are motion.speed, .*fps, .*width"
    ):
        read_index(dataset, ["motion.sped"])


def test_what_was_not_measured_is_told_with_its_key_and_what_was(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 4)
    at_least = {"min": 1.0}
    with pytest.raises(
        ValueError,
        match=r"data\.where: quality\.brightness was not measured in .*; the .* are aesthetics\.mean, ",
    ) as caught:
        open_selection(str(tmp_path), Data.model_validate({"where": {"quality.brightness": at_least}}))
    there = str(caught.value).partition("columns are ")[2].split(", ")
    assert {"motion.speed", "fps", "duration_s"} <= set(there)
    assert [name for name in there if name in SCORE_COLUMNS] == ["aesthetics.mean", "motion.speed"]
    for path in (tmp_path / "shards").glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns("motion.speed"), path)
    for key, value in {"motion_tag": True, "where": {"motion.speed": at_least}}.items():
        with pytest.raises(ValueError, match=rf"data\.{key}: .* no numeric column 'motion\.speed'; the"):
            open_selection(str(tmp_path), Data.model_validate({key: value}))


def test_a_column_that_one_shard_lacks_is_null_there(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 8)
    path = tmp_path / "shards" / "shard-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns("motion.speed"), path)
    speed = read_index(tmp_path, ["motion.speed"]).numbers["motion.speed"]
    assert np.isnan(speed).tolist() == [False] * 4 + [True] * 4


def test_files_that_are_no_shards_say_so(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 4)
    with pytest.raises(ValueError, match="no shards"):
        read_index(tmp_path / "elsewhere")
    other = tmp_path / "shards" / "z.parquet"
    other.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"z.parquet cannot be read"):
        read_index(tmp_path)
    pq.write_table(pa.table({"clip_id": ["a"], "caption": ["b"]}), other)
    with pytest.raises(
        ValueError, match=r"z.parquet is not a shard of reelmill: it has no column video, frames"
    ):
        read_index(tmp_path)
    other.rename(other.with_name("_z.parquet"))  # unfinished files do not count
    assert len(read_index(tmp_path)) == 4


# ---- row groups


def test_a_row_group_is_read_whole_and_nothing_else(dataset: Path) -> None:
    index = read_index(dataset)
    reader = GroupReader(index)
    rows = list(clips(dataset))
    seen = {}
    for group in range(len(index.group_file)):
        seen |= reader.read(group)
    assert seen == {k: r["video"]["bytes"] for k, r in enumerate(rows)}
    metadata = [pq.ParquetFile(p).metadata for p in shard_files(dataset)]
    columns = sum(
        m.row_group(g).column(c).total_compressed_size
        for m in metadata
        for g in range(m.num_row_groups)
        for c in range(m.num_columns)
        if m.row_group(g).column(c).path_in_schema in ("clip_id", "video.bytes", "video_hash")
    )
    footers = sum(min(65536, p.stat().st_size) for p in shard_files(dataset))
    assert columns < reader.bytes_read <= columns + footers
    assert reader.read(1, []) == {}
    assert reader.groups_read[1] == 2


def test_a_row_group_that_cannot_be_read(dataset: Path, tmp_path: Path) -> None:
    for path in shard_files(dataset):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes())
    index = read_index(tmp_path)
    reader = GroupReader(index)
    reader.read(0)
    path = shard_files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:1000])  # without its end; the footer in memory is outdated
    with pytest.raises(Unreadable, match=r"row group 0 of .*shard-00000.parquet cannot be read"):
        reader.read(0)
    path.unlink()
    with pytest.raises(Unreadable, match="cannot be read"):
        reader.read(1)
    reader.read(len(index.group_file) - 1)


def test_an_address_is_read_as_a_folder_is(dataset: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shard_files(dataset):
        memory.pipe_file(f"/bucket/d/shards/{path.name}", path.read_bytes())
    try:
        there, here = read_index("memory://bucket/d"), read_index(dataset)
        assert there.dataset_hash == here.dataset_hash
        assert GroupReader(there).read(1) == GroupReader(here).read(1)
    finally:
        memory.rm("/bucket", recursive=True)


def test_pytorch_may_be_imported_after_reading_clips(tmp_path: Path) -> None:
    """decord loads a CUDA library that crashes a process in PyTorch's first matrix product on the CPU."""
    synthetic.write_dataset(tmp_path, 2)
    script = (
        "from generation.data.shards import clips, frames\n"
        f"print(frames(next(clips({str(tmp_path)!r})), [0]).shape)\n"
        "import torch\n"
        "print(float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1] == str(300.0**3)
