"""`spans.by: list`: the spans of a list's rows are the clips. The truth: numbers burnt into the frames."""

from __future__ import annotations

import csv
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from curation import pipeline
from curation.audit.verify import verify
from curation.commands import select
from curation.config.load import load_config
from curation.config.schema import Config
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from tests import render
from tests.curation.helpers import decode
from tests.curation.inline import Inline

FPS = 20
TEXT = """
filters: {duration: {}, transition: {}, motion: {}}
rules: {}
cut: {preset: ultrafast, crf: 12}
spans: {by: list, min_seconds: 1, max_seconds: 2}
"""
Row = tuple[str, Any, Any, str]


def config(*overrides: str) -> Config:
    return load_config(TEXT, overrides)


def footage(folder: Path, name: str, lengths: list[int], start_s: float = 0.0) -> None:
    frames = render.counted(render.scenes(lengths, (96, 72), fps=FPS, seed=ord(name[0])))
    times = [start_s + k / FPS for k in range(sum(lengths))]
    render.write_video(folder / name, frames, fps=FPS, pts=times, gop=30)


def write_list(path: Path, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "start", "end", "caption"), *rows])


def build(folder: Path, settings: Config, *, named: str | None = None) -> tuple[Inline, list[str]]:
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    dataset = Dataset(str(folder / "d"))
    with Inline() as did:
        pipeline.build(dataset, list_sources([named or str(folder / "l.csv")]), settings, progress)
    assert verify(dataset) == []
    return did, said


def shown(folder: Path) -> dict[tuple[str, int, int], str | None]:
    """(file, first number, last number) of each clip -> its caption."""
    found: dict[tuple[str, int, int], str | None] = {}
    for row in Dataset(str(folder / "d")).rows("shards"):
        numbers = [render.read_counter(frame) for frame in decode(row["video"]["bytes"])]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        found[Path(row["uri"]).name, numbers[0], numbers[-1]] = row["caption"]
    return found


@pytest.mark.parametrize(("name", "start_s"), [("a.mp4", 0.0), ("a.mkv", 7.3), ("a.ts", 0.0)])
def test_each_row_is_a_clip_with_its_own_caption(name: str, start_s: float, tmp_path: Path) -> None:
    footage(tmp_path, name, [60, 80, 60], start_s)  # ffmpeg lets the transport stream begin at 1.4 s
    rows: list[Row] = [
        (name, 0.5, 2.5, "within the first shot"),
        (name, "0:00:02", "0:00:05.000", "over a cut"),
        (name, 3.012, 4.99, "nearly on frames"),
        (name, 3.5, 9.75, "longer than max_seconds, over a cut, overlapping"),
        (name, 9.5, 10.0, "shorter than min_seconds"),
    ]
    write_list(tmp_path / "l.csv", rows)
    footage(tmp_path, "plain.mp4", [40])
    with (tmp_path / "l.csv").open("a") as file:
        file.write("plain.mp4,,,by shots\n")
    build(tmp_path, config("spans.trim_seconds=0.2"))
    assert shown(tmp_path) == {
        (name, 10, 49): "within the first shot",
        (name, 40, 99): "over a cut",
        (name, 60, 99): "nearly on frames",
        (name, 70, 194): "longer than max_seconds, over a cut, overlapping",
        (name, 190, 199): "shorter than min_seconds",
        ("plain.mp4", 4, 35): "by shots",
    }


def test_a_cut_within_a_span_is_measured_and_lengths_go_by_the_rules(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [60, 80])
    write_list(tmp_path / "l.csv", [("a.mp4", 0.2, 2.8, "one"), ("a.mp4", 1.5, 4.5, "two")])
    build(tmp_path, config("rules.duration.seconds.max=2.9"))
    clips = sorted(Dataset(str(tmp_path / "d")).rows("clips"), key=lambda clip: clip["start_s"])
    assert clips[0]["transition.distance"] < 0.16 < clips[1]["transition.distance"]
    assert set(shown(tmp_path)) == {("a.mp4", 4, 55)}
    with Inline() as did:
        select.reselect(Dataset(str(tmp_path / "d")), config(), Progress(), nullcontext)
    assert not did.measured
    assert shown(tmp_path) == {("a.mp4", 4, 55): "one", ("a.mp4", 30, 89): "two"}


def test_what_becomes_no_clip_is_said(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [100])  # 5 s
    footage(tmp_path, "b.mp4", [40])
    rows: list[Row] = [
        ("a.mp4", 1, 3, "good"),
        ("a.mp4", 3, 3, "empty"),
        ("a.mp4", 4, 2, "backward"),
        ("a.mp4", 6, 8, "behind the end"),
        ("a.mp4", 2.001, 2.004, "within a frame"),
        ("a.mp4", 1.01, 3.01, "the same frames"),
        ("a.mp4", 4, 9, "over the end"),
        ("b.mp4", 50, 60, "all behind the end"),
    ]
    write_list(tmp_path / "l.csv", rows)
    _, said = build(tmp_path, config())
    assert shown(tmp_path) == {("a.mp4", 20, 59): "good", ("a.mp4", 80, 99): "over the end"}
    notes = {Path(s["uri"]).name: s["message"] for s in Dataset(str(tmp_path / "d")).rows("sources")}
    assert "spans of the list that are no clips: 5" in notes["a.mp4"]
    assert "shorter: 1" in notes["a.mp4"]
    assert "spans of the list that are no clips: 1 (50 to 60 s, the source ends at 2 s)" in (notes["b.mp4"])
    assert sum("spans of the list" in line for line in said) == 2


