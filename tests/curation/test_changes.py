"""A changed configuration, or changed sources, recompute what they touch and nothing else.

Decodes, model calls and encodes are counted, and the result is compared with a build from nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curation import pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.commands import remove, select, status
from curation.config.load import load_config
from curation.config.schema import Config
from curation.driver import apply, cuts, prepare
from curation.progress import Progress, Stopped
from curation.sources.listing import list_sources
from curation.sources.removed import Removed
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.store.schema import SCORE_COLUMNS
from curation.verdicts.explain import explain
from curation.verdicts.todo import Todo, find_work
from filters import SCORERS
from tests import render
from tests.conftest import CHEAP
from tests.curation.inline import Inline
from tests.filters.tiny import write_encoder

Row = dict[str, Any]
SETTINGS = [
    "spans.min_seconds=1",
    "spans.max_seconds=2",
    "spans.trim_seconds=0.1",
    "rules.motion.speed.max=0.3",  # rejects fast.mp4, which is spared the model
    "rules.aesthetics.mean.min=-100",
    "cut.preset=ultrafast",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make `aesthetics` run on a small local encoder."""
    made = write_encoder(tmp_path_factory.mktemp("tiny") / "e", "reelmill-test-changes")
    return [f"filters.aesthetics.{key}={value}" for key, value in made.items()]


@pytest.fixture(scope="module")
def config(encoder: list[str]) -> Config:
    return load_config(CHEAP, [*SETTINGS, *encoder])


def changed(config: Config, *overrides: str) -> Config:
    import yaml

    return load_config(yaml.safe_dump(config.model_dump(mode="json")), overrides)


def build(
    folder: Path | Sequence[str], out: Path | Dataset, config: Config, **options: Any
) -> tuple[Dataset, Todo, Inline]:
    dataset = out if isinstance(out, Dataset) else Dataset(str(out))
    named = [str(folder)] if isinstance(folder, Path) else list(folder)
    with Inline() as did:
        todo = pipeline.build(dataset, list_sources(named), config, Progress(), **options)
    assert verify(dataset) == []
    assert accounting(dataset).check() == []
    return dataset, todo, did


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, config: Config) -> tuple[Path, Path]:
    """A folder with `footage` and the dataset `d` built from it, and a copy of it to go back to."""
    here = tmp_path_factory.mktemp("place")
    folder = here / "now" / "footage"
    folder.mkdir(parents=True)
    render.write_video(folder / "a.mp4", render.scenes([30, 40], (192, 108), fps=20), fps=20)
    render.write_video(folder / "b.mkv", render.scenes([60], (128, 128), fps=20, seed=5), fps=20)
    render.write_video(folder / "fast.mp4", render.pan(3, (192, 108), fps=20, seconds=2, speed=0.6), fps=20)
    Image.fromarray(render.texture(4, 120, 160)).save(folder / "still.png")
    dataset, _, did = build(folder, here / "now" / "d", config)
    assert set(did.measured) == {"a.mp4", "b.mkv", "fast.mp4", "still.png"}
    scored = [c["aesthetics.mean"] is not None for c in dataset.rows("clips")]
    assert did.model_clips["aesthetics"] == sum(scored) < len(scored)  # fast.mp4 was spared
    shutil.copytree(here / "now", here / "then")
    return here / "now", here / "then"


@pytest.fixture
def folder(place: tuple[Path, Path]) -> Path:
    """The sources, as they were measured, times of change included."""
    now, then = place
    shutil.rmtree(now)
    shutil.copytree(then, now)
    return now / "footage"


@pytest.fixture
def built(folder: Path) -> Dataset:
    """The dataset that was built from `folder`."""
    return Dataset(str(folder.parent / "d"))


def table(dataset: Dataset, name: str, *without: str) -> dict[str, Row]:
    rows = {}
    for row in dataset.rows(name):
        row["keys"] = dict(row.get("keys") or [])
        if row.get("embedding") is not None:
            row["embedding"] = list(row["embedding"])
        rows[row["clip_id"]] = {k: v for k, v in row.items() if k not in without}
    return rows


