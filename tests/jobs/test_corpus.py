"""The rendered corpus: its files agree with its truth, and a real build finds the planted defects."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from captioning.base import CaptionRequest
from captioning.sidecar import Sidecar
from captioning.subtitles import parse_subtitles
from curation import pipeline
from curation.config.named import load_named_config
from curation.config.schema import ConfigError
from curation.corpus import plan as module
from curation.corpus.draw import ALL, COLOURS, DEFECTS, GOOD, SEEN, UNSEEN, Look, Scene
from curation.corpus.plan import BROKEN, Settings, pictures, plan, write
from curation.progress import Progress
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from generation.data.transform import fit
from jobs.cli import app
from tests.jobs.corpus_figures import figures

# A small corpus with every defect, every kind of broken file and a dissolve, made in a few seconds.
SMALL = Settings(clips=30, held_out=16, defects=0.4, width=80, height=64, fps=8, seed=3)


def make(folder: Path, settings: Settings = SMALL) -> Path:
    write(folder, settings, lambda todo, done: None, lambda seconds: None)
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("corpus") / "c")


@pytest.fixture(scope="module")
def files(corpus: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((corpus / "truth.json").read_text())["files"]
    return found


def decoded(path: Path) -> np.ndarray:
    """The decoded frames, (T, H, W, 3) uint8."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    rate = [f.time for f in frames]
    assert rate == pytest.approx([k / SMALL.fps for k in range(len(frames))])
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


# --- the files and their truth ------------------------------------------------------------------------


def test_every_file_is_in_the_truth_and_every_kind_exists(corpus: Path, files: list[dict[str, Any]]) -> None:
    videos = {str(p.relative_to(corpus)) for p in corpus.rglob("*.mp4")}
    assert videos == {f["file"] for f in files}
    shown = [f for f in files if f["file"].startswith("videos/") and not f["copy_of"]]
    kinds = Counter(s["kind"] for f in shown for s in f["scenes"])
    assert kinds.total() == SMALL.clips
    assert kinds.keys() == {GOOD, *DEFECTS}
    assert kinds.total() - kinds[GOOD] == SMALL.clips * SMALL.defects
    assert {f["broken"] for f in files} == {None, *BROKEN}
    assert {t["type"] for f in shown for t in f["transitions"]} == {"cut", "dissolve"}


def test_decoded_frames_are_the_planned_ones(corpus: Path, files: list[dict[str, Any]]) -> None:
    """Cuts are at the frames in the truth. Dissolves begin and end at the frames in the truth."""
    planned = {file.name: file for file in plan(SMALL)}
    for file in files:
        if file["broken"] or file["copy_of"]:
            continue
        frames = decoded(corpus / file["file"])
        assert frames.shape == (file["frames"], file["height"], file["width"], 3)
        drawn = np.stack(list(pictures(planned[file["file"]], SMALL.fps)))
        assert np.abs(frames.astype(int) - drawn).mean() < 3  # levels: the error of the codec
        steps = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))  # [k]: from frame k to k + 1
        quiet = np.ones(len(steps), bool)
        for change in file["transitions"]:
            quiet[change["start_frame"] - 1 : change["end_frame"]] = False
        for scene in file["scenes"]:
            if scene["kind"] == "fast":
                quiet[scene["start_frame"] : scene["end_frame"]] = False
        for change in file["transitions"]:
            start, end = change["start_frame"], change["end_frame"]
            if change["type"] == "cut":
                assert steps[start - 1] > 2 * steps[quiet].max()
            else:
                assert (end - start) / SMALL.fps == pytest.approx(module.DISSOLVE_SECONDS)
                assert steps[start - 1 : end].min() > steps[quiet].max()


def test_scenes_follow_each_other_and_have_their_lengths(files: list[dict[str, Any]]) -> None:
    for file in files:
        scenes = file["scenes"]
        assert all(a["end_s"] == b["start_s"] for a, b in itertools.pairwise(scenes))
        assert not scenes or (scenes[0]["start_s"], scenes[-1]["end_frame"]) == (0, file["frames"])
        for scene in scenes:
            low, high = module.SHORT_SECONDS if scene["kind"] == "short" else module.SECONDS
            assert low - 0.1 < scene["end_s"] - scene["start_s"] < high + 0.1


def test_captions_parse_and_join(corpus: Path, files: list[dict[str, Any]]) -> None:
    sidecar, joined = Sidecar(), 0
    for file in files:
        path = corpus / file["file"]
        if file["broken"]:
            assert not path.with_suffix(".vtt").exists()
            continue
        cues = parse_subtitles(path.with_suffix(".vtt").read_text())
        assert [c.text for c in cues] == [s["caption"] for s in file["scenes"]]
        for cue, scene in zip(cues, file["scenes"], strict=True):
            assert (cue.start_s, cue.end_s) == pytest.approx((scene["start_s"], scene["end_s"]), abs=6e-4)
            clip = CaptionRequest("c", str(path), scene["start_s"] + 0.25, scene["end_s"] - 0.25)
            assert [c.text for c in sidecar([clip])] == [scene["caption"]]
            joined += 1
    assert joined >= SMALL.clips + SMALL.held_out


