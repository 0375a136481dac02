"""Captions by models: made from the shards, committed in parts, joined by clip, chosen by configuration."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from captioning import makers
from captioning.base import CaptionerMissing, CaptionFailed, CaptionRequest, Pictures
from captioning.checks.measures import CHECKS
from curation import pipeline
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.captions import wanted
from curation.commands import caption, select, status
from curation.config.load import load_config, validated
from curation.config.schema import Config, ConfigError
from curation.decode.pictures import pictures, times
from curation.driver import captions, prepare
from curation.progress import Progress, Stopped
from curation.report.page import render
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from curation.store.schema import CAPTION_COLUMNS, CAPTIONS, FAILURES, SCHEMA_VERSION
from curation.tasks.caption import AskedClip
from tests import render as drawn
from tests.captioning.chat_server import Asked, ChatServer, Reply
from tests.conftest import CHEAP
from tests.curation.helpers import decode
from tests.curation.inline import Inline
from tests.curation.speaker import Rewriter, Speaker, share

Row = dict[str, Any]
SETTINGS = [
    "spans.min_seconds=1",
    "spans.max_seconds=1.5",
    "spans.trim_seconds=0.1",
    "cut.preset=ultrafast",
    "shards.target_mb=0.3",
    "shards.row_group_mb=0.05",
    "captions.captioner=transformers",
    "rules.caption.repetition.max=0.3",
]


@pytest.fixture(autouse=True)
def _speaker(monkeypatch: pytest.MonkeyPatch) -> None:
    use_speaker(monkeypatch)


def use_speaker(patch: pytest.MonkeyPatch) -> None:
    speakers = {name: ("tests.curation.speaker", name.capitalize()) for name in ("speaker", "rewriter")}
    places = {"transformers": speakers["speaker"], "rewrite": speakers["rewriter"]}
    places = {**makers._PLACES, **places}
    patch.setattr(makers, "_PLACES", places)


def config(*overrides: str) -> Config:
    return load_config(CHEAP, [*SETTINGS, *overrides])


def write_footage(folder: Path) -> None:
    folder.mkdir(parents=True)
    for k in range(3):
        frames = drawn.scenes([40, 50 + k], (128, 96), fps=20, seed=10 * k)
        drawn.write_video(folder / f"{k}.mp4", frames, fps=20)
    (folder / "1.txt").write_text("what a person wrote")
    Image.fromarray(drawn.texture(4, 96, 128)).save(folder / "still.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("captions")
    write_footage(here / "footage")
    with pytest.MonkeyPatch.context() as patch:
        use_speaker(patch)
        build(here, here / "built", config())
    return here


@pytest.fixture
def built(place: Path, tmp_path: Path) -> Dataset:
    shutil.copytree(place / "built", tmp_path / "d")
    return Dataset(str(tmp_path / "d"))


def build(place: Path, out: Path | Dataset, settings: Config, **options: Any) -> tuple[Dataset, Inline]:
    dataset = out if isinstance(out, Dataset) else Dataset(str(out))
    with Inline() as did:
        listed = list_sources([str(place / "footage")])
        pipeline.build(dataset, listed, settings, Progress(), **options)
    sound(dataset, settings)
    return dataset, did


def recaption(dataset: Dataset, settings: Config, **options: Any) -> Inline:
    with Inline() as did:
        caption.recaption(dataset, settings, Progress(), nullcontext, **options)
    sound(dataset, settings)
    return did


def sound(dataset: Dataset, settings: Config) -> None:
    assert verify(dataset) == []
    assert accounting(dataset).check() == []
    assert status.waiting(dataset, settings) == ""


def table(dataset: Dataset, name: str) -> dict[str, Row]:
    rows = dataset.verdicts() if name == "verdicts" else dataset.rows(name)
    return {row["clip_id"]: row for row in rows}


def drawn_by(dataset: Dataset, what: str, sixteenths: int) -> set[str]:
    """The clips to which the speaker does so."""
    rows = dataset.rows("clips", ["clip_id", "uri", "start_s"])
    return {r["clip_id"] for r in rows if share(r["uri"], r["start_s"], what) < sixteenths}


def videos(dataset: Dataset) -> dict[str, bytes]:
    return {row["clip_id"]: row["video"]["bytes"] for row in dataset.rows("shards", ["clip_id", "video"])}


def test_each_clip_has_what_the_captioner_says_of_its_own_pictures(built: Dataset) -> None:
    speaker = Speaker()
    rows = table(built, "shards")
    assert len(rows) >= 7
    assert sum(row["fps"] is None for row in rows.values()) == 1  # a still is captioned, too
    for clip_id, row in rows.items():
        seen, at = pictures(row["video"]["bytes"], row["duration_s"], speaker.pictures)
        request = CaptionRequest(clip_id, "", 0, 0, pictures=tuple(seen), times_s=tuple(at))
        assert row["caption"] == speaker.say(request)
        assert [c["text"] for c in row["captions"]] == [row["caption"]]
        assert row["captions"][0]["model"] == "speaker"
    assert len({row["caption"] for row in rows.values()}) == len(rows)
    for row in built.rows("captions"):
        assert all(row[f"caption.{name}"] is not None for name in CHECKS)
        assert row["caption.similarity"] is None


def test_a_second_build_captions_nothing_and_other_rules_only_what_is_new(
    place: Path, built: Dataset, tmp_path: Path
) -> None:
    _, did = build(place, built, config())
    assert did.captioned == did.encoded == did.decodes == {}
    tight = config("rules.quality.brightness.min=0.45")
    dataset, did = build(place, tmp_path / "tight", tight)
    before = set(table(dataset, "shards"))
    assert 0 < len(before) < len(table(built, "shards"))
    assert did.captioned == dict.fromkeys(before, 1)
    with Inline() as did:
        select.reselect(dataset, config(), Progress(), nullcontext)
    sound(dataset, config())
    assert did.captioned == dict.fromkeys(set(table(built, "shards")) - before, 1)
    assert table(dataset, "captions") == table(built, "captions")
    assert {i: r["caption"] for i, r in table(dataset, "shards").items()} == {
        i: r["caption"] for i, r in table(built, "shards").items()
    }


def test_captioners_stay_side_by_side_and_the_one_configured_is_trained_on(
    place: Path, built: Dataset
) -> None:
    first, bytes_ = table(built, "shards"), videos(built)
    other = config("captions.transformers={model: other, frames: 2}")
    did = recaption(built, other)
    assert did.decodes == did.encoded == {}
    assert did.captioned == dict.fromkeys(first, 1)
    both = table(built, "shards")
    assert videos(built) == bytes_
    for clip_id, row in both.items():
        assert [c["model"] for c in row["captions"]] == ["other", "speaker"]
        assert row["caption"] == row["captions"][0]["text"] != first[clip_id]["caption"]
        assert row["captions"][1] == first[clip_id]["captions"][0]
    # Back again: nobody is asked.
    did = recaption(built, config())
    assert did.captioned == did.decodes == {}
    assert {i: r["caption"] for i, r in table(built, "shards").items()} == {
        i: r["caption"] for i, r in first.items()
    }
    # What people wrote, and then nothing.
    did = recaption(built, config("captions.captioner=sidecar"))
    assert did.captioned == did.decodes == {}
    said = {Path(r["uri"]).name: r["caption"] for r in built.rows("shards")}
    assert said == {"0.mp4": None, "1.mp4": "what a person wrote", "2.mp4": None, "still.png": None}
    recaption(built, config("captions.captioner=none"))
    assert {r["caption"] for r in built.rows("shards")} == {None}
    assert videos(built) == bytes_


def test_a_caption_that_fails_its_check_is_asked_for_once_more(place: Path, tmp_path: Path) -> None:
    settings = config("captions.transformers={stutters: 8, stutters_again: 8}")
    dataset, did = build(place, tmp_path / "d", settings)
    asked = table(dataset, "clips")
    stutter = drawn_by(dataset, "stutters", 8)
    lost = stutter & drawn_by(dataset, "again", 8)
    assert 0 < len(lost) < len(stutter) < len(asked)  # or the footage has to be another
    assert did.captioned == {i: 1 + (i in stutter) for i in asked}
    verdicts = table(dataset, "verdicts")
    assert {i for i, v in verdicts.items() if v["reason"] == "caption.repetition"} == lost
    assert all("caption.repetition" in verdicts[i]["message"] for i in lost)
    assert set(table(dataset, "shards")) == set(asked) - lost
    assert accounting(dataset).by_reason == {"caption.repetition": len(lost)}
    page = render(dataset)
    assert 'data-step="caption.repetition"' in page
    assert "A dog runs and runs and" in page
    kept = next(iter(table(dataset, "shards").values()))["caption"]
    assert kept in page
    # Nothing is asked again, nor cut.
    _, did = build(place, dataset, settings)
    assert did.captioned == did.encoded == {}
    # Another rule is a question to the numbers that are there.
    with Inline() as did:
        select.reselect(
            dataset, config(*_stuttering, "rules.caption.repetition=null"), Progress(), nullcontext
        )
    assert (did.captioned, set(did.encoded)) == ({}, lost)
    assert set(table(dataset, "shards")) == set(asked)


_stuttering = ["captions.transformers={stutters: 8, stutters_again: 8}"]


def test_what_fails_its_checks_is_kept_if_asked_for(place: Path, tmp_path: Path) -> None:
    settings = config(*_stuttering, "captions.on_failed_check=keep")
    dataset, did = build(place, tmp_path / "d", settings)
    assert set(table(dataset, "shards")) == set(table(dataset, "clips"))
    assert max(did.captioned.values()) == 2  # it was tried again all the same
    values = [r["caption.repetition"] for r in dataset.rows("captions")]
    assert max(values) > 0.3


def test_rules_on_captions_do_not_apply_to_what_people_wrote(place: Path, tmp_path: Path) -> None:
    settings = config("captions.captioner=sidecar", "rules.caption.words.min=50")
    dataset, _ = build(place, tmp_path / "d", settings)
    assert {v["status"] for v in dataset.verdicts()} == {"accepted"}


def test_failures_are_recorded_and_tried_again_when_asked(place: Path, tmp_path: Path) -> None:
    failing = config("captions.transformers={fails: 8}", "run.caption_failures_in_a_row=32")
    dataset, did = build(place, tmp_path / "d", failing)
    failed = drawn_by(dataset, "fails", 8)
    assert 0 < len(failed) < len(table(dataset, "clips"))
    assert {f["clip_id"]: f["stage"] for f in dataset.rows("failures")} == dict.fromkeys(failed, "caption")
    verdicts = table(dataset, "verdicts")
    assert {i for i, v in verdicts.items() if v["status"] == "failed"} == failed
    assert verdicts[min(failed)]["message"] == "Timeout: the speaker was silent"
    assert set(table(dataset, "shards")) == set(table(dataset, "clips")) - failed
    _, did = build(place, dataset, failing)
    assert did.captioned == did.encoded == {}
    # Another captioner does not inherit them; and the first one is tried again when asked.
    did = recaption(dataset, config("captions.captioner=sidecar"))
    assert set(did.encoded) == failed
    did = recaption(dataset, config(), retry_failed=True)
    assert did.captioned == dict.fromkeys(failed, 1)
    assert did.encoded == {}
    assert list(dataset.rows("failures")) == []


def test_too_many_failures_in_a_row_stop_and_are_not_held_against_the_clips(
    place: Path, tmp_path: Path
) -> None:
    away = config("captions.transformers={fails: 16}", "run.caption_failures_in_a_row=3")
    with pytest.raises(Stopped, match=r"3 clips in a row .* the speaker was silent.* the same command again"):
        build(place, tmp_path / "d", away)
    dataset = Dataset(str(tmp_path / "d"))
    assert list(dataset.rows("failures")) == []
    assert "clips in shards to caption" in status.waiting(dataset, away)
    _, did = build(place, dataset, config())
    assert did.encoded == did.measured == {}
    assert did.captioned == dict.fromkeys(table(dataset, "clips"), 1)


def deaf_after(patch: pytest.MonkeyPatch, answered: int, *, gone: bool, error: str = "Timeout") -> None:
    """The speaker answers that often, and then fails, clip by clip."""
    call, told = Speaker.__call__, Counter[str]()

    def deaf(speaker: Speaker, clips: Any) -> Any:
        found = []
        for said in call(speaker, clips):
            told[said.clip_id] += 1
            heard = len(told) <= answered
            found.append(said if heard else CaptionFailed(said.clip_id, error, "no answer within 120 s"))
        return found

    def check(speaker: Speaker) -> None:
        if gone and told:
            raise CaptionerMissing("captions.transformers: the speaker has gone")

    patch.setattr(Speaker, "__call__", deaf)
    patch.setattr(Speaker, "check", check)


@pytest.mark.parametrize("left", [2, 10])
def test_a_captioner_that_goes_away_in_a_small_dataset_fails_no_clip(
    built: Dataset, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    other = config("captions.transformers={model: other}")
    clips = set(table(built, "shards"))
    with monkeypatch.context() as patch:
        deaf_after(patch, len(clips) - left, gone=True)
        with pytest.raises(Stopped) as stopped, Inline():
            caption.recaption(built, other, Progress(), nullcontext)
    said = ["clips in a row", f"resume with: reelmill caption {built.address('')}".rstrip("/")]
    said.append("the speaker has gone" if left == 2 else "no answer within 120 s")
    assert [words for words in said if words not in str(stopped.value)] == []
    assert list(built.rows("failures")) == []
    assert status.waiting(built, other).startswith(f"{left} clips in shards to caption")
    assert set(table(built, "shards")) == clips
    did = recaption(built, validated(built.manifest()["config"]))
    assert len(did.captioned) == left
    assert did.encoded == {}


def test_a_captioner_that_is_away_from_the_first_clip_on_changes_nothing(
    built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(built)
    deaf_after(monkeypatch, 0, gone=False)
    with pytest.raises(Stopped, match="run the same command again"):
        recaption(built, config("captions.transformers={model: other}"))
    assert contents(built) == before


@pytest.mark.parametrize(("left", "error"), [(3, "Timeout"), (10, "BadAnswer")])
def test_clips_that_fail_for_good_are_told_at_the_end(
    built: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: int, error: str
) -> None:
    clips = set(table(built, "shards"))
    other = config("captions.transformers={model: other}")
    with monkeypatch.context() as patch:
        deaf_after(patch, len(clips) - left, gone=False, error=error)
        recaption(built, other)
    said = [line for line in capsys.readouterr().err.splitlines() if "--retry-failed" in line]
    assert said == [
        f"{left} clips could not be captioned and have left the shards, {left} of them for {error}: no "
        f"answer within 120 s; to try them again: {captions.command(built)} --retry-failed"
    ]
    assert len(table(built, "shards")) == len(clips) - left
    recaption(built, other, retry_failed=True)
    assert set(table(built, "shards")) == clips


def test_captions_are_committed_as_they_come(
    place: Path, built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "_PART_ROWS", 2)
    other = config("captions.transformers={model: other}")
    call, asked = Speaker.__call__, Counter[str]()

    def tired(speaker: Speaker, clips: Any) -> Any:
        if len(asked) >= 4:
            raise RuntimeError("the machine is gone")
        asked.update(c.clip_id for c in clips)
        return call(speaker, clips)

    with monkeypatch.context() as patch:
        patch.setattr(Speaker, "__call__", tired)
        with pytest.raises(RuntimeError):
            recaption(built, other)
    assert "to caption" in status.waiting(built, other)
    did = recaption(built, other)
    # What the first run was told is not asked for again.
    assert not set(did.captioned) & set(asked)
    assert set(did.captioned) | set(asked) == set(table(built, "shards"))


def test_a_captioner_that_is_missing_is_told_before_any_work(place: Path, tmp_path: Path) -> None:
    with pytest.raises(CaptionerMissing, match=r"captions\.transformers\.model"):
        prepare.check_models(config("captions.transformers={missing: true}"))
    assert prepare.check_models(config()) is None


def contents(dataset: Dataset) -> dict[str, bytes]:
    folder = Path(dataset.address(""))
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("overrides", "retry_failed"),
    [
        (["captions.transformers={model: other, missing: true}"], False),
        (["captions.transformers={model: other, missing: true}"], True),
        (["captions.rewrite={missing: true}", "captions.kind=rewritten"], False),
        (["captions.captioner=sidecar", "captions.rewrite={missing: true}"], False),
    ],
)
def test_a_captioner_that_is_missing_changes_nothing(
    built: Dataset, overrides: list[str], retry_failed: bool
) -> None:
    before = contents(built)
    with pytest.raises(CaptionerMissing):
        recaption(built, config(*overrides), retry_failed=retry_failed)
    assert contents(built) == before
    assert status.waiting(built, config()) == ""


def test_a_captioner_that_breaks_at_its_first_clip_changes_nothing(
    built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(speaker: Speaker, clips: Any) -> Any:
        raise CaptionerMissing("captions.transformers.model: cannot be loaded")

    before = contents(built)
    monkeypatch.setattr(Speaker, "__call__", broken)
    monkeypatch.setattr(Rewriter, "__call__", broken)
    for overrides in (["captions.transformers={model: other}"], ["captions.rewrite={}"]):
        with pytest.raises(CaptionerMissing):
            recaption(built, config(*overrides))
        assert contents(built) == before


def test_a_server_that_fails_at_the_opening_question_changes_nothing(built: Dataset) -> None:
    before = contents(built)
    with ChatServer(lambda asked: Reply(status=500)) as server:
        given = f"captions.endpoint={{url: '{server.url}', model: m, retries: 0}}"
        with pytest.raises(CaptionerMissing, match="HTTP500"):
            recaption(built, config("captions.captioner=endpoint", given))
    assert contents(built) == before


def test_clips_keep_their_old_caption_until_the_new_one_is_there(
    built: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "_PART_ROWS", 2)
    other = config("captions.transformers={model: other}")
    said = {i: r["caption"] for i, r in table(built, "shards").items()}
    call, seen = Speaker.__call__, []

    def looks(speaker: Speaker, clips: Any) -> Any:
        seen.append({i: r["caption"] for i, r in table(built, "shards").items()})
        if len(seen) == 2:
            raise RuntimeError("the machine is gone")
        return call(speaker, clips)

    with monkeypatch.context() as patch:
        patch.setattr(Speaker, "__call__", looks)
        with pytest.raises(RuntimeError):
            recaption(built, other)
    assert seen == [said, said]
    assert built.manifest()["config"]["captions"]["transformers"]["model"] == "other"
    assert status.waiting(built, other).startswith(f"{len(said) - 4} clips in shards to caption")
    recaption(built, other)
    assert not set(said.values()) & {r["caption"] for r in built.rows("shards")}


def test_what_changed_and_how_to_go_on_are_told(
    built: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from typer.testing import CliRunner

    from curation.verdicts.explain import explain
    from curation.verdicts.todo import as_listed, find_work
    from jobs.cli import app

    def told() -> str:
        return capsys.readouterr().err.splitlines()[-1]

    count = len(table(built, "shards"))
    recaption(built, config("captions.captioner=sidecar"))
    assert told() == f"{count} clips have another caption than before"
    recaption(built, config("captions.captioner=sidecar"))
    assert told() == "no caption changed"
    recaption(built, config())
    other = config("captions.transformers={model: other}")
    listed = as_listed(built)
    lines = list(explain(built, listed, other, find_work(built, listed, other)))
    assert f"{count} of them are to be captioned by transformers; 0 have its caption" in lines
    with monkeypatch.context() as patch:
        deaf_after(patch, 4, gone=True)
        with pytest.raises(Stopped):
            recaption(built, other)
    said = CliRunner().invoke(app, ["status", built.address("")])
    assert said.exit_code == 3
    assert said.output.splitlines()[-1].endswith(f"; to resume: reelmill caption {built.address('')}")


def test_rewritten_captions_stand_beside_their_originals(built: Dataset) -> None:
    first, bytes_ = table(built, "shards"), videos(built)
    settings = config("captions.rewrite={fails: 4, babbles: 4}", "captions.kind=rewritten")
    did = recaption(built, settings)
    assert did.decodes == {}
    assert set(did.captioned) == set(first)
    failed = drawn_by(built, "fails", 4)
    babbled = drawn_by(built, "babbles", 4) - failed
    assert failed
    assert babbled
    rows = table(built, "shards")
    assert set(rows) == set(first)  # nobody is turned down for a bad rewrite: the original is there
    for clip_id, row in rows.items():
        original = first[clip_id]["caption"]
        kept = clip_id in failed | babbled
        assert row["caption"] == (original if kept else original.upper())
        kinds = {c["kind"] for c in row["captions"]}
        assert kinds == ({"long"} if clip_id in failed else {"long", "rewritten"})
    assert recaption(built, settings).captioned == {}
    assert set(recaption(built, settings, retry_failed=True).captioned) == failed
    recaption(built, config("captions.rewrite={fails: 4, babbles: 4}"))  # the long ones again
    assert {i: r["caption"] for i, r in table(built, "shards").items()} == {
        i: r["caption"] for i, r in first.items()
    }
    assert videos(built) == bytes_


def test_an_edited_original_is_rewritten_anew(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "footage", tmp_path / "footage")
    settings = config("captions.captioner=sidecar", "captions.rewrite={}", "captions.kind=rewritten")
    dataset, did = build(tmp_path, tmp_path / "d", settings)
    assert did.captioned
    said = {r["caption"] for r in dataset.rows("shards")}
    assert said == {None, "WHAT A PERSON WROTE"}
    (tmp_path / "footage" / "1.txt").write_text("and then corrected")
    did = recaption(dataset, settings)
    assert did.decodes == {}
    assert {r["caption"] for r in dataset.rows("shards")} == {None, "AND THEN CORRECTED"}


def test_a_server_answers_for_the_clips(built: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of order, and not for all: each clip has what was said of its pictures, or a recorded failure."""
    import hashlib

    def of(found: list[np.ndarray]) -> str:
        mean = "".join("abcdefgh"[int(p.mean()) // 32] for p in found)
        return f"A dog runs on the grass near the {mean} tree."

    def answer(asked: Asked) -> Reply:
        seen = asked.pictures
        turned_down = hashlib.blake2b(b"".join(p.tobytes() for p in seen), digest_size=1).digest()[0] < 64
        is_probe = all(p.std() < 2 for p in seen)
        return Reply(status=400) if turned_down and not is_probe else Reply(of(seen))

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with ChatServer(answer) as server:
        settings = config(
            "captions.captioner=endpoint",
            f"captions.endpoint={{url: '{server.url}', model: m, frames: 3, side: 64, retries: 0}}",
            "captions.language=null",
            "run.caption_failures_in_a_row=20",  # answers come in any order
        )
        bytes_ = videos(built)
        did = recaption(built, settings)
        assert did.decodes == {}
    verdicts = table(built, "verdicts")
    rows = table(built, "shards")
    failed = {i for i, v in verdicts.items() if v["status"] == "failed"}
    assert failed == {f["clip_id"] for f in built.rows("failures") if f["stage"] == "caption"}
    assert set(rows) | failed == set(bytes_)
    assert rows
    for clip_id, row in rows.items():
        assert row["captions"][0]["captioner"] == "endpoint"
        assert "near the" in row["caption"]
        assert row["video"]["bytes"] == bytes_[clip_id]
    # The server has gone: that is told before any work, and captions that are there are not touched.
    again = config(
        "captions.captioner=endpoint", f"captions.endpoint={{url: '{server.url}', model: other, retries: 0}}"
    )
    before = table(built, "captions")
    with pytest.raises(CaptionerMissing, match=r"captions\.endpoint"):
        recaption(built, again)
    assert table(built, "captions") == before


def test_similarity_to_the_clip_is_measured_where_it_has_an_embedding(place: Path, tmp_path: Path) -> None:
    import json

    import open_clip
    import torch

    from tests.filters import tiny

    made = tiny.write_encoder(tmp_path / "head", "reelmill-test-captions-head")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "configs").mkdir()
    name = "reelmill-test-captions"
    (tmp_path / "configs" / f"{name}.json").write_text(json.dumps({**tiny.CONFIG, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "configs")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(name).state_dict(), tmp_path / "weights.pt")
    scorer = {"model": name, "pretrained": str(tmp_path / "weights.pt"), "head": made["head"], "frames": 2}
    settings = config(f"filters.aesthetics={json.dumps(scorer)}", "rules.caption.similarity.min=-1")
    dataset, _ = build(place, tmp_path / "d", settings)
    found = {r["clip_id"]: r["caption.similarity"] for r in dataset.rows("captions")}
    assert set(found) == set(table(dataset, "shards"))
    net = open_clip.create_model(name, pretrained=scorer["pretrained"]).eval()
    tokenizer = open_clip.get_tokenizer(name)
    texts = {r["clip_id"]: r["text"] for r in dataset.rows("captions")}
    for row in dataset.rows("clips"):
        with torch.inference_mode():
            said = net.encode_text(tokenizer([texts[row["clip_id"]]])).numpy()[0]
        seen = np.asarray(row["embedding"], np.float64)
        cosine = said @ seen / np.linalg.norm(said) / np.linalg.norm(seen)
        assert found[row["clip_id"]] == pytest.approx(cosine, abs=1e-3)
    assert len({round(v, 6) for v in found.values()}) > 3


def test_edited_sidecars_are_noticed(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "footage", tmp_path / "footage")
    settings = config("captions.captioner=sidecar")
    dataset, _ = build(tmp_path, tmp_path / "d", settings)

    def said() -> dict[str, str | None]:
        return {Path(r["uri"]).name: r["caption"] for r in dataset.rows("shards")}

    before = videos(dataset)
    (tmp_path / "footage" / "1.txt").write_text("what a person wrote later")
    (tmp_path / "footage" / "2.txt").write_text("and of another")
    did = recaption(dataset, settings)
    assert did.decodes == {}
    assert (said()["1.mp4"], said()["2.mp4"]) == ("what a person wrote later", "and of another")
    (tmp_path / "footage" / "1.txt").unlink()
    (tmp_path / "footage" / "2.txt").unlink()
    (tmp_path / "footage" / "2.mp4").rename(tmp_path / "elsewhere.mp4")  # as on a disk that is not mounted
    recaption(dataset, settings)
    assert (said()["1.mp4"], said()["2.mp4"]) == (None, "and of another")
    (tmp_path / "footage" / "0.json").write_text("{broken")
    recaption(dataset, settings)
    failed = [v for v in dataset.verdicts() if v["status"] == "failed"]
    assert {v["reason"] for v in failed} == {"caption"}
    assert videos(dataset) == {i: before[i] for i in videos(dataset)}


def test_a_dataset_of_version_1_is_read_and_upgraded(place: Path, tmp_path: Path) -> None:
    """Its captions have no checks, and failures to read a sidecar do not say which captioner failed."""
    settings = config("captions.captioner=sidecar")
    dataset, _ = build(place, tmp_path / "d", settings)
    expected = table(dataset, "captions")
    as_version_1(dataset, settings)
    assert verify(dataset) == []
    assert accounting(dataset).check() == []
    assert table(dataset, "captions") == expected
    render(dataset)
    recaption(dataset, settings)
    assert dataset.manifest()["schema_version"] == SCHEMA_VERSION
    for part in dataset.parts("captions"):
        assert dataset.open_part("captions", part).schema_arrow.equals(CAPTIONS)


def as_version_1(dataset: Dataset, settings: Config) -> None:
    import json

    old = pa.schema([field for field in CAPTIONS if field.name not in CAPTION_COLUMNS])
    for part, rows in list(dataset.tables("captions")):
        dataset.write_table(f"captions/{part}.parquet", rows.select(old.names).to_pylist(), old)
    manifest = {**dataset.manifest(), "schema_version": 1}
    dataset.write("dataset.json", json.dumps(manifest, default=str).encode())


def test_an_unreadable_sidecar_of_version_1_fails_that_captioner_only(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "footage", tmp_path / "footage")
    (tmp_path / "footage" / "1.json").write_text("{broken")
    settings = config("captions.captioner=sidecar")
    dataset, _ = build(tmp_path, tmp_path / "d", settings)
    as_version_1(dataset, settings)
    failures = [{**f, "key": settings.cut_hash()} for f in dataset.rows("failures")]
    assert failures
    for part in dataset.parts("failures"):
        dataset.remove(f"failures/{part}.parquet")
    dataset.write_table("failures/f.parquet", failures, FAILURES)
    did = recaption(dataset, config())
    assert set(did.captioned) == set(table(dataset, "clips")) == set(table(dataset, "shards"))
    recaption(dataset, settings)
    assert {v["reason"] for v in dataset.verdicts() if v["status"] == "failed"} == {"caption"}


def test_pictures_are_those_shown_at_their_times(built: Dataset) -> None:
    for row in built.rows("shards"):
        frames = decode(row["video"]["bytes"])
        for asks in (Pictures(1, None, 4096), Pictures(5, None, 4096), Pictures(40, 4.0, 4096)):
            seen, at = pictures(row["video"]["bytes"], row["duration_s"], asks)
            if row["fps"] is None:
                assert (len(seen), at) == (1, [0.0])
                assert np.array_equal(seen[0], frames[0])
                continue
            asked = times(row["duration_s"], asks)
            assert len(asked) == (min(40, round(4 * row["duration_s"])) if asks.fps else asks.count)
            shown = [min(int(t * row["fps"] + 1e-6), len(frames) - 1) for t in asked]
            assert len(seen) == len(set(shown))
            assert all(np.array_equal(p, frames[k]) for p, k in zip(seen, sorted(set(shown)), strict=True))
    (small,), _ = pictures(row["video"]["bytes"], row["duration_s"], Pictures(1, None, 64))
    assert max(small.shape[:2]) == 64


def test_pictures_of_a_long_clip_are_reached_by_seeking(tmp_path: Path) -> None:
    from curation.config.schema import Cut
    from tests.curation.helpers import cut

    path = tmp_path / "long.mp4"
    drawn.write_video(path, drawn.scenes([240], (96, 64), fps=12), fps=12)
    whole = {"clip_id": "0a", "start_s": 0.0, "end_s": 20.0, "frames": 240, "fps": 12.0}
    settings = load_config("").model_copy(update={"cut": Cut(preset="ultrafast", gop_frames=6)})
    ((head, mp4),) = cut(path, [whole], settings)
    frames = decode(mp4)
    seen, at = pictures(mp4, head["duration_s"], Pictures(7, None, 4096))
    for picture, time_s in zip(seen, at, strict=True):
        assert np.array_equal(picture, frames[int(time_s * 12 + 1e-6)])


def test_bytes_that_are_no_clip_are_a_failure_of_that_clip(built: Dataset) -> None:
    row = next(built.rows("shards"))
    with pytest.raises((ValueError, OSError)):
        pictures(row["video"]["bytes"][:300], row["duration_s"], Pictures(2, None, 64))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["captions.captioner=endpoint"], ["captions.endpoint.url", "captions.endpoint.model"]),
        (["captions.captioner=nobody"], ["captions.captioner", "transformers", "sidecar"]),
        (["captions.transformers={frame: 3}"], ["unknown key transformers.frame", "frames"]),
        (["captions.transformers={frames: many}"], ["transformers.frames", "many"]),
        (["captions.kind=rewritten"], ["captions.rewrite"]),
        (
            ["captions.kind=foo"],
            ["captions.kind", "foo", "long", "short", "structured", "rewritten", "sidecar"],
        ),
        (["captions.kind=short"], ["captions.kind is short", "set captions.transformers.prompt=short or"]),
        (
            ["captions.kind=structured", "captions.transformers.prompt=short"],
            ["prompt=structured", "kind=short"],
        ),
        (["captions.kind=short", "captions.rewrite={}"], ["captions.rewrite.prompt=rewrite_short"]),
        (["captions.kind=sidecar"], ["captions.kind is sidecar", "set captions.kind=long"]),
        (["captions.language=xx"], ["captions.language", "xx"]),
        (["rules.caption.grammar.min=1"], ["rules.caption.grammar", "caption.words"]),
        (["rules.caption.similarity.min=0.2"], ["rules.caption.similarity", "aesthetics"]),
    ],
)
def test_a_wrong_configuration_is_named(overrides: list[str], says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config(*overrides)
    assert [word for word in says if word not in str(error.value)] == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["captions.transformers.prompt=short"],
        ["captions.transformers.prompt=short", "captions.kind=short"],
        ["captions.transformers.prompt=structured", "captions.kind=structured"],
        ["captions.rewrite={prompt: rewrite_short}", "captions.kind=short"],
        ["captions.rewrite={}", "captions.kind=rewritten"],
        ["captions.captioner=sidecar", "captions.kind=short"],  # of a model's captions
    ],
)
def test_a_kind_that_is_made_may_be_asked_for(overrides: list[str]) -> None:
    config(*overrides)


