"""The whole pipeline on Ray: invariants I1, I3, I4, resume, duplicates, broken sources, sidecars, images."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curation import pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.cluster import session
from curation.commands import select, status
from curation.config.load import load_config
from curation.config.schema import Config
from curation.driver import manifest
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.verdicts.todo import find_work
from tests import render
from tests.conftest import CHEAP

SETTINGS = [
    "spans.min_seconds=1",
    "spans.max_seconds=2",
    "spans.trim_seconds=0.1",
    "rules.duration.seconds.min=1",
    "rules.motion.speed.max=0.3",
    "cut.preset=ultrafast",
    "run.cut_cpus=0.5",
    "run.measure_cpus=0.5",
]


def config(*overrides: str) -> Config:
    return load_config(CHEAP, [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sources: three good videos, a copy of one, a still image, and one that is no video."""
    folder = tmp_path_factory.mktemp("footage")
    render.write_video(folder / "a.mp4", render.scenes([50, 60], (320, 180), fps=25), fps=25)
    render.write_video(folder / "b.mkv", render.scenes([70], (256, 256), fps=20, seed=5), fps=20)
    render.write_video(folder / "fast.mp4", render.pan(3, (320, 180), fps=25, seconds=2.4, speed=0.6), fps=25)
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    Image.fromarray(render.texture(4, 200, 300)).save(folder / "still.png")
    (folder / "torn.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(1000))
    (folder / "a.vtt").write_text(
        "WEBVTT\n\n00:00.000 --> 00:01.900\nfirst\n\n00:02.000 --> 00:04.400\n<b>second</b>\n"
    )
    (folder / "b.txt").write_text("a text\nof two lines\n")
    (folder / "notes.pdf").write_bytes(b"not media")
    return folder


def run(folder: Path | list[str], out: Path, settings: Config) -> Dataset:
    dataset = Dataset(str(out))
    named = folder if isinstance(folder, list) else [str(folder)]
    pipeline.build(dataset, list_sources(named), settings, Progress())
    return dataset


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Dataset:
    return run(sources, tmp_path_factory.mktemp("dataset") / "d", config())


@pytest.fixture
def copy(built: Dataset, tmp_path: Path) -> Dataset:
    """The built dataset, for a test that changes it."""
    shutil.copytree(built.location, tmp_path / "d")
    return Dataset(str(tmp_path / "d"))


def rows(dataset: Dataset, table: str) -> dict[str, dict[str, Any]]:
    key = "source_id" if table == "sources" else "clip_id"
    return {r[key]: r for r in dataset.rows(table)}


def test_everything_is_accounted_for(built: Dataset) -> None:
    assert verify(built, decode=True) == []
    counts = accounting(built)
    assert counts.check() == []
    assert (counts.sources, counts.measured, counts.failed_sources, counts.duplicates) == (6, 5, 1, 1)
    by_name = {Path(s["uri"]).name: s for s in built.rows("sources")}
    assert by_name["copy.mp4"]["duplicate_of"] == by_name["a.mp4"]["source_id"]
    assert by_name["copy.mp4"]["clips"] == 0
    torn = by_name["torn.mp4"]
    assert (torn["status"], torn["stage"]) == ("failed", "open")
    assert torn["message"]
    verdicts = rows(built, "clips")
    reasons = {v["clip_id"]: v["reason"] for v in built.verdicts()}
    fast = [i for i, c in verdicts.items() if c["uri"].endswith("fast.mp4")]
    assert {reasons[i] for i in fast} == {"motion.speed"}


def test_captions_are_joined_by_clip_and_time(built: Dataset) -> None:
    found: dict[str, list[str]] = {}
    for row in sorted(built.rows("shards"), key=lambda r: (r["uri"], r["start_s"])):
        found.setdefault(Path(row["uri"]).name, []).append(row["caption"])
        assert [c["text"] for c in row["captions"]] == ([row["caption"]] if row["caption"] else [])
    assert found["a.mp4"] == ["first", "second", "second"] or found["a.mp4"] == ["first", "second"]
    assert set(found["b.mkv"]) == {"a text of two lines"}
    assert found["still.png"] == [None]


def test_a_still_image_is_trained_on_too(built: Dataset) -> None:
    (row,) = (r for r in built.rows("shards") if r["uri"].endswith("still.png"))
    assert (row["frames"], row["fps"], row["duration_s"], row["motion.speed"]) == (1, None, 0.0, None)


def test_the_same_inputs_give_the_same_dataset(
    built: Dataset, sources: Path, tmp_path: Path, ray_session: None
) -> None:
    again = run(sources, tmp_path / "again", config())
    for table in ("clips", "shards"):
        first, second = list(built.rows(table)), list(again.rows(table))
        assert [r["clip_id"] for r in first] == [r["clip_id"] for r in second]
        assert first == second  # every score, and every byte of every clip
    assert list(built.verdicts()) == list(again.verdicts())


def test_a_second_build_does_nothing(copy: Dataset, sources: Path, ray_session: None) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(copy.location).rglob("*.parquet")}
    with _Counter() as counter:
        todo = pipeline.build(copy, list_sources([str(sources)]), config(), Progress())
    assert todo.sources == 0
    assert counter.operations == []
    after = {p: p.stat().st_mtime_ns for p in Path(copy.location).rglob("*.parquet")}
    del before[Path(copy.path("verdicts.parquet"))], after[Path(copy.path("verdicts.parquet"))]
    assert after == before
    assert status.waiting(copy, config()) == ""