def test_held_out_combinations_are_in_no_caption_of_the_videos(corpus: Path) -> None:
    def said(folder: str) -> set[str]:
        return {c.text for p in (corpus / folder).glob("*.vtt") for c in parse_subtitles(p.read_text())}

    unseen = {content.caption for content in UNSEEN}
    assert len(unseen) == 8
    assert not said("videos") & unseen
    assert unseen <= said("held-out")
    assert (
        len(said("held-out") - unseen) == SMALL.held_out // 2
    )  # the same number of other captions, for comparison
    # All words occur in training, but not in these combinations.
    words = {w for c in SEEN for w in dataclasses.astuple(c)}
    assert words == {w for c in ALL for w in dataclasses.astuple(c)}


def test_copies_equal_their_originals_and_come_after_them(corpus: Path, files: list[dict[str, Any]]) -> None:
    copies = [f for f in files if f["copy_of"]]
    assert copies
    for copy in copies:
        assert copy["copy_of"] < copy["file"]
        for suffix in (".mp4", ".vtt"):
            one, other = (corpus / copy[key] for key in ("file", "copy_of"))
            assert one.with_suffix(suffix).read_bytes() == other.with_suffix(suffix).read_bytes()
    contents = [p.read_bytes() for p in corpus.rglob("*.mp4")]
    assert len(contents) - len(set(contents)) == len(copies)  # no other files are equal


def test_broken_files_do_not_open(corpus: Path, files: list[dict[str, Any]]) -> None:
    for file in files:
        if file["broken"]:
            with (
                pytest.raises((av.error.FFmpegError, IndexError, StopIteration)),
                av.open(str(corpus / file["file"])) as container,
            ):
                next(container.decode(video=0))