def test_settings_come_back_as_they_were_written() -> None:
    made = config("captions.transformers={frames: 5, model: there}")
    again = load_config(CHEAP, []).model_validate(made.model_dump(mode="json"))
    assert again == made
    assert again.captions.transformers == Speaker(frames=5, model="there")
    assert config("captions.captioner=none").hash() != made.hash()
    assert dataclasses.is_dataclass(made.captions.transformers)


@pytest.mark.parametrize(("clips", "batch"), [(1, 8), (37, 8), (1000, 3), (64, 8)])
def test_batches_are_whole_whatever_the_row_groups(clips: int, batch: int) -> None:
    todo: wanted.Wanted = {}
    for k in range(clips):
        asked: AskedClip = {"clip_id": f"c{k}", "text": None, "part": None}
        todo.setdefault((f"shard-{k // 70}", k // 7 % 10), {})[f"c{k}"] = asked
    made = [task["groups"] for task in wanted.tasks(todo, batch)]
    sizes = [sum(len(group["clips"]) for group in groups) for groups in made]
    assert all(size % batch == 0 for size in sizes[:-1])
    assert sum(sizes) == clips
    found = [(g["shard"], g["group"], c["clip_id"]) for groups in made for g in groups for c in g["clips"]]
    assert sorted(found) == sorted((*place, i) for place, of in todo.items() for i in of)