def files(dataset: Dataset, kind: str) -> dict[str, tuple[int, bytes]]:
    return {
        p.name: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (Path(dataset.location) / kind).glob("*.parquet")
    }


def columns_that_differ(a: dict[str, Row], b: dict[str, Row]) -> set[str]:
    assert set(a) == set(b)
    return {c for i in a for c in a[i] if a[i][c] != b[i][c]}


def test_a_changed_cheap_scorer_recomputes_its_columns_alone(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    before, videos = table(built, "clips"), {r["clip_id"]: r["video"] for r in built.rows("shards")}
    new = changed(config, "filters.quality.frames=3")
    _, todo, did = build(folder, built, new)
    assert did.rescored == dict.fromkeys(["a.mp4", "b.mkv", "fast.mp4", "still.png"], 1)  # a decode each
    assert (did.measured, did.cut, did.encoded, did.model_clips) == ({}, {}, {}, {})
    assert {r.split(" ")[0] for r in todo.reasons.values()} == {"quality"}
    after = table(built, "clips")
    quality = {c.name for c in SCORERS["quality"].columns}
    assert columns_that_differ(before, after) <= quality | {"keys"}
    assert columns_that_differ(before, after) >= {"quality.sharpness", "keys"}
    scratch, _, _ = build(folder, tmp_path / "scratch", new)
    assert after == table(scratch, "clips")
    # The shards show the new scores, around the same bytes.
    assert table(built, "shards", "config_hash") == table(scratch, "shards", "config_hash")
    assert {r["clip_id"]: r["video"] for r in built.rows("shards")} == videos
    assert build(folder, built, new)[2].decodes == {}


def test_a_new_version_of_a_scorer_that_needs_no_frames_decodes_nothing(
    built: Dataset, folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = table(built, "clips")
    monkeypatch.setattr(SCORERS["duration"], "version", "next")
    _, todo, did = build(folder, built, config)
    assert todo.rescore
    assert did.decodes == {}
    assert did.encoded == did.model_clips == {}
    after = table(built, "clips")
    assert columns_that_differ(before, after) == {"keys"}
    assert build(folder, built, config)[1].sources == 0


def test_a_changed_model_scorer_runs_that_model_alone(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    before = table(built, "clips")
    new = changed(config, "filters.aesthetics.frames=2")
    _, _, did = build(folder, built, new)
    assert did.rescored == dict.fromkeys(["a.mp4", "b.mkv", "still.png"], 1)  # fast.mp4 is spared it
    assert did.measured == did.cut == did.encoded == {}
    after = table(built, "clips")
    assert did.model_clips == {"aesthetics": sum(c["aesthetics.mean"] is not None for c in after.values())}
    assert columns_that_differ(before, after) <= {"aesthetics.mean", "aesthetics.min", "embedding", "keys"}
    scratch, _, _ = build(folder, tmp_path / "scratch", new)
    assert after == table(scratch, "clips")
    assert all(c["embedding"] for c in after.values() if c["aesthetics.mean"] is not None)


def test_two_changes_at_once_take_one_decode(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    new = changed(config, "filters.aesthetics.frames=2", "filters.motion.per_second=5")
    _, _, did = build(folder, built, new)
    assert set(did.decodes.values()) == {1}
    assert did.measured == did.encoded == {}
    scratch, _, _ = build(folder, tmp_path / "scratch", new)
    assert table(built, "clips") == table(scratch, "clips")
    assert list(built.verdicts()) == list(scratch.verdicts())


def test_a_new_filter_is_scored_and_its_rule_applied(folder: Path, config: Config, tmp_path: Path) -> None:
    without = changed(config, "filters.borders=null", "filters.aesthetics=null")
    dataset, _, did = build(folder, tmp_path / "d", without)
    assert did.model_clips == {}
    _, _, did = build(folder, dataset, changed(without, "filters.borders={}"))
    assert did.measured == did.encoded == {}
    assert all(c["borders.fraction"] is not None for c in dataset.rows("clips"))


def test_a_looser_cheap_rule_scores_what_was_spared_and_cuts_it(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    new = changed(config, "rules.motion.speed.max=2")
    had = set(table(built, "shards"))
    fast = {i for i, c in table(built, "clips").items() if c["uri"].endswith("fast.mp4")}
    _, _, did = build(folder, built, new)
    assert did.rescored == {"fast.mp4": 1}
    assert did.model_clips == {"aesthetics": len(fast)}
    assert set(did.encoded) == fast == set(table(built, "shards")) - had
    scratch, _, _ = build(folder, tmp_path / "scratch", new)
    assert table(built, "clips") == table(scratch, "clips")


def test_numbers_of_other_parameters_are_not_left_where_a_clip_is_spared(
    built: Dataset, folder: Path, config: Config
) -> None:
    """Every clip is scored; then the model changes, and what is spared it now loses its old score."""
    build(folder, built, changed(config, "score_all=true"))
    assert all(c["aesthetics.mean"] is not None for c in built.rows("clips"))
    _, _, did = build(folder, built, changed(config, "filters.aesthetics.frames=3"))
    for clip in built.rows("clips"):
        fast = clip["uri"].endswith("fast.mp4")
        assert (clip["aesthetics.mean"] is None) == fast
        assert (clip["embedding"] is None) == fast
        assert ("aesthetics" in dict(clip["keys"])) != fast
    assert "fast.mp4" not in did.decodes


def test_what_is_not_named_or_not_there_keeps_its_scores_and_is_reported(
    built: Dataset, folder: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table(built, "clips")
    named = [str(folder / n) for n in ("a.mp4", "b.mkv")]
    (folder / "list.csv").write_text("\n".join(["path", *named]))
    (folder / "b.mkv").unlink()
    _, _, did = build(folder / "list.csv", built, changed(config, "filters.quality.frames=3"))
    assert did.decodes == {"a.mp4": 1}
    after = table(built, "clips")
    others = {i for i, c in before.items() if not c["uri"].endswith("a.mp4")}
    assert {i: after[i] for i in others} == {i: before[i] for i in others}
    assert f"{len(others)} clips of sources that were not named" in capsys.readouterr().err


def test_a_changed_detector_measures_again(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    new = changed(config, "shots.detector=none")
    _, todo, did = build(folder, built, new)
    assert did.measured == dict.fromkeys(["a.mp4", "b.mkv", "fast.mp4", "still.png"], 1)
    assert did.rescored == {}
    assert set(todo.reasons.values()) == {"shots or spans changed"}
    scratch, _, _ = build(folder, tmp_path / "scratch", new)
    assert table(built, "clips") == table(scratch, "clips")
    assert set(table(built, "shards")) == set(table(scratch, "shards"))
    kept = set(table(scratch, "shards")) - set(did.encoded)
    assert kept  # spans that came out the same are not encoded again


def test_changed_rules_decode_nothing(built: Dataset, folder: Path, config: Config) -> None:
    shards = files(built, "shards")
    _, _, did = build(folder, built, changed(config, "rules.duration.seconds.min=1.2"))
    assert did.decodes == {}
    assert did.model_clips == did.encoded == {}
    assert set(table(built, "shards")) == {
        v["clip_id"] for v in built.verdicts() if v["status"] == "accepted"
    }
    build(folder, built, changed(config, "rules.duration.seconds.min=0.5"))
    assert set(files(built, "shards")) >= set(shards)


def test_changed_encoder_settings_encode_again_and_score_nothing(
    built: Dataset, folder: Path, config: Config
) -> None:
    accepted = set(table(built, "shards"))
    clips = files(built, "clips")
    _, _, did = build(folder, built, changed(config, "cut.crf=30"))
    assert (did.measured, did.rescored, did.model_clips) == ({}, {}, {})
    assert did.encoded == dict.fromkeys(accepted, 1)
    assert files(built, "clips") == clips


def test_a_new_source_is_added_and_nothing_else_is_touched(
    built: Dataset, folder: Path, config: Config
) -> None:
    render.write_video(folder / "new.mp4", render.scenes([30], (96, 64), fps=20, seed=9), fps=20)
    clips, shards = files(built, "clips"), files(built, "shards")
    _, _, did = build(folder, built, config)
    assert did.measured == {"new.mp4": 1}
    assert set(did.cut) == {"new.mp4"}
    assert files(built, "clips").items() >= clips.items()
    assert files(built, "shards").items() >= shards.items()


# --- sources that go, come back, or change ----------------------------------------------------------


def test_a_vanished_source_stays_as_it_was_measured_and_is_reported(
    built: Dataset, folder: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table(built, "shards")
    listed = [str(folder / n) for n in ("a.mp4", "b.mkv", "fast.mp4", "still.png")]
    (folder / "b.mkv").unlink()
    (folder / "list.csv").write_text("path\n" + "\n".join(listed))
    _, todo, did = build(folder / "list.csv", built, config, prune=True)  # named, so not pruned
    assert did.decodes == {}
    assert [Path(row["uri"]).name for row in todo.vanished] == ["b.mkv"]
    assert "cannot be read now but were before" in capsys.readouterr().err
    assert table(built, "shards") == before
    assert accounting(built).sources == 4


def test_a_changed_source_is_new_and_its_old_clips_stay_until_they_are_pruned(
    built: Dataset, folder: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {i for i, c in table(built, "clips").items() if c["uri"].endswith("b.mkv")}
    render.write_video(folder / "b.mkv", render.scenes([50], (128, 128), fps=20, seed=6), fps=20)
    _, todo, did = build(folder, built, config)
    assert did.measured == {"b.mkv": 1}
    assert [Path(row["uri"]).name for row in todo.changed] == ["b.mkv"]
    assert "have changed since they were measured" in capsys.readouterr().err
    now = {i for i, c in table(built, "clips").items() if c["uri"].endswith("b.mkv")}
    assert now > old
    _, _, did = build(folder, built, config, prune=True)
    assert did.decodes == {}
    left = {i for i, c in table(built, "clips").items() if c["uri"].endswith("b.mkv")}
    assert left == now - old
    assert set(table(built, "shards")) & old == set()


def test_clips_of_a_file_that_has_changed_are_never_cut_from_the_new_one(
    built: Dataset, folder: Path, config: Config
) -> None:
    """Same length, same frame count, other pictures: only the content tells."""
    path = folder / "fast.mp4"
    measured_times = path.stat()
    render.write_video(path, render.pan(4, (192, 108), fps=20, seconds=2, speed=0.6), fps=20)
    os.utime(path, ns=(measured_times.st_atime_ns, measured_times.st_mtime_ns + 1))
    new = changed(config, "rules.motion.speed.max=2", "rules.aesthetics.mean=null")
    with Inline() as did:
        select.reselect(built, new, Progress(), nullcontext)
    assert did.encoded == {}
    failed = [v for v in built.verdicts() if v["status"] == "failed"]
    assert failed
    assert all("changed" in v["message"] for v in failed)
    assert verify(built) == []


def test_shards_do_not_depend_on_how_many_are_given_out_at_once(
    built: Dataset, folder: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = changed(config, "shards.target_mb=0.01")
    at_once, _, _ = build(folder, tmp_path / "at once", small)
    assert len(at_once.parts("shards")) >= 3
    monkeypatch.setattr(cuts, "_CLIPS_PER_WAVE", 2)
    in_waves, _, _ = build(folder, tmp_path / "in waves", small)
    assert files(in_waves, "shards").keys() == files(at_once, "shards").keys()
    assert list(in_waves.rows("shards")) == list(at_once.rows("shards"))


def test_failed_clips_are_tried_again_when_asked(built: Dataset, folder: Path, config: Config) -> None:
    new = changed(config, "cut.crf=30")
    (folder / "b.mkv").rename(folder / "away")
    named = [str(folder / n) for n in ("a.mp4", "b.mkv", "fast.mp4", "still.png")]
    (folder / "list.csv").write_text("\n".join(["path", *named]))
    build(folder / "list.csv", built, new)
    failed = {v["clip_id"] for v in built.verdicts() if v["status"] == "failed"}
    assert failed == {i for i, c in table(built, "clips").items() if c["uri"].endswith("b.mkv")}
    (folder / "away").rename(folder / "b.mkv")
    assert build(folder / "list.csv", built, new)[2].decodes == {}
    _, _, did = build(folder / "list.csv", built, new, retry_failed=True)
    assert set(did.encoded) == failed
    assert accounting(built).failed_clips == 0


def test_a_file_that_changes_while_it_is_measured_fails(folder: Path, config: Config, tmp_path: Path) -> None:
    from curation.sources import identity

    listed = list_sources([str(folder / "a.mp4"), str(folder / "b.mkv")])
    identify = identity.identify

    def then_touched(*args: Any, **options: Any) -> Any:
        found = identify(*args, **options)
        with (folder / "a.mp4").open("ab") as file:
            file.write(b"more")
        return found

    dataset = Dataset(str(tmp_path / "d"))
    with pytest.MonkeyPatch.context() as patch, Inline():
        patch.setattr("curation.verdicts.todo.identify", then_touched)
        pipeline.build(dataset, listed, config, Progress())
    (failed,) = (s for s in dataset.rows("sources") if s["status"] == "failed")
    assert (Path(failed["uri"]).name, failed["error"], failed["clips"]) == ("a.mp4", "Changed", 0)
    assert {Path(c["uri"]).name for c in dataset.rows("clips")} == {"b.mkv"}
    assert verify(dataset) == []
    # Named again it is what it is now, and the failure is forgotten.
    build([s.uri for s in listed], dataset, config)
    assert [s["status"] for s in dataset.rows("sources")] == ["measured", "measured"]


def test_other_columns_of_a_list_that_change_are_taken_over(
    built: Dataset, folder: Path, config: Config
) -> None:
    before = {r["clip_id"]: r["video"] for r in built.rows("shards")}
    listed = folder / "list.csv"
    listed.write_text(f"path,licence\n{folder / 'a.mp4'},CC0\n{folder / 'b.mkv'},\n")
    _, todo, did = build(listed, built, config)
    assert (did.decodes, len(todo.extras)) == ({}, 2)
    for row in built.rows("shards"):
        licence = {"a.mp4": "CC0", "b.mkv": ""}.get(Path(row["uri"]).name)
        assert row["extra"] == (None if licence is None else json.dumps({"licence": licence}))
    assert {r["clip_id"]: r["video"] for r in built.rows("shards")} == before
    assert build(listed, built, config)[1].extras == {}
    assert build(folder, built, config)[1].extras == {}  # a folder says nothing of them: they stay
    assert {r["extra"] for r in built.rows("sources")} >= {json.dumps({"licence": "CC0"})}


def test_a_broken_file_that_was_mended_leaves_no_failed_row(
    folder: Path, config: Config, tmp_path: Path
) -> None:
    good = (folder / "b.mkv").read_bytes()
    (folder / "b.mkv").write_bytes(good[:100])
    dataset, _, _ = build(folder, tmp_path / "d", config)
    assert accounting(dataset).failed_sources == 1
    (folder / "b.mkv").write_bytes(good)
    _, _, did = build(folder, dataset, config)
    assert set(did.measured) == {"b.mkv"}
    assert (accounting(dataset).failed_sources, accounting(dataset).sources) == (0, 4)


def test_sources_that_are_not_named_stay_and_prune_removes_them(
    built: Dataset, folder: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = table(built, "shards")
    named = [str(folder / n) for n in ("a.mp4", "still.png")]
    _, todo, did = build(named, built, config)
    assert {Path(row["uri"]).name for row in todo.unlisted} == {"b.mkv", "fast.mp4"}
    assert "were not named" in capsys.readouterr().err
    assert table(built, "shards") == before
    _, todo, did = build(named, built, config, prune=True)
    assert did.decodes == {}
    assert {Path(s["uri"]).name for s in built.rows("sources")} == {"a.mp4", "still.png"}
    for name in ("clips", "shards"):
        assert {Path(r["uri"]).name for r in built.rows(name)} == {"a.mp4", "still.png"}
    clips = {c["clip_id"] for c in built.rows("clips")}
    assert {v["clip_id"] for v in built.verdicts()} == clips
    assert {c["clip_id"] for c in built.rows("captions")} <= clips
    assert {i: r for i, r in before.items() if i in clips} == table(built, "shards")


def test_prune_leaves_what_lies_below_a_folder_that_cannot_be_read(
    built: Dataset, folder: Path, config: Config
) -> None:
    before = table(built, "shards")
    unreadable = Source(
        str(folder), error=("PermissionError", "the folder cannot be read: Permission denied")
    )
    with Inline() as did:
        todo = pipeline.build(built, [unreadable], config, Progress(), prune=True)
    assert (did.decodes, len(todo.vanished), todo.pruned) == ({}, 4, [])
    assert table(built, "shards") == before
    assert accounting(built).failed_sources == 1  # the folder itself
    assert verify(built) == []


def test_a_copy_of_a_source_that_stays_is_no_new_source(
    built: Dataset, folder: Path, config: Config, tmp_path: Path
) -> None:
    shutil.copy(folder / "a.mp4", tmp_path / "again.mp4")
    _, _, did = build([str(tmp_path / "again.mp4")], built, config)
    assert did.decodes == {}
    (copy,) = (s for s in built.rows("sources") if s["uri"].endswith("again.mp4"))
    assert copy["duplicate_of"]
    # When the first one goes, the copy is measured for itself.
    _, _, did = build([str(tmp_path / "again.mp4")], built, config, prune=True)
    assert did.measured == {"again.mp4": 1}
    assert {Path(c["uri"]).name for c in built.rows("clips")} == {"again.mp4"}


def test_remove_is_for_good_copies_included(
    built: Dataset, folder: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "a.mp4", folder / "copy of a.mp4")
    build(folder, built, config)
    a = {i for i, c in table(built, "clips").items() if c["uri"].endswith("a.mp4")}
    others = {i: r for i, r in table(built, "shards").items() if i not in a}
    sources, clips, rows = remove.remove(built, [str(folder / "a.mp4")], config)
    assert (sources, clips, rows) == (2, len(a), len(a))
    assert table(built, "shards") == others
    assert verify(built) == []
    for name in ("clips", "captions", "failures", "shards"):
        assert not a & {r["clip_id"] for r in built.rows(name)}
    shutil.copy(folder / "a.mp4", folder / "another name.mp4")
    _, todo, did = build(folder, built, config)
    assert did.decodes == {}
    assert len(todo.barred) == 3
    assert "removed with reelmill remove" in capsys.readouterr().err
    assert not a & set(table(built, "clips"))
    assert Removed(built).forget([str(folder / "b.mkv")]) == 0
    assert Removed(built).forget([str(folder / "another name.mp4")]) == 2  # by its content
    _, _, did = build(folder, built, config)
    assert did.measured == {"a.mp4": 1}


def test_a_removal_that_was_killed_is_finished_by_the_next_command(
    built: Dataset, folder: Path, config: Config
) -> None:
    from curation.sources import removed

    rows = removed.named(built, [str(folder / "b.mkv")])
    Removed(built).add(rows)  # noted, and then killed
    prepare.settle(built)
    assert "b.mkv" not in {Path(s["uri"]).name for s in built.rows("sources")}
    build(folder, built, config)
    assert "b.mkv" not in {Path(s["uri"]).name for s in built.rows("shards")}


def test_remove_names_what_it_does_not_know(built: Dataset, config: Config) -> None:
    before = files(built, "clips")
    with pytest.raises(ValueError, match=r"nothere\.mp4 is no source"):
        remove.remove(built, ["nothere.mp4"], config)
    assert files(built, "clips") == before


# --- a source that cannot be scored again, and read errors that pass --------------------------------


def test_a_source_that_cannot_be_scored_again_keeps_its_clips_unscored(
    built: Dataset, folder: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    from curation.sandbox.parent import Child
    from curation.sandbox.protocol import SourceFailed

    new = changed(config, "filters.quality.frames=3")
    before = table(built, "clips")
    with Inline(), pytest.MonkeyPatch.context() as patch:
        request = Child.request

        def failing(child: Child, asked: Row, deadline_s: float) -> Any:
            if asked["op"] == "rescore" and asked["uri"].endswith("b.mkv"):
                raise SourceFailed("open", "InvalidDataError", "it is broken now")
            return request(child, asked, deadline_s)

        patch.setattr(Child, "request", failing)
        pipeline.build(built, list_sources([str(folder)]), new, Progress())
    assert "b.mkv: open: InvalidDataError: it is broken now" in capsys.readouterr().err
    after = table(built, "clips")
    for i, clip in after.items():
        assert (clip["quality.sharpness"] is None) == clip["uri"].endswith("b.mkv")
        assert clip["motion.speed"] == before[i]["motion.speed"]
    assert verify(built) == []
    _, _, did = build(folder, built, new)  # and the next build tries again
    assert did.rescored == {"b.mkv": 1}
    assert all(c["quality.sharpness"] is not None for c in built.rows("clips"))


@pytest.mark.parametrize("phase", ["measure", "rescore", "cut"])
def test_a_fault_that_passes_is_tried_again_and_leaves_no_trace(
    folder: Path, config: Config, tmp_path: Path, phase: str
) -> None:
    from curation.sandbox.parent import Child
    from curation.sandbox.protocol import SourceFailed

    quick = changed(config, "run.retry_seconds=0.01", "run.read_retries=2")
    old = changed(quick, "filters.quality.frames=3")
    reference, _, _ = build(folder, tmp_path / "reference", quick)
    dataset = Dataset(str(tmp_path / "d"))
    if phase == "rescore":
        build(folder, dataset, old)
    faults = {"a.mp4": 2, "b.mkv": 1}
    with Inline() as did, pytest.MonkeyPatch.context() as patch:
        request = Child.request

        def failing(child: Child, asked: Row, deadline_s: float) -> Any:
            name = Path(asked["uri"]).name
            if asked["op"] == phase and faults.get(name):
                faults[name] -= 1
                yield from islice(request(child, asked, deadline_s), 1 if phase == "cut" else 2)
                raise SourceFailed(phase, "OSError", "Input/output error", transient=True)
            yield from request(child, asked, deadline_s)

        patch.setattr(Child, "request", failing)
        pipeline.build(dataset, list_sources([str(folder)]), quick, Progress())
    assert faults == {"a.mp4": 0, "b.mkv": 0}
    assert accounting(dataset).failed_sources == accounting(dataset).failed_clips == 0
    assert verify(dataset) == []
    assert table(dataset, "clips") == table(reference, "clips")
    assert set(table(dataset, "shards")) == set(table(reference, "shards"))
    assert did.decodes["a.mp4"] >= 2


# --- limits, and what a build would do --------------------------------------------------------------


def test_too_many_failures_stop_the_build_and_it_can_go_on(
    folder: Path, config: Config, tmp_path: Path
) -> None:
    for k in range(3):
        (folder / f"0{k}.mp4").write_bytes(b"no video" * (k + 1))
    limited = changed(config, "run.max_failed_fraction=0.25")
    dataset = Dataset(str(tmp_path / "d"))
    listed = list_sources([str(folder)])
    says = r"2 of 7 sources failed.*max_failed_fraction=0.25"
    with Inline() as did, pytest.raises(Stopped, match=says):
        pipeline.build(dataset, listed, limited, Progress())
    assert len(did.measured) == 2  # not one more than was needed to know
    assert "did not come to its end" in status.waiting(dataset, limited)
    with Inline() as did, pytest.raises(Stopped):  # and again, at once
        pipeline.build(dataset, listed, limited, Progress())
    assert did.decodes == {}
    _, _, did = build(folder, dataset, changed(config, "run.max_failed_fraction=0.5"))
    assert accounting(dataset).failed_sources == 3
    assert "00.mp4" not in did.measured
    for k in range(3):
        (folder / f"0{k}.mp4").unlink()
    build(folder, dataset, limited, prune=True)
    assert accounting(dataset).failed_sources == 0


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            [],
            [
                "4 sources named: 0 to measure, 4 done before",
                "5 clips are known to be accepted, 0 of them newly; 0 that were",
                "0 clips are known to be encoded; 5",
            ],
        ),
        (["shots.detector=none"], ["shots.detector: similarity -> none", "4 shots or spans changed"]),
        (
            ["filters.quality.frames=3"],
            [
                "4 to score again",
                "4 quality not scored, or scored otherwise",
                "6 clips would be judged after they were scored; 5",
            ],
        ),
        (
            ["cut.crf=30"],
            ["cut.crf: 18 -> 30", "clips are known to be encoded again: the settings of cut changed"],
        ),
        (["rules.motion.speed.max=2"], ["1 aesthetics not scored", "clips would be judged after"]),
        (
            ["rules.duration.seconds.min=100"],
            ["1 clips are known to be accepted, 0 of them newly; 4 that were accepted would be rejected"],
        ),
    ],
)
def test_explain_says_what_a_build_would_do_and_writes_nothing(
    built: Dataset, folder: Path, config: Config, overrides: list[str], says: list[str]
) -> None:
    before = {p: p.read_bytes() for p in Path(built.location).rglob("*") if p.is_file()}
    listed, new = list_sources([str(folder)]), changed(config, *overrides)
    text = "\n".join(explain(built, listed, new, find_work(built, listed, new)))
    for words in says:
        assert words in text
    assert {p: p.read_bytes() for p in Path(built.location).rglob("*") if p.is_file()} == before
    assert not any(math.isnan(c[n] or 0) for c in built.rows("clips") for n in SCORE_COLUMNS)


@pytest.mark.parametrize("before", [[], [4]], ids=["measured", "scored again"])
def test_a_clip_of_which_no_frame_was_kept_is_tried_once(
    before: list[int], tmp_path: Path, config: Config
) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    # One frame a clip means a grid of 1 s: the second scene lies between two of its points.
    render.write_video(footage / "a.mp4", render.scenes([24, 14, 30], (192, 108), fps=20), fps=20)
    for frames in before:
        settings = changed(config, f"filters.aesthetics.frames={frames}")
        _, _, did = build(footage, tmp_path / "d", settings)
        assert did.model_clips["aesthetics"] == 3
    one = changed(config, "filters.aesthetics.frames=1")
    dataset, _, did = build(footage, tmp_path / "d", one)
    assert bool(did.rescored) == bool(before)
    scores = [c["aesthetics.mean"] for c in sorted(dataset.rows("clips"), key=lambda c: c["start_s"])]
    assert [s is None for s in scores] == [False, True, False]
    assert status.waiting(dataset, one) == ""
    assert apply.not_scored(dataset, one) == 0  # a build would not score it either
    rejected = [v for v in dataset.verdicts() if v["status"] == "rejected"]
    assert [(v["reason"], v["message"]) for v in rejected] == [("aesthetics.mean", "not scored")]
    _, todo, did = build(footage, dataset, one)
    assert (todo.sources, did.decodes, did.model_clips) == (0, {}, {})