# --- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "train_side"), [(128, 32), (128, 128), (96, 48)])
def test_stripes_keep_the_mean_and_are_gone_at_half_the_side(side: int, train_side: int) -> None:
    look = Look(side, side, 16, train_side)
    for number, content in enumerate(c for c in SEEN if c.texture == "striped"):
        if number % 5:
            continue
        striped = Scene(content, GOOD, 64, look, (1, "x", number), number)
        plain = dataclasses.replace(striped, content=dataclasses.replace(content, texture="plain"))
        pair = [np.stack([scene.picture(k) for k in (5, 32, 50)]) for scene in (striped, plain)]

        def difference(to: int, pair: list[np.ndarray] = pair) -> np.ndarray:
            """The difference at the size to which the loader reduces clips."""
            one, other = (fit(p, (0, 0, side, side), to, to).astype(float) for p in pair)
            return one - other

        assert abs(difference(side).mean()) < 0.6  # levels of 255
        energy = {to: np.square(difference(to)).mean() for to in (train_side, train_side // 2)}
        assert energy[train_side] > 60  # squared levels, over the whole picture: enough detail to restore
        assert energy[train_side // 2] < 0.15 * energy[train_side]


def test_the_object_moves_in_the_direction_and_at_the_speed_of_its_caption() -> None:
    look = Look(128, 96, 16, 32)
    for number, content in enumerate(SEEN[::7]):
        scene = Scene(content, GOOD, 64, look, (2, "x", number), 0)
        places = []
        for k in (16, 48):
            away = np.abs(scene.picture(k).astype(float) - COLOURS[content.colour]).max(2) < 70
            places.append(np.argwhere(away).mean(0)[::-1])
        (dx, dy), seconds = (places[1] - places[0]) / look.side, 32 / look.fps
        wanted = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[content.direction]
        assert (dx / seconds, dy / seconds) == pytest.approx(
            (wanted[0] * scene.speed, wanted[1] * scene.speed), abs=0.2 * scene.speed
        ), content.caption


# --- runs ----------------------------------------------------------------------------------------------


def test_the_same_settings_give_the_same_bytes_even_after_an_interruption(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = pictures, 0

    def interrupted(file: module.File, fps: int) -> Iterator[np.ndarray]:
        nonlocal written
        for k, picture in enumerate(real(file, fps)):
            if written == 4 and k == 5:
                raise KeyboardInterrupt
            yield picture
        written += 1

    monkeypatch.setattr(module, "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c")
    monkeypatch.undo()
    there = tree(tmp_path / "c")
    assert "truth.json" not in there
    assert len([name for name in there if name.endswith(".mp4")]) == 4
    assert all(tree(corpus)[name] == data for name, data in there.items())  # no file is incomplete
    (tmp_path / "c" / "videos" / "_00004.mp4").write_bytes(b"left by a kill")
    videos = [tmp_path / "c" / name for name in there if name.endswith(".mp4")]
    kept = [path.stat().st_mtime_ns for path in videos]
    make(tmp_path / "c")
    assert tree(tmp_path / "c") == tree(corpus)
    assert [path.stat().st_mtime_ns for path in videos] == kept


def test_another_seed_gives_other_films() -> None:
    one, other = plan(SMALL), plan(dataclasses.replace(SMALL, seed=4))
    assert [f.scenes for f in one] != [f.scenes for f in other]


@pytest.mark.parametrize(("clips", "defects"), [(4, 0.0), (7, 0.5), (55, 0.33), (400, 0.4)])
def test_a_plan_has_the_scenes_that_were_asked_for(clips: int, defects: float) -> None:
    files = [
        f for f in plan(Settings(clips=clips, defects=defects, held_out=5)) if not (f.copy_of or f.broken)
    ]
    shown = [scene for f in files if f.name.startswith("videos/") for scene in f.scenes]
    assert len(shown) == clips
    assert sum(scene.kind != GOOD for scene in shown) == int(clips * defects)
    assert sum(len(f.scenes) for f in files if f.name.startswith("held-out/")) == 5
    for file in files:
        kinds = [scene.kind for scene in file.scenes]
        assert all(a == "small" or GOOD in (a, b) for a, b in itertools.pairwise(kinds))
        assert all(kinds[k] == kinds[k + 1] == GOOD for k, dissolve in enumerate(file.dissolves) if dissolve)
    if not defects:
        assert len(plan(Settings(clips=clips, defects=0, held_out=5))) == len(files)


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--clips", "3"], "--clips 3"),
        (["--defects", "0.6"], "--defects 0.6"),
        (["--size", "128"], "--size 128"),
        (["--size", "127x128"], "--size 127x128"),
        (["--size", "48x48"], "--size 48x48"),
        (["--fps", "5"], "--fps 5"),
        (["--train-side", "256"], "--train-side 256"),
        (["--held-out", "-1"], "--held-out -1"),
    ],
)
def test_wrong_options_give_code_2_and_write_nothing(tmp_path: Path, options: list[str], says: str) -> None:
    result = reelmill("corpus", "--out", tmp_path / "c", *options)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not (tmp_path / "c").exists()


def test_a_folder_with_other_files_is_refused(corpus: Path, tmp_path: Path) -> None:
    before = tree(corpus)
    with pytest.raises(ConfigError, match=r"seed 3 -> 4"):
        make(corpus, dataclasses.replace(SMALL, seed=4))
    assert tree(corpus) == before
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="something else"):
        make(tmp_path)
    with pytest.raises(ConfigError, match="not a folder"):
        make(tmp_path / "mine.mp4")
    assert tree(tmp_path) == {"mine.mp4": b"mine"}


def test_the_command_renders_and_prints_the_folders(tmp_path: Path) -> None:
    small = ["--clips", "4", "--held-out", "1", "--defects", "0", "--size", "64x64", "--fps", "8"]
    result = reelmill("corpus", "--out", tmp_path / "c", *small)
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "c" / "truth.json") in result.stdout
    assert "render: 2/2 files" in result.stderr
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"corpus.json", "truth.json", "videos", "held-out"}


# --- a build of the corpus -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_build_finds_what_was_planted(tmp_path: Path, ray_session: None) -> None:
    """The complete corpus of the command's default settings, built with the configuration `corpus`."""
    pytest.importorskip("easyocr_en_models")
    folder = make(tmp_path / "corpus", Settings())
    dataset = Dataset(str(tmp_path / "dataset"))
    pipeline.build(
        dataset, list_sources([str(folder / "videos")]), load_named_config("corpus", []), Progress()
    )
    found = figures(folder, dataset)
    told = "\n".join(found.lines())
    print(told)
    assert len(list(dataset.rows("clips"))) >= 300
    assert len(found.defects) + 1 >= 12  # and the good scenes
    assert found.cuts.planted >= 200
    assert found.cuts.f1 >= 0.98, told
    assert found.dissolves.planted >= 20
    assert found.dissolves.recall >= 0.7, told
    assert found.transition.precision >= 0.95, told
    for kind, counts in found.defects.items():
        assert counts.planted >= 8, kind
        assert (counts.precision >= 0.95, counts.recall >= 0.95) == (True, True), f"{kind}\n{told}"
    assert found.captions.planted >= 150
    assert found.captions.right == found.captions.planted, told
