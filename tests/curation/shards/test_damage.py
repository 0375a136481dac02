"""One wrong bit in a shard: no clip of it is trained on, exported, captioned or written anew unnoticed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.audit.verify import verify
from curation.captions.chosen import Captions
from curation.cluster import caption_workers
from curation.cluster.caption_workers import ClipReader
from curation.config.load import validated
from curation.shards.align import add_hashes, align
from curation.shards.export import export
from curation.store.dataset import Dataset, DatasetError
from curation.store.intact import Damaged, video_hash
from curation.store.schema import SCORE_COLUMNS, SHARDS, VIDEO_HASH
from curation.tasks.caption import AskedClip
from generation.data.shards import GroupReader, Unreadable, clips, frames, read_index
from tests.curation import dataset_fixture

SHARD = "shards/shard-00000.parquet"
Row = dict[str, Any]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return dataset_fixture.build(str(tmp_path / "d"))


def content(dataset: Dataset) -> dict[str, tuple[bytes, str | None]]:
    return {r["clip_id"]: (r["video"]["bytes"], r["caption"]) for r in dataset.rows("shards")}


def config_of(dataset: Dataset) -> Any:
    return validated(dataset.manifest()["config"])


def damage_clip(dataset: Dataset, *, launder: bool) -> str:
    """Another byte in the middle of a clip, as a wrong bit on the disk leaves it; `launder`: the shard was
    then written once more, so that the checksums of its pages are right. Returns the clip."""
    (row, *_) = dataset.read_part("shards", "shard-00000").to_pylist()
    mp4 = row["video"]["bytes"]
    wrong = mp4[: len(mp4) // 2] + bytes([mp4[len(mp4) // 2] ^ 4]) + mp4[len(mp4) // 2 + 1 :]
    if launder:
        dataset_fixture.rewrite(
            dataset,
            "shards",
            "shard-00000",
            lambda rows: [{**rows[0], "video": {"bytes": wrong, "path": None}}, *rows[1:]],
        )
    else:
        path = Path(dataset.path(SHARD))
        path.write_bytes(path.read_bytes().replace(mp4, wrong))
    return str(row["clip_id"])


def trained_on(dataset: Dataset) -> tuple[dict[str, tuple[bytes, str | None]], list[str]]:
    """What would reach a batch, and what is told of the rest."""
    try:
        index = read_index(dataset.location)
    except ValueError as error:
        return {}, [str(error)]
    reader, found, told = GroupReader(index), dict[str, tuple[bytes, str | None]](), list[str]()
    for group in range(len(index.group_file)):
        try:
            for row, mp4 in reader.read(group).items():
                if isinstance(mp4, bytes):
                    found[index.clip_id(row)] = mp4, index.caption(row)
                else:
                    told.append(str(mp4))
        except (Unreadable, ValueError) as error:
            told.append(str(error))
    return found, told


def exported(dataset: Dataset, out: Path) -> tuple[dict[str, tuple[bytes, str | None]], list[str]]:
    try:
        export(dataset, "files", str(out))
    except ValueError as error:
        return {}, [str(error)]
    texts = {p.stem: p.read_text() or None for p in out.glob("*.txt")}
    return {p.stem: (p.read_bytes(), texts[p.stem]) for p in out.glob("*.mp4")}, []


def captioned(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, tuple[bytes, str | None]], list[str]]:
    """The clips whose pictures a captioner would be shown."""
    seen: list[bytes] = []

    def looked(mp4: bytes, *_: Any) -> tuple[list[Any], list[float]]:
        seen.append(mp4)
        return [], []

    monkeypatch.setattr(caption_workers, "pictures", looked)
    config = {**dataset.manifest()["config"], "captions": {"captioner": "endpoint",
              "endpoint": {"url": "http://127.0.0.1:1/v1", "model": "m"}}}  # fmt: skip
    told, found = list[str](), dict[str, tuple[bytes, str | None]]()
    for part in dataset.parts("shards"):
        reader = ClipReader(config, dataset.location, "caption")
        for group in range(2):
            try:
                wanted: list[AskedClip] = [{"clip_id": i, "text": None, "part": None} for i in known(dataset)]
                for row in reader._clips({"shard": part, "group": group, "clips": wanted}):
                    found[row["clip_id"]] = seen[-1], None
            except Damaged as error:
                told.append(str(error))
    return found, told


def known(dataset: Dataset) -> list[str]:
    return [v["clip_id"] for v in dataset.verdicts()]


# --- one clip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("launder", [False, True], ids=["on the disk", "with right checksums"])
def test_a_damaged_clip_is_named_and_used_nowhere(
    dataset: Dataset, launder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(dataset)
    clip_id = damage_clip(dataset, launder=launder)
    name = clip_id if launder else SHARD
    reached, told = trained_on(dataset)
    assert reached.items() <= before.items()
    assert clip_id not in reached
    assert "shard-00000.parquet" in " ".join(told)
    assert any(name in problem for problem in verify(dataset))
    with pytest.raises(ValueError, match=name) as refused:
        export(dataset, "files", str(tmp_path / "out"))
    assert "remove that file, and reelmill build encodes its clips again" in str(refused.value)
    assert not (tmp_path / "out" / f"{clip_id}.mp4").exists()
    shown, told = captioned(dataset, monkeypatch)
    assert {k: v[0] for k, v in shown.items()}.items() <= {k: v[0] for k, v in before.items()}.items()
    assert any(name in line for line in told)


@pytest.mark.parametrize("launder", [False, True])
def test_rewriting_does_not_make_a_damaged_clip_sound(dataset: Dataset, launder: bool) -> None:
    """`select` with other rules: another clip of the same shard falls out."""
    clip_id = damage_clip(dataset, launder=launder)
    file = Path(dataset.path(SHARD))
    before, rows = file.read_bytes(), list(dataset.rows("clips"))
    accepted = {r["clip_id"]: {**r, "extra": '{"licence": "CC0"}'} for r in rows}
    fallen = next(i for i in pq.read_table(file, columns=["clip_id"])["clip_id"].to_pylist() if i != clip_id)
    del accepted[fallen]
    with pytest.raises(Damaged, match=clip_id if launder else SHARD):
        align(dataset, accepted, Captions.read(dataset, config_of(dataset)))
    assert file.read_bytes() == before


def test_a_clip_that_is_read_by_itself(dataset: Dataset) -> None:
    clip_id = damage_clip(dataset, launder=True)
    row = next(r for r in clips(dataset.location) if r["clip_id"] == clip_id)
    with pytest.raises(ValueError, match=f"{clip_id}: it is damaged"):
        frames(row)


def test_rewriting_carries_the_hashes_over(dataset: Dataset) -> None:
    before = {r["clip_id"]: r[VIDEO_HASH] for r in dataset.rows("shards")}
    rows = list(dataset.rows("clips", ["clip_id", *SCORE_COLUMNS]))
    accepted = {r["clip_id"]: {**r, "extra": "{}"} for r in rows if r["clip_id"] in list(before)[1:]}
    assert align(dataset, accepted, Captions.read(dataset, config_of(dataset))) > 0
    after = {r["clip_id"]: r[VIDEO_HASH] for r in dataset.rows("shards")}
    assert after.items() <= before.items()
    assert len(after) == len(before) - 1
    assert all(video_hash(mp4) == after[clip_id] for clip_id, (mp4, _) in content(dataset).items())


# --- older shards ---------------------------------------------------------------------------------


def without_hashes(dataset: Dataset) -> None:
    """As version 0.1.0 wrote them."""
    for part in dataset.parts("shards"):
        table = dataset.read_part("shards", part).drop_columns([VIDEO_HASH])
        with dataset.writing(f"shards/{part}.parquet") as file:
            pq.write_table(table, file, row_group_size=3, write_page_checksum=True, compression="none")


def test_older_shards_are_used_and_get_their_hashes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(dataset)
    without_hashes(dataset)
    assert trained_on(dataset) == (before, [])
    assert exported(dataset, tmp_path / "old") == (before, [])
    assert captioned(dataset, monkeypatch)[0].keys() == before.keys()
    add_hashes(dataset)
    assert content(dataset) == before
    for part in dataset.parts("shards"):
        assert dataset.open_part("shards", part).schema_arrow.equals(SHARDS)
    assert all(r[VIDEO_HASH] == video_hash(r["video"]["bytes"]) for r in dataset.rows("shards"))
    files = {part: dataset.read(f"shards/{part}.parquet") for part in dataset.parts("shards")}
    add_hashes(dataset)
    assert {part: dataset.read(f"shards/{part}.parquet") for part in dataset.parts("shards")} == files


def test_a_damaged_older_shard_gets_no_hashes(dataset: Dataset) -> None:
    without_hashes(dataset)
    damage_clip(dataset, launder=False)
    before = dataset.read(SHARD)
    with pytest.raises(DatasetError, match=f"row group 0 of .*{SHARD} cannot be read: .*remove that file"):
        add_hashes(dataset)
    assert dataset.read(SHARD) == before


# --- flips ----------------------------------------------------------------------------------------


def flips(
    dataset: Dataset, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], list[str]]:
    """Flip one bit of a shard at a time. Counts of what came of it; and the flips that went by unnoticed."""
    before = content(dataset)
    path, draws, counts, unnoticed = Path(dataset.path(SHARD)), random.Random(20), Counter[str](), list[str]()
    whole = path.read_bytes()
    # Not in the footer, of which a wrong bit can end the process in Arrow's own code.
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for k in range(count):
        data, bit = bytearray(whole), draws.randrange(8 * pages)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        for use, (found, told) in {
            "train": trained_on(dataset),
            "export": exported(dataset, tmp_path / f"out{k}"),
            "caption": captioned(dataset, monkeypatch),
        }.items():
            wanted: Mapping[str, Any] = before
            if use == "caption":
                wanted = {clip_id: (mp4, None) for clip_id, (mp4, _) in before.items()}
            wrong = {clip_id for clip_id in found if found[clip_id] != wanted.get(clip_id)}
            lost = wanted.keys() - found.keys()
            counts[f"{use}: " + ("noticed" if told else "unchanged")] += 1
            if wrong or (lost and not told):
                unnoticed.append(f"{use}: bit {bit}: wrong {sorted(wrong)}, lost {sorted(lost)}, {told}")
    path.write_bytes(whole)
    return counts, unnoticed


@pytest.mark.parametrize("count", [12, pytest.param(240, marks=pytest.mark.slow)])
def test_no_flipped_bit_goes_by_unnoticed(
    dataset: Dataset, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, unnoticed = flips(dataset, count, tmp_path, monkeypatch)
    print(f"{count} flips: {dict(sorted(counts.items()))}")
    assert not unnoticed
    assert counts["train: noticed"] > count / 2
