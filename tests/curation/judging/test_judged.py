"""`reelmill judge` on small datasets whose spans and verdicts are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curation import judge
from curation.judging.judged import Judged
from curation.store.schema import VERDICTS
from jobs.cli import app
from tests.curation import dataset_fixture
from tests.curation.judging.small import RULES, Span, build

SLOW = 0.05  # of motion.speed: the rule rejects it


def judged(place: Path, truth: Any, **options: Any) -> Judged:
    name = "truth.csv" if isinstance(truth, str) else "truth.json"
    (place / name).write_text(truth if isinstance(truth, str) else json.dumps(truth))
    return judge(place / name, place / "d", **options)


def film(shots: list[tuple[int, int, str | None, str]], **more: Any) -> dict[str, Any]:
    """A film of 10 frames per second."""
    named = [dict(zip(("first", "last", "judgement", "reason"), s, strict=True)) for s in shots]
    return {"fps": 10.0, "cuts": None, "shots": named, "variable_rate": False, "start_s": 0.0} | more


def test_each_kind_of_outcome_is_counted(tmp_path: Path) -> None:
    spans = [Span(0.2, 4.8), Span(5.2, 9.8), Span(10.2, 14.8, SLOW), Span(15.2, 19.8, SLOW), Span(20, 21)]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans})
    shots = [
        (0, 49, "keep", ""),
        (50, 99, "reject", "dark; overlay_text: a title"),
        (100, 149, "keep", "slow"),
        (150, 199, "reject", "static, small"),
        (200, 218, "reject", "too_short"),  # 1.9 s
        (219, 250, None, None),
    ]
    found = judged(tmp_path, {"a.mp4": film(shots)})  # type: ignore[arg-type]
    a = found.agreement
    assert (a.both_keep, a.false_accepts, a.false_rejects, a.both_reject) == (1, 1, 1, 1)
    assert a.kappa == 0.0  # half of them agree, as by chance
    assert (found.left_out.short, found.left_out.unjudged) == (1, 1)
    assert found.by_reason == {"dark": (1, 1), "overlay_text": (1, 1), "static": (1, 0)}
    assert found.by_rule == {"motion.speed": (2, 1)}
    (accepted,), (rejected,) = found.false_accepts, found.false_rejects
    assert (accepted.uri, accepted.start_s, accepted.end_s) == ("/v/a.mp4", 5.0, 10.0)
    assert rejected.message == "motion.speed 0.05 is below 0.1"
    assert (found.seconds.keep, found.seconds.reject) == (pytest.approx(4.6), pytest.approx(4.6))
    assert found.seconds.unlabelled == pytest.approx(1.0)  # the last clip lies in a shot without a judgement


def test_a_shot_as_long_as_the_limit_counts(tmp_path: Path) -> None:
    """50 frames of 25 per second are 2 s, whatever 1 / 25 is in binary."""
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 40)]})
    shots = [(k, k + 49, "keep", "") for k in range(0, 900, 50)]
    found = judged(tmp_path, {"a.mp4": film(shots, fps=25.0)})  # type: ignore[arg-type]
    assert (found.agreement.labels, found.left_out.short) == (18, 0)
    assert judged(tmp_path, {"a.mp4": film(shots, fps=25.0)}, min_seconds=2.1).left_out.short == 18  # type: ignore[arg-type]


def test_a_clip_belongs_to_a_shot_with_half_of_the_shorter_one(tmp_path: Path) -> None:
    """A clip over a missed cut is in both shots; one that only reaches into a shot is not."""
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 10), Span(10.5, 14.5)]})
    truth = (
        "path,start,end,judgement\na.mp4,0,4,keep\na.mp4,4,10,reject\na.mp4,14,18,reject\na.mp4,10,14,keep\n"
    )
    found = judged(tmp_path, truth)
    assert [o.accepted for o in found.outcomes] == [True, True, False, True]
    assert found.outcomes[2].rule == "no clip"


def test_long_shots_and_what_has_no_clip(tmp_path: Path) -> None:
    about = {"/v/torn.mp4": {"status": "failed", "stage": "open"}}
    dataset = build(
        str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 8, SLOW), Span(8, 16)], "/v/torn.mp4": []}, about=about
    )
    truth = (
        "path,start,end,judgement\na.mp4,0,16,keep\na.mp4,20,30,reject\ntorn.mp4,0,9,keep\nb.mp4,0,9,keep\n"
    )
    found = judged(tmp_path, truth)
    assert [(o.accepted, o.rule) for o in found.outcomes] == [
        (True, None),
        (False, "no clip"),
        (False, "failed: open"),
    ]
    assert found.unknown == ["b.mp4"]
    dataset.remove("verdicts.parquet")
    assert judged(tmp_path, truth).outcomes[0].rule == "not judged yet"


def test_frames_become_times_by_the_rate_and_the_start(tmp_path: Path) -> None:
    """Frames 0 to 49 of 10 per second that begin at 3 s are from 3 to 8 s."""
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(3, 8), Span(8, 13, SLOW)]})
    shots = [(0, 49, "keep", ""), (50, 99, "reject", "")]
    found = judged(tmp_path, {"a.mp4": film(shots, start_s=3.0)})  # type: ignore[arg-type]
    assert [(o.start_s, o.end_s, o.accepted) for o in found.outcomes] == [(3, 8, True), (8, 13, False)]


def test_rows_and_missing_starts_count_from_where_the_file_begins(tmp_path: Path) -> None:
    about = {"/v/a.mp4": {"file_start_s": 3.0}}
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(3, 8), Span(8, 13, SLOW)]}, about=about)
    rows = judged(tmp_path, "path,start,end,judgement\na.mp4,0,5,keep\na.mp4,5,10,reject\n")
    frames = judged(tmp_path, {"a.mp4": film([(0, 49, "keep", ""), (50, 99, "reject", "")], start_s=None)})
    for found in (rows, frames):
        assert [(o.start_s, o.end_s, o.accepted) for o in found.outcomes] == [(0, 5, True), (5, 10, False)]


def test_a_clip_can_be_labelled_by_its_id_and_a_file_as_a_whole(tmp_path: Path) -> None:
    dataset = dataset_fixture.build(str(tmp_path / "d"))
    by_time = {(c["uri"], c["start_s"]): c["clip_id"] for c in dataset.rows("clips")}
    rows = [
        f"{by_time['videos/pan.mp4', 5.0]},,reject,shaky",
        f"{by_time['videos/pan.mp4', 17.0]},,keep,",
        ",still.jpg,keep,",
        "none,,keep,",
    ]
    found = judged(tmp_path, "\n".join(["clip_id,path,judgement,reason", *rows]))
    assert found.unknown == ["none"]
    assert sorted((o.start_s, o.keep, o.accepted) for o in found.outcomes) == [
        (0.0, True, True),  # the still
        (5.0, False, True),
        (17.0, True, False),
    ]
    json.dumps(found.as_dict(), allow_nan=False)


def test_names_are_ends_of_paths_and_copies_stand_for_their_original(tmp_path: Path) -> None:
    sources = {"/v/one/a.mp4": [Span(0, 5)], "/v/two/a.mp4": [Span(0, 5, SLOW)]}
    dataset = build(str(tmp_path / "d"), sources)
    copy = dataset_fixture.source_row("/v/copy.mp4", duplicate_of=dataset_fixture.source_id("/v/one/a.mp4"))
    dataset.commit_part("q", [copy], [])
    head = "path,start,end,judgement\n"
    with pytest.raises(ValueError, match=r"a\.mp4 is that of 2 sources: /v/one/a\.mp4, /v/two/a\.mp4"):
        judged(tmp_path, f"{head}a.mp4,0,5,keep\n")
    assert not judged(tmp_path, f"{head}two/a.mp4,0,5,keep\n").outcomes[0].accepted
    assert judged(tmp_path, f"{head}/v/one/a.mp4,0,5,keep\n").outcomes[0].accepted
    assert judged(tmp_path, f"{head}copy.mp4,0,5,keep\n").outcomes[0].accepted
    assert judged(tmp_path, f"{head}ne/a.mp4,0,5,keep\n").unknown == ["ne/a.mp4"]


# --- cuts --------------------------------------------------------------------------------------------


def test_cuts_and_transitions_are_found_in_the_gaps_between_clips(tmp_path: Path) -> None:
    """10 frames per second and 0.2 s of trim: a cut at frame 50 leaves a gap from 4.8 to 5.2 s."""
    spans = [Span(0.2, 4.8), Span(5.2, 9.8), Span(10.2, 14), Span(14, 18), Span(18.4, 25), Span(26, 29.8)]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans})
    truth = film(
        [],
        cuts=[50, 120, 140, 278],  # 140 lies where one scene was divided: that is no detection
        gradual=[{"first": 98, "last": 101, "kind": "dissolve"}, {"first": 210, "last": 219, "kind": "fade"}],
        ambiguous=[[250, 262]],
    )
    told = judged(tmp_path, {"a.mp4": truth}).changes
    assert (told.cuts, told.found, told.gradual, told.gradual_found) == (4, 1, 2, 1)
    assert [s.time_s for s in told.missed] == [12.0, 14.0, pytest.approx(27.8)]
    assert [s.time_s for s in told.gradual_missed] == [21.0]
    assert (told.boundaries, told.ignored) == (4, 1)
    assert told.elsewhere is not None
    assert [round(s.time_s, 3) for s in told.elsewhere] == [18.2]
    assert told.accepted == 6
    assert [s.what for s in told.holding_cuts] == ["cut at 12.00 s", "cut at 27.80 s"]
    assert [s.what for s in told.holding_gradual] == ["10 frames of a fade"]


@pytest.mark.parametrize(("cut", "found"), [(46, 1), (45, 0), (54, 1), (55, 0), (50, 1)])
def test_two_frames_and_the_trim_are_allowed(tmp_path: Path, cut: int, found: int) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0.2, 4.8), Span(5.2, 9.8)]})
    assert judged(tmp_path, {"a.mp4": film([], cuts=[cut])}).changes.found == found


def test_a_film_that_is_said_to_vary_is_not_compared(tmp_path: Path) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0.2, 4.8), Span(5.2, 9.8)]})
    told = judged(tmp_path, {"a.mp4": film([], cuts=[50], variable_rate=True)}).changes
    assert (told.inexact, told.cuts) == (["/v/a.mp4"], 0)


def test_one_gap_finds_one_cut(tmp_path: Path) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0.2, 4.8), Span(5.2, 9.8)]})
    told = judged(tmp_path, {"a.mp4": film([], cuts=[48, 50])}).changes
    assert (told.found, [s.time_s for s in told.missed]) == (1, [pytest.approx(4.8)])


def test_a_cut_at_the_edge_of_a_clip_is_not_inside(tmp_path: Path) -> None:
    """The first frame of the clip is the first frame of the shot."""
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0.2, 5.0), Span(5.0, 9.8)]})
    assert judged(tmp_path, {"a.mp4": film([], cuts=[50])}).changes.holding_cuts == []
    told = judged(tmp_path, {"a.mp4": film([], cuts=[51])}).changes
    assert [s.time_s for s in told.holding_cuts] == [5.0]


def test_times_of_frames_are_needed_at_a_variable_rate(tmp_path: Path) -> None:
    """100 frames in 0.1 s each, then in 0.2 s each: frame 50 is at 5 s and frame 125 at 15 s."""
    times = [k * 0.1 if k < 100 else 10 + (k - 100) * 0.2 for k in range(150)]
    about = {"/v/a.mp4": {"is_vfr": True, "frames": 150, "duration_s": 20.0}}
    spans = [Span(0.2, 4.8), Span(5.2, 14.8), Span(15.2, 19.8)]
    build(str(tmp_path / "d"), {"/v/a.mp4": spans}, about=about)
    truth = film([(0, 49, "keep", ""), (50, 124, "reject", "")], cuts=[50, 125], variable_rate=None)
    told = judged(tmp_path, {"a.mp4": truth})
    assert told.changes.inexact == ["/v/a.mp4"]
    assert told.changes.sources == 0
    assert [o.accepted for o in told.outcomes] == [True, True]  # shots are found by half of them
    assert judged(tmp_path, {"a.mp4": truth | {"variable_rate": False}}).changes.inexact == []
    exact = judged(tmp_path, {"a.mp4": truth | {"times_s": times}})
    assert (exact.changes.found, exact.changes.holding_cuts) == (2, [])
    assert [(o.start_s, o.end_s) for o in exact.outcomes] == [(0, 5), (5, 15)]


# --- the command -------------------------------------------------------------------------------------


def test_the_command_tells_and_writes_nothing(tmp_path: Path) -> None:
    build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0.2, 4.8), Span(5.2, 9.8, SLOW)]})
    truth = film([(0, 49, "reject", "dark"), (50, 99, "keep", "calm")], cuts=[50])
    (tmp_path / "t.json").write_text(json.dumps({"a.mp4": truth}))
    before = {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()}
    arguments = ["judge", str(tmp_path / "t.json"), str(tmp_path / "d")]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    for line in (
        "2 labelled shots in 1 sources; left out: 0 shorter than 2 s, 0 without a judgement",
        "agreement 0.0 % (95 %: 0.0 % to 65.8 %), Cohen's kappa -1.00",
        "  dark: 1, of these 1 accepted",
        "  motion.speed: 1, of these 1 to keep",
        "  /v/a.mp4 0:00.0 + 5.0 s: the curator rejects it (dark)",
        "  /v/a.mp4 0:05.0 + 5.0 s: motion.speed (motion.speed 0.05 is below 0.1); the curator keeps it "
        "(calm)",
        "hard cuts: 1 of 1 lie in a gap between two clips, or within 2 frames of one",
        "0 of 1 accepted clips hold a labelled hard cut",
    ):
        assert line in told.stdout.split("\n"), told.stdout
    plain = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert plain["agreement"]["kappa"] == -1.0
    assert plain["by_rule"] == {"motion.speed": {"shots": 1, "to_keep": 1}}
    assert [o["accepted"] for o in plain["outcomes"]] == [True, False]
    assert {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()} == before


def test_other_rules_can_be_tried(tmp_path: Path) -> None:
    dataset = build(str(tmp_path / "d"), {"/v/a.mp4": [Span(0, 5), Span(5, 10, SLOW), Span(10, 15)]})
    rows = list(dataset.verdicts())
    rows[2] |= {"status": "rejected", "reason": "source.hdr"}  # what no rule on a column decides stays
    dataset.write_table("verdicts.parquet", rows, VERDICTS)
    truth = "path,start,end,judgement\na.mp4,0,5,keep\na.mp4,5,10,keep\na.mp4,10,15,keep\n"
    assert RULES["motion.speed"]["min"] > SLOW
    assert [o.accepted for o in judged(tmp_path, truth).outcomes] == [True, False, False]
    looser = judged(tmp_path, truth, set=["rules.motion.speed.min=0.01"])
    assert [o.accepted for o in looser.outcomes] == [True, True, False]
    with pytest.raises(ValueError, match=r"spans\.max_seconds=3: judge takes rules only"):
        judged(tmp_path, truth, set=["spans.max_seconds=3"])
    with pytest.raises(ValueError, match="not a dataset"):
        judge(tmp_path / "truth.csv", tmp_path / "none")
    with pytest.raises(ValueError, match="min-seconds"):
        judged(tmp_path, truth, min_seconds=-1)
