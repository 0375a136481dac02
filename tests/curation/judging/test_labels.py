"""Files of labels: frame numbers of films, rows of paths and times, and what is refused in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from curation.judging.labels import WHOLE, read_labels, reasons_of

FILM = {
    "fps": 25.0,
    "frames": 100,
    "cuts": [30, 60],
    "gradual": [{"first": 70, "last": 79, "kind": "dissolve"}],
    "ambiguous": [[40, 42]],
    "shots": [
        {"first": 0, "last": 29, "judgement": "keep", "reason": "slow"},
        {"first": 30, "last": 59, "judgement": None, "reason": None},
        {"first": 60, "last": 99, "judgement": "reject", "reason": "dark; overlay_logo, small (left)"},
    ],
    "start_s": 0.5,
    "variable_rate": False,
}


def written(place: Path, content: Any) -> str:
    place.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return str(place)


def test_a_film_has_frames_from_the_first_to_behind_the_last(tmp_path: Path) -> None:
    (film,) = read_labels(written(tmp_path / "truth.json", {"a.mp4": FILM})).sources
    assert [(s.first, s.end, s.keep, s.reason) for s in film.shots] == [
        (0, 30, True, "slow"),
        (30, 60, None, ""),
        (60, 100, False, "dark; overlay_logo, small (left)"),
    ]
    assert film.cuts == [30, 60]
    assert [(p.first, p.end, p.reason) for p in film.gradual] == [(70, 80, "dissolve")]
    assert [(p.first, p.end) for p in film.ambiguous] == [(40, 43)]
    assert (film.fps, film.start_s, film.variable_rate, film.in_frames) == (25.0, 0.5, False, True)


def test_the_other_form_of_a_film_says_the_same(tmp_path: Path) -> None:
    truth = {"cuts": [30], "gradual": [{"kind": "dissolve", "start": 70, "end": 79}], "type": "multi-scene"}
    films = {"a.mp4": {"avg_fps": 25.0, "ground_truth": truth}, "b.mp4": {"avg_fps": 10, "ground_truth": {}}}
    one, other = read_labels(written(tmp_path / "ground_truth.json", films)).sources
    assert (one.cuts, one.fps, one.start_s, one.variable_rate) == ([30], 25.0, None, None)
    assert [(p.first, p.end, p.reason) for p in one.gradual] == [(70, 80, "dissolve")]
    assert other.cuts is None  # cuts of b.mp4 were not labelled: that is not the same as none


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "l.csv",
            "path,start,end,judgement,reason\na.mp4,0,4.5,keep,\na.mp4,0:01:00,0:01:02.5,Reject,dark\n",
        ),
        ("l.csv", "Path;start_s;end_s;label;reason\na.mp4;0;4.5;accept;\na.mp4;60;62.5;no;dark\n"),
        (
            "l.json",
            [
                {"path": "a.mp4", "start": 0, "end": 4.5, "judgement": "keep"},
                {"path": "a.mp4", "start": 60, "end": 62.5, "judgement": "reject", "reason": "dark"},
            ],
        ),
    ],
)
def test_rows_have_seconds_since_the_file_begins(tmp_path: Path, name: str, content: Any) -> None:
    labels = read_labels(written(tmp_path / name, content))
    (source,) = labels.sources
    assert not source.in_frames
    assert source.cuts is None
    found = [(s.first, s.end, s.keep, s.reason) for s in source.shots]
    assert found == [(0, 4.5, True, ""), (60, 62.5, False, "dark")]


def test_a_row_may_name_a_whole_file_or_a_clip(tmp_path: Path) -> None:
    text = "clip_id,path,judgement,reason\nabc,,keep,\n,b.mp4,reject,blurred\n,c.mp4,,\n"
    labels = read_labels(written(tmp_path / "l.csv", text))
    assert {k: v.keep for k, v in labels.clips.items()} == {"abc": True}
    assert [(s.name, s.shots[0].keep) for s in labels.sources] == [("b.mp4", False), ("c.mp4", None)]
    assert (labels.sources[0].shots[0].first, labels.sources[0].shots[0].end) == WHOLE


def test_reasons_are_the_first_words_of_their_parts() -> None:
    assert reasons_of("static: still photo, pillar-boxed; too_short (1.9 s), else keep") == [
        "static",
        "too_short",
    ]
    assert reasons_of("contains_transition (ambiguous) 342-374; dark") == ["contains_transition", "dark"]
    assert reasons_of("") == ["no reason"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.csv", "path,start,end\na.mp4,0,1\n", ["row 1", "judgement", "keep or reject"]),
        ("l.csv", "path,judgement\na.mp4,perhaps\n", ["row 1", "perhaps", "keep or reject"]),
        ("l.csv", "path,start,end,judgement\na.mp4,5,1,keep\n", ["row 1", "ends at 1 s"]),
        ("l.csv", "path,start,end,judgement\na.mp4,5,,keep\n", ["row 1", "start", "alone"]),
        ("l.csv", "path,start,end,judgement\na.mp4,soon,later,keep\n", ["row 1", "soon", "seconds"]),
        ("l.csv", "title,judgement\nx,keep\n", ["row 1", "column path", "clip_id"]),
        ("l.csv", "path,judgement\n", ["no labels"]),
        ("t.json", "{", ["no JSON"]),
        ("t.json", {"a.mp4": {"cuts": [1, "x"]}}, ["a.mp4", "cuts", "number"]),
        ("t.json", {"a.mp4": {"cuts": [], "gradual": [[5]]}}, ["a.mp4", "gradual", "last frame"]),
        ("t.json", {"a.mp4": {"cuts": [], "gradual": [[5, 2]]}}, ["a.mp4", "gradual", "before"]),
        ("t.json", {"a.mp4": {"cuts": [], "fps": 0}}, ["a.mp4", "fps", "above 0"]),
        ("t.json", {"a.mp4": {"shots": [{"first": 0, "last": 1, "judgement": "ok?"}]}}, ["a.mp4", "ok?"]),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, name: str, content: Any, says: list[str]
) -> None:
    place = written(tmp_path / name, content)
    with pytest.raises(ValueError) as refused:
        read_labels(place)
    assert [words for words in (place, *says) if words not in str(refused.value)] == []


def test_the_files_of_the_document_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "labels.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (table,) = (block for kind, block in blocks if block.startswith("path,"))
    (film,) = (block for kind, block in blocks if kind == "json")
    rows = read_labels(written(tmp_path / "l.csv", table)).sources
    assert [(s.name, len(s.shots)) for s in rows] == [("films/a.mp4", 2), ("b.mp4", 1), ("still.jpg", 1)]
    assert (rows[1].shots[0].first, rows[1].shots[0].end) == (62.5, 69.0)
    assert reasons_of(rows[0].shots[1].reason) == ["overlay_text", "dark"]
    (only,) = read_labels(written(tmp_path / "t.json", film)).sources
    assert (only.cuts, only.fps, only.shots[0].keep) == ([113, 230], 25.0, True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.json", "none.csv"):
        with pytest.raises(ValueError, match=name):
            read_labels(str(tmp_path / name))