def test_new_sources_are_added_and_old_ones_stay(
    copy: Dataset, sources: Path, tmp_path: Path, ray_session: None
) -> None:
    render.write_video(tmp_path / "new.mp4", render.scenes([40], (160, 96), fps=20, seed=9), fps=20)
    shards = {p: copy.read(f"shards/{p}.parquet") for p in copy.parts("shards")}
    listed = list_sources([str(sources / "a.mp4"), str(tmp_path / "new.mp4")])
    todo = pipeline.build(copy, listed, config(), Progress())
    assert [s.uri for group in todo.parts.values() for s in group] == [str(tmp_path / "new.mp4")]
    assert len(todo.unlisted) == 5
    assert accounting(copy).sources == 7
    assert verify(copy) == []
    for name, data in shards.items():
        assert copy.read(f"shards/{name}.parquet") == data


def test_select_runs_no_scorer_and_cuts_only_new_clips(copy: Dataset, ray_session: None) -> None:
    before = rows(copy, "shards")
    tighter = config("rules.resolution.short_side.min=190")
    with _Counter() as counter:
        select.reselect(copy, tighter, Progress(), _no_session)
    kept = rows(copy, "shards")
    assert counter.operations == []  # nothing to cut: rows only went
    assert 0 < len(kept) < len(before)
    assert all(kept[i] == before[i] for i in kept)
    assert verify(copy) == []

    wider = config("rules.motion.speed.max=2.0")
    cut_before = set(kept)
    with _Counter() as counter:
        select.reselect(copy, wider, Progress(), lambda: session.session(wider))
    now = rows(copy, "shards")
    assert set(now) > set(before)
    assert verify(copy, decode=True) == []
    (task,) = counter.cut_tasks
    assert {c["clip_id"] for c in task["clips"]} == set(now) - cut_before


def test_changed_spans_measure_again_and_changed_rules_do_not(
    copy: Dataset, sources: Path, ray_session: None
) -> None:
    listed = list_sources([str(sources)])
    assert find_work(copy, listed, config("rules.motion.speed.max=0.9")).sources == 0
    todo = find_work(copy, listed, config("spans.max_seconds=1.5"))
    assert set(todo.reasons.values()) == {"shots or spans changed"}
    assert todo.sources == 4  # not the torn one and not the copy
    todo = find_work(copy, listed, config("filters.quality.frames=3"))
    assert {r.split(" ")[0] for r in todo.reasons.values()} == {"quality"}
    pipeline.build(copy, listed, config("spans.max_seconds=1.5"), Progress())
    assert verify(copy, decode=True) == []
    assert max(c["end_s"] - c["start_s"] for c in copy.rows("clips")) <= 1.5 + 1e-6


def test_changed_encoder_settings_cut_again_and_measure_nothing(
    copy: Dataset, sources: Path, ray_session: None
) -> None:
    before = rows(copy, "shards")
    with _Counter() as counter:
        pipeline.build(copy, list_sources([str(sources)]), config("cut.max_side=128"), Progress())
    after = rows(copy, "shards")
    assert counter.operations == ["cut"]
    assert set(after) == set(before)
    assert all(max(r["width"], r["height"]) == 128 for r in after.values())
    assert verify(copy, decode=True) == []


def test_a_build_that_was_cut_short_continues_with_the_same_shards(
    built: Dataset, sources: Path, tmp_path: Path, ray_session: None
) -> None:
    """As a kill leaves it: a plan of several shards of which one is missing, and litter."""
    settings = config("shards.target_mb=0.05")
    whole = run(sources, tmp_path / "whole", settings)
    names = whole.parts("shards")
    assert len(names) >= 3
    shutil.copytree(whole.location, tmp_path / "cut")
    torn = Dataset(str(tmp_path / "cut"))
    plan = {
        "cut_hash": settings.cut_hash(),
        "shards": [
            {"name": n, "clip_ids": sorted(whole.read_part("shards", n, ["clip_id"])["clip_id"].to_pylist())}
            for n in names
        ],
    }
    torn.write("shards/_plan.json", json.dumps(plan).encode())
    torn.remove(f"shards/{names[1]}.parquet")
    Path(torn.path("shards/_tmp-1234-x.parquet")).write_bytes(b"half")
    part = torn.parts("sources")[0]
    torn.remove(f"sources/{part}.parquet")  # its clips were written, its commit was not
    again = run(sources, tmp_path / "cut", settings)
    assert verify(again) == []
    assert rows(again, "clips") == rows(whole, "clips")
    for name in names:
        first = whole.read_part("shards", name, ["clip_id", "caption"]).to_pylist()
        assert again.read_part("shards", name, ["clip_id", "caption"]).to_pylist() == first


