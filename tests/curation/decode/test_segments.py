"""A long source in pieces gives the very clips, and the very numbers, that it gives in one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.footage import loop
from curation import pipeline
from curation.audit.accounting import accounting
from curation.cluster import looker
from curation.config.load import load_config
from curation.config.schema import Config
from curation.decode import answers, join
from curation.decode.join import Piece
from curation.decode.pixels.frame import VideoInfo
from curation.decode.segments import NotInPieces
from curation.progress import Progress
from curation.sandbox.parent import Child
from curation.sandbox.protocol import Message, SourceFailed
from curation.sources.listing import list_sources
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.tasks.look import PieceRow
from curation.tasks.measure import MeasureTask, SourceTask
from curation.verdicts.todo import source_row
from tests import render
from tests.conftest import CHEAP
from tests.curation.decode.test_times import FPS, LENGTHS, SIZE, VARIANTS
from tests.killing import rows_of

PIECE_SECONDS = 1.7
GROUP_SECONDS = 1.1
SOURCE = "s"


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CHEAP, ["spans.min_seconds=1", "spans.max_seconds=1.5", "spans.trim_seconds=0.1"])


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    with Child(4096) as child:
        yield child


def ask(child: Child, op: str, path: Path, config: Config, **more: Any) -> list[Message]:
    plain = config.model_dump(mode="json")
    request = {"op": op, "uri": str(path), "source_id": SOURCE, "config": plain, **more}
    return list(child.request(request, 60))


def looked_at(child: Child, path: Path, config: Config, seconds: float) -> list[Piece]:
    pieces = []
    for a, b in join.plan(looker.probed(str(path), config), seconds):
        (answer,) = answers.looked(ask(child, "look", path, config, from_s=a, until_s=b))
        pieces.append(Piece.of(cast(PieceRow, asdict(answer))))
    return pieces


Found = tuple[list[Message], dict[str, Any]]  # clips, and what is said of the source


def in_pieces(child: Child, path: Path, config: Config, seconds: float) -> Found:
    pieces = looked_at(child, path, config, seconds)
    assert len(pieces) >= 3
    row, groups = join.join(pieces, config, GROUP_SECONDS)
    assert len(groups) >= 3
    assert groups[-1].from_s is not None
    tasks = [{k: v for k, v in g.task(0).items() if k != "number"} for g in groups]
    clips = [m for task in tasks for m in ask(child, "score", path, config, **task)]
    return [m for m in clips if m.head["kind"] == "clip"], {**row}


def in_one(child: Child, path: Path, config: Config) -> Found:
    messages = ask(child, "measure", path, config)
    (source,) = (m.head for m in messages if m.head["kind"] == "source")
    return [m for m in messages if m.head["kind"] == "clip"], source


def same(child: Child, path: Path, config: Config, seconds: float = PIECE_SECONDS) -> int:
    """Compare, to the last bit. Returns the number of clips."""
    expected, source = in_one(child, path, config)
    found, row = in_pieces(child, path, config, seconds)
    assert row == {key: source[key] for key in row}
    assert [m.head for m in found] == [m.head for m in expected]
    assert [m.parts for m in found] == [m.parts for m in expected]  # thumbnails, and frames for models
    return len(found)


def make_hole(path: Path) -> None:
    """In the middle of a transport stream, of more bytes than ffmpeg searches for a new start."""
    data = path.read_bytes()
    middle = len(data) // 2 // 188 * 188
    path.write_bytes(data[:middle] + bytes(300_000) + data[middle:])


@pytest.mark.sampled("segments", keep=5)
@pytest.mark.parametrize("name", VARIANTS)
def test_pieces_give_what_the_whole_gives(name: str, tmp_path: Path, child: Child, config: Config) -> None:
    options = dict(VARIANTS[name])
    frames = render.scenes(LENGTHS, SIZE, fps=FPS)
    path = render.write_video(tmp_path / name, frames, fps=FPS, **options)  # type: ignore[arg-type]
    assert same(child, path, config) >= 5


@pytest.mark.parametrize("detector", ["content", "none"])
def test_with_other_detectors(detector: str, tmp_path: Path, child: Child, config: Config) -> None:
    path = render.write_video(tmp_path / "a.mp4", render.scenes(LENGTHS, SIZE, fps=FPS), fps=FPS)
    settings = load_config(
        CHEAP, ["spans.min_seconds=1", "spans.max_seconds=1.5", f"shots.detector={detector}"]
    )
    assert same(child, path, settings) >= 4


def test_with_frames_for_models(tmp_path: Path, child: Child) -> None:
    path = render.write_video(tmp_path / "a.mp4", render.scenes(LENGTHS, SIZE, fps=FPS), fps=FPS)
    text = CHEAP.replace("motion: {}", "motion: {}, text: {}, aesthetics: {}")
    assert same(child, path, load_config(text, ["spans.min_seconds=1", "spans.max_seconds=1.5"])) >= 4


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "testvideo.mp4"])
def test_real_footage(name: str, footage: Path, child: Child) -> None:
    config = load_config(CHEAP, ["spans.min_seconds=1", "spans.max_seconds=1.5"])
    assert same(child, footage / name, config) >= 3


def test_what_does_not_join_is_not_joined(tmp_path: Path, child: Child, config: Config) -> None:
    path = render.write_video(tmp_path / "a.mp4", render.scenes(LENGTHS, SIZE, fps=FPS), fps=FPS)
    pieces = looked_at(child, path, config, PIECE_SECONDS)
    join.join(pieces, config, GROUP_SECONDS)
    with pytest.raises(NotInPieces, match="do not join"):
        join.join([pieces[0], *pieces[2:]], config, GROUP_SECONDS)
    before = pieces[1].before
    assert before is not None
    other = replace(pieces[1], before={**before, "digest": before["digest"] ^ 1})
    with pytest.raises(NotInPieces, match="do not join"):
        join.join([pieces[0], other, *pieces[2:]], config, GROUP_SECONDS)


def test_damage_is_for_one_piece(tmp_path: Path, child: Child, config: Config) -> None:
    """What a decoder stepped over may differ with where it began."""
    path = render.write_video(tmp_path / "a.ts", render.scenes(LENGTHS, SIZE, fps=FPS), fps=FPS, gop=10)
    make_hole(path)
    assert in_one(child, path, config)[1]["message"]
    with pytest.raises(SourceFailed) as failed:
        looked_at(child, path, config, PIECE_SECONDS)
    assert failed.value.error == "NotInPieces"


def test_a_span_that_is_not_there_is_not_scored(tmp_path: Path, child: Child, config: Config) -> None:
    path = render.write_video(tmp_path / "a.mp4", render.scenes(LENGTHS, SIZE, fps=FPS), fps=FPS)
    spans = [{"start_s": 1.0, "end_s": 2.0, "frames": 26}]
    with pytest.raises(SourceFailed, match="25 frames"):
        ask(child, "score", path, config, spans=spans, from_s=None, at={})


def test_what_is_too_short_or_says_no_length_is_for_one_piece() -> None:
    info = VideoInfo("mp4", "h264", 64, 48, 64, 48, 0, 1.0, 25.0, 100, 4.0, 1.0)
    assert join.plan(info, 1.5) == [(None, 1 + 4 / 3), (1 + 4 / 3, 1 + 8 / 3), (1 + 8 / 3, None)]
    for duration_s in (None, 0.0, 1.5):
        with pytest.raises(NotInPieces):
            join.plan(VideoInfo(**{**vars(info), "declared_duration_s": duration_s}), 1.5)


def test_only_what_would_hold_up_all_others_is_taken_apart(config: Config) -> None:
    sizes = {"a": 50, "b": 20, "c": 20, "d": 10}
    assert join.pick(sizes, 2, config) == set()  # two decodes by two workers are no gain
    assert join.pick(sizes, 4, config) == set()
    assert join.pick(sizes, 5, config) == {"a"}
    assert join.pick(sizes, 11, config) == {"a", "b", "c"}
    assert join.pick(sizes, 5, load_config(CHEAP, ["run.segment_seconds=null"])) == set()
    assert join.pick(sizes, 5, load_config(CHEAP, ["shots.detector=transnetv2"])) == set()


def test_parts_are_left_without_their_long_sources(config: Config) -> None:
    def source(id_: str, size: int, *, rescore: bool = False) -> SourceTask:
        named = source_row(Source(id_, bytes=size))
        return {**named, "source_id": id_, "rescore": rescore, "attempts_before": 0, "group": None}

    parts: list[MeasureTask] = [
        {"part": "p", "sources": [source("a", 100), source("b", 1)]},
        {"part": "q", "sources": [source("c", 90)]},
        {"part": "r", "sources": [source("d", 900, rescore=True)]},
    ]
    left, long = join.set_apart(parts, 8, config)
    assert [(p["part"], [s["source_id"] for s in p["sources"]]) for p in left] == [
        ("p", ["b"]),
        ("r", ["d"]),
    ]
    assert {id_: one.part for id_, one in long.items()} == {"a": "p", "c": "q"}
    assert join.set_apart(parts, 1, config) == (parts, {})


@pytest.mark.usefixtures("ray_session")
def test_a_build_takes_long_sources_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short ones, a long one, a damaged long one: every row is that of a build that takes nothing apart."""
    folder = tmp_path / "sources"
    folder.mkdir()
    frames = [render.texture(k, 96, 128) for k in range(4)]
    for name, count in (("short0.mkv", 100), ("long.mkv", 1500), ("short1.mkv", 80), ("torn.ts", 1200)):
        shown = (frames[(k // 40) % 4] for k in range(count))
        render.write_video(folder / name, shown, fps=FPS, gop=25)
    make_hole(folder / "torn.ts")
    found = {}
    for how in ("10", "null"):
        settings = ["spans.min_seconds=1", "spans.max_seconds=2", f"run.segment_seconds={how}"]
        settings += ["run.measure_cpus=0.2", "captions.captioner=none"]
        config = load_config(CHEAP, settings)
        dataset = Dataset(str(tmp_path / how))
        pipeline.build(dataset, list_sources([str(folder)]), config, Progress())
        assert accounting(dataset).check() == []
        said = capsys.readouterr().err
        assert ("measured in one piece" in said and "torn.ts" in said) == (how == "10")
        assert "long.mkv" not in said
        found[how] = rows_of(dataset)
    assert found["10"] == found["null"]
    assert len(found["10"]["clips"]) > 50


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_hour(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    frames = render.scenes([130, 75, 200, 45, 90], (160, 96), fps=25)
    once = render.write_video(tmp_path / "once.mp4", frames, fps=25)
    loop(once, folder / "hour.mp4", 3600)
    for k in range(2):
        (folder / f"{k}.mp4").write_bytes(once.read_bytes() + struct.pack(">I4sQ", 16, b"free", k))
    found = {}
    for how in ("300", "null"):
        settings = [f"run.segment_seconds={how}", "run.measure_cpus=0.4", "captions.captioner=none"]
        dataset = Dataset(str(tmp_path / how))
        config = load_config(CHEAP, [*settings, "rules.duration.seconds.max=0"])  # nothing to cut
        pipeline.build(dataset, list_sources([str(folder)]), config, Progress())
        found[how] = rows_of(dataset)
    assert found["300"] == found["null"]
    assert len(found["300"]["clips"]) > 600