def test_spans_of_a_copy_are_said(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [60])
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    write_list(tmp_path / "l.csv", [("a.mp4", 0, 1, "of the original"), ("b.mp4", 1, 2, "of the copy")])
    _, said = build(tmp_path, config())
    assert shown(tmp_path) == {("a.mp4", 0, 19): "of the original"}
    assert any("are copies of other sources" in line and "b.mp4" in line for line in said)


def test_changes_measure_what_they_touch(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [60, 60])
    footage(tmp_path, "b.mp4", [60, 60])
    footage(tmp_path, "c.mp4", [40])
    rows: list[Row] = [
        ("a.mp4", 1, 2, "a"),
        ("b.mp4", 1, 2, "b"),
        ("b.mp4", 3, 4, "b2"),
        ("c.mp4", "", "", "c"),
    ]
    write_list(tmp_path / "l.csv", rows)
    build(tmp_path, config("spans.by=shots"))
    assert set(build(tmp_path, config())[0].measured) == {"a.mp4", "b.mp4"}
    listed = {("a.mp4", 20, 39): "a", ("b.mp4", 20, 39): "b", ("b.mp4", 60, 79): "b2", ("c.mp4", 4, 35): "c"}
    assert shown(tmp_path) == listed
    assert not build(tmp_path, config())[0].decodes
    assert not build(tmp_path, config("spans.max_seconds=3"))[0].measured.keys() - {"c.mp4"}
    rows[0] = ("a.mp4", 1.5, 2.5, "moved")
    rows[1] = ("b.mp4", 1, 2, "another text")
    write_list(tmp_path / "l.csv", rows)
    assert set(build(tmp_path, config("spans.max_seconds=3"))[0].measured) == {"a.mp4"}
    assert set(shown(tmp_path)) == {("a.mp4", 30, 49), *set(listed) - {("a.mp4", 20, 39)}}
    # Named without the list: what the list said stays.
    assert not build(tmp_path, config("spans.max_seconds=3"), named=str(tmp_path / "*.mp4"))[0].decodes
    assert set(build(tmp_path, config("spans.by=shots"))[0].measured) == {"a.mp4", "b.mp4", "c.mp4"}


def test_another_caption_column_reaches_the_clips_in_the_shards(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [60])
    (tmp_path / "l.csv").write_text("path,start,end,caption,long\na.mp4,1,2,short,a longer text\n")
    build(tmp_path, config())
    assert shown(tmp_path) == {("a.mp4", 20, 39): "short"}
    assert not build(tmp_path, config("captions.caption_column=long"))[0].decodes
    assert shown(tmp_path) == {("a.mp4", 20, 39): "a longer text"}


def test_overlapping_clips_are_scored_again_as_from_nothing(tmp_path: Path) -> None:
    footage(tmp_path, "a.mp4", [60, 60])
    spans = [(0.5, 5.5), (1, 2), (1, 3), (1.5, 1.9), (2.5, 5)]
    write_list(tmp_path / "l.csv", [("a.mp4", a, b, f"{a}") for a, b in spans])
    build(tmp_path, config())
    did, _ = build(tmp_path, config("filters.motion.width=48", "filters.transition.frames=8"))
    assert (set(did.rescored), set(did.measured)) == ({"a.mp4"}, set())
    again = {c["clip_id"]: c["motion.speed"] for c in Dataset(str(tmp_path / "d")).rows("clips")}
    (tmp_path / "d").rename(tmp_path / "before")
    build(tmp_path, config("filters.motion.width=48", "filters.transition.frames=8"))
    assert again == {c["clip_id"]: c["motion.speed"] for c in Dataset(str(tmp_path / "d")).rows("clips")}
    assert len(again) == 5


def test_a_change_of_size_within_a_span(tmp_path: Path) -> None:
    for name, size in (("a.ts", (96, 72)), ("b.ts", (128, 96))):
        number = 0 if name == "a.ts" else 60
        frames = [
            render.draw_counter(f, number + k) for k, f in enumerate(render.scenes([60], size, fps=FPS))
        ]
        times = [(number + k) / FPS for k in range(60)]
        render.write_video(tmp_path / name, frames, fps=FPS, pts=times, options={"bf": "0"})
    (tmp_path / "ab.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    write_list(
        tmp_path / "l.csv", [("ab.ts", 1, 2, "small"), ("ab.ts", 2, 4, "both"), ("ab.ts", 4, 5, "large")]
    )
    build(tmp_path, config())
    assert shown(tmp_path) == {("ab.ts", 20, 39): "small", ("ab.ts", 80, 99): "large"}
    (source,) = Dataset(str(tmp_path / "d")).rows("sources")
    assert "spans of the list that are no clips: 1 (2 to 4 s, the size changes" in source["message"]


def test_the_default_has_the_hashes_of_before() -> None:
    plain = load_config("")
    assert "by" not in plain.model_dump()["spans"]
    assert load_config("", ["spans.by=shots"]).hash() == plain.hash()
    listed = load_config("", ["spans.by=list"])
    assert listed.hash() != plain.hash()
    assert listed.spans_hash() == plain.spans_hash() == plain.spans_hash(None, [(0.0, 1.0)])
    assert listed.spans_hash(None, [(0.0, 1.0)]) != plain.spans_hash()