def test_a_source_that_vanishes_before_the_cut_is_a_failed_clip(
    sources: Path, tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    for name in ("a.mp4", "b.mkv"):
        shutil.copy(sources / name, folder / name)
    dataset = Dataset(str(tmp_path / "d"))
    settings = config()
    listed = list_sources([str(folder)])
    manifest.write_manifest(dataset, settings)
    todo = find_work(dataset, listed, settings)
    progress = Progress()
    progress.start_measure(todo.sources, 0)
    pipeline.measure(dataset, todo, settings, progress)
    (folder / "b.mkv").unlink()
    pipeline.cut(dataset, pipeline.select(dataset, settings), settings, progress)
    assert re.search(
        rf"failed: cut: {folder}/b\.mkv at [\d.]+ s: FileNotFoundError: ", capsys.readouterr().err
    )
    assert "did not come to its end" in status.waiting(dataset, settings)
    counts = accounting(dataset)
    assert counts.failed_clips > 0
    assert counts.accepted > 0
    assert counts.check() == []
    assert verify(dataset) == []
    assert {f["stage"] for f in dataset.rows("failures")} == {"cut"}


def test_plain_pyarrow_and_datasets_read_the_shards(built: Dataset, tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet as pq

    files = [built.address(f"shards/{p}.parquet") for p in built.parts("shards")]
    plain = [r for f in files for r in pq.read_table(f).to_pylist()]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["video"], datasets.Video)
    raw = loaded.cast_column("video", datasets.Video(decode=False))
    assert [r["clip_id"] for r in raw] == [r["clip_id"] for r in plain]
    assert [r["video"]["bytes"] for r in raw] == [r["video"]["bytes"] for r in plain]
    assert [r["captions"] for r in raw] == [r["captions"] for r in plain]


def test_datasets_decodes_the_shards_where_torchcodec_imports(built: Dataset, tmp_path: Path) -> None:
    try:
        from torchcodec.decoders import VideoDecoder

        VideoDecoder(next(built.rows("shards"))["video"]["bytes"])
    except (ImportError, RuntimeError, OSError) as error:  # it needs FFmpeg's libraries on the system
        pytest.skip(f"torchcodec does not load: {str(error).splitlines()[0]}")
    import datasets

    files = [built.address(f"shards/{p}.parquet") for p in built.parts("shards")]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    for row in loaded:
        first = row["video"].get_frame_at(0).data
        assert tuple(first.shape) == (3, row["height"], row["width"])


def test_the_columns_of_a_list_travel_along(sources: Path, tmp_path: Path, ray_session: None) -> None:
    table = tmp_path / "list.jsonl"
    lines = [
        {"path": str(sources / "b.mkv"), "caption": "from the list", "licence": "CC0", "year": 1999},
        {"path": str(sources / "missing.mp4"), "licence": "?"},
    ]
    table.write_text("\n".join(map(json.dumps, lines)))
    dataset = run([str(table)], tmp_path / "d", config())
    shard_rows = list(dataset.rows("shards"))
    assert shard_rows
    assert all(json.loads(r["extra"])["licence"] == "CC0" for r in shard_rows)
    assert {r["caption"] for r in shard_rows} == {"from the list"}
    (lost,) = (s for s in dataset.rows("sources") if s["status"] == "failed")
    assert (lost["stage"], lost["error"]) == ("read", "FileNotFoundError")
    assert verify(dataset) == []


def _no_session() -> Any:
    raise AssertionError("no session is needed")


class _Counter:
    """Counts what is sent to Ray: in these tests nothing is decoded but through the two streams."""

    def __enter__(self) -> _Counter:
        self.operations: list[str] = []
        self.cut_tasks: list[dict[str, Any]] = []
        self._measured, self._cut = pipeline.measured, pipeline.written

        def measured(parts: list[Any], *args: Any) -> Iterator[Any]:
            self.operations.append("measure")
            return self._measured(parts, *args)

        def cut(tasks: list[Any], *args: Any) -> Iterator[Any]:
            self.operations.append("cut")
            self.cut_tasks += tasks
            return self._cut(tasks, *args)

        pipeline.measured, pipeline.written = measured, cut  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        pipeline.measured, pipeline.written = self._measured, self._cut
