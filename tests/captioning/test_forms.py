"""Caption files and columns as people have them. The right text of each is written beside it by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from captioning.sidecar import Sidecar
from tests.captioning.test_sidecar import caption, request

A, B = "a red ball rolls", "a green cube falls"
HALVES = [(0, 3, A), (3, 6, B)]

# As YouTube makes automatic captions: two lines on the screen, of which the upper one was said before.
ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.160 --> 00:00:01.500 align:start position:0%
 \na<00:00:00.500><c> red</c><00:00:01.000><c> ball</c>

00:00:01.500 --> 00:00:01.510 align:start position:0%
a red ball
 \n
00:00:01.510 --> 00:00:02.990 align:start position:0%
a red ball
rolls<00:00:02.000><c> down</c>

00:00:02.990 --> 00:00:03.000 align:start position:0%
rolls down
 \n
00:00:03.000 --> 00:00:04.200 align:start position:0%
rolls down
a<00:00:03.500><c> green</c><00:00:04.000><c> cube</c>

00:00:04.200 --> 00:00:04.210 align:start position:0%
a green cube
 \n
00:00:04.210 --> 00:00:06.000 align:start position:0%
a green cube
falls<00:00:05.000><c> over</c>
"""
ROLL_UP = "\n\n".join(
    f"{k}\n00:00:0{k},000 --> 00:00:0{k + 1},000\n" + "\n".join(lines)
    for k, lines in enumerate([["one"], ["one", "two"], ["one", "two", "three"], ["two", "three", "four"]])
)


def srt(first: str, second: str, between: str = "\n\n") -> str:
    return f"1\n00:00:00,000 --> 00:00:03,000\n{first}{between}2\n00:00:03,000 --> 00:00:06,000\n{second}\n"


GROWING = "WEBVTT\n\n" + "\n\n".join(
    f"00:0{k}.000 --> 00:0{k + 1}.000\n{' '.join(['a', 'red', 'ball', 'rolls'][: k + 1])}" for k in range(4)
)


@pytest.mark.parametrize(
    ("suffix", "text", "halves"),
    [
        (".vtt", ROLLING, ("a red ball rolls down", "a green cube falls over")),
        (".srt", ROLL_UP, ("one two three", "four")),
        (".vtt", GROWING, (A.replace(" rolls", ""), "rolls")),
        # what is said twice is no caption that rolls
        (".srt", srt("no", "no"), ("no", "no")),
        (".srt", f"1\n00:00:00,000 --> 00:00:03,000\n{A}\n2\n00:00:03,000 --> 00:00:06,000\n{B}\n", (A, B)),
        (".srt", f"00:00:00,000 --> 00:00:03,000\n{A}\n00:00:03,000 --> 00:00:06,000\n{B}\n", (A, B)),
        (".srt", srt("in\n1984", "7", between="\n"), ("in 1984", "7")),
        (".srt", f"1\n00:00:00 --> 00:00:03\n{A}\n\n2\n00:00:03 --> 00:00:06\n{B}\n", (A, B)),
        (".srt", f"1\n0:0:0.000000 --> 0:0:3.000000\n{A}\n\n2\n0:0:3.000000 --> 0:0:6.000000\n{B}\n", (A, B)),
        (".srt", srt("a red<br>ball<BR />rolls", f"<br/>{B}", between="\n \n"), (A, B)),
    ],
)  # fmt: skip
def test_each_clip_gets_each_word_once(
    tmp_path: Path, suffix: str, text: str, halves: tuple[str, str]
) -> None:
    (tmp_path / f"a{suffix}").write_text(text)
    assert (caption(tmp_path / "a.mp4", 0, 3), caption(tmp_path / "a.mp4", 3, 6)) == halves


def rows(**names: str) -> list[dict[str, Any]]:
    return [{names["start"]: a, names["end"]: b, names["text"]: t} for a, b, t in HALVES]


@pytest.mark.parametrize(
    "value",
    [
        {"text": f" {A}. {B}.", "language": "en", "segments": rows(start="start", end="end", text="text")},
        {"text": A, "chunks": [{"timestamp": [0, 3], "text": A}, {"timestamp": [3, None], "text": B}]},
        [{"timestamp": [a, b], "text": t} for a, b, t in HALVES],
        {"transcription": [{"offsets": {"from": 1000 * a, "to": 1000 * b}, "text": t} for a, b, t in HALVES]},
        rows(start="start_time", end="end_time", text="caption"),
        [{"Start_timestamp": f"00:00:0{a}.000", "End_timestamp": b, "Caption": t} for a, b, t in HALVES],
    ],
)  # fmt: skip
def test_timed_json_is_matched_by_time(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert (caption(tmp_path / "a.mp4", 0, 3), caption(tmp_path / "a.mp4", 3, 6)) == (A, B)


@pytest.mark.parametrize(
    "value",
    [
        {"url": "u", "key": "0001", "caption": A, "status": "success"},  # img2dataset
        {"caption": None, "text": A},
        {"prompt": A, "video": "a.mp4"},  # DiffSynth
        {"path": "a.mp4", "cap": [A, B], "fps": 24, "num_frames": 81},  # FastVideo
        [{"path": "b.mp4", "cap": [B]}, {"path": "a.mp4", "cap": [A]}],
        [{"file_path": "train/a.mp4", "text": A, "type": "video"}],  # EasyAnimate
        [{"file_path": "renamed.mp4", "text": A, "type": "video"}],
        [{"media_path": "b.mp4", "caption": B}, {"media_path": "x/a.mp4", "caption": A}],  # LTX-2
        {"captions": [A, B]},
        [A, B],
    ],
)
def test_metadata_of_trainers_beside_a_video(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert caption(tmp_path / "a.mp4") == A


@pytest.mark.parametrize(
    "value",
    [
        {"fps": 30, "boxes": []},
        {},
        {"caption": None},
        {"caption": 3},
        {"caption": "nan"},
        {"prompt": {"3": {"class_type": "KSampler"}}},  # ComfyUI's
        {"segments": []},
        {"title": "IMG_1", "photoTakenTime": {"timestamp": "1"}},  # Google's
        3,
        None,
        [],
        [{"start": 1, "end": 2}],
        [{"bbox": [0, 1, 2, 3]}],
    ],
)
def test_json_without_a_caption_is_none_and_is_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    captioner = Sidecar()
    assert captioner([request(tmp_path / "a.mp4")]) == []
    if value != [{"start": 1, "end": 2}]:
        assert captioner.left_alone == {str(path): "it holds no caption"}
    (tmp_path / "a.txt").write_text(A)
    assert caption(tmp_path / "a.mp4") == A


def cue(text: str) -> str:
    return f"WEBVTT\n\n00:00.000 --> 00:09.000\n{text}\n"


@pytest.mark.parametrize(
    "name",
    ["a.en.vtt", "a.en.srt", "a.en-US.vtt", "a.zh-Hans.srt", "a.eng.SRT", "a.English.srt", "a.en.sdh.srt",
     "a.de.forced.srt", "a.SRT", "a.Vtt", "a.mp4.vtt", "a.mp4.srt", "a.MP4.srt"],
)  # fmt: skip
def test_subtitles_under_their_usual_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(cue(A))
    video = "a.MP4" if "MP4" in name else "a.mp4"
    assert caption(tmp_path / video) == A
    assert caption((tmp_path / video).as_uri()) == A


@pytest.mark.parametrize("name", ["a.mp4.txt", "a.TXT", "a.mp4.json", "a.JSON"])
def test_texts_under_their_usual_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(A) if name.lower().endswith("json") else A)
    assert caption(tmp_path / "a.mp4") == A


def test_the_first_of_several_files(tmp_path: Path) -> None:
    order = [
        "a.de.forced.vtt",
        "a.fr.vtt",
        "a.de.vtt",
        "a.en-orig.vtt",
        "a.en.vtt",
        "a.mp4.vtt",
        "a.VTT",
        "a.vtt",
    ]
    for name in order:
        (tmp_path / name).write_text(cue(name))
        assert caption(tmp_path / "a.mp4") == name


def test_a_file_of_another_video_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "a.fr.mp4").write_bytes(b"")
    (tmp_path / "a.fr.srt").write_text(cue(B))
    (tmp_path / "a.part2.srt").write_text(cue(B))
    (tmp_path / "ab.srt").write_text(cue(B))
    (tmp_path / "a.de.txt").write_text(B)
    assert caption(tmp_path / "a.mp4") is None
    assert caption(tmp_path / "a.fr.mp4") == B


@pytest.mark.parametrize(
    "value", [float("nan"), "nan", "NaN", " None ", "null", "N/A", "<NA>", 5, 0.5, True, "5", "0.31", [], {}]
)  # fmt: skip
def test_what_is_no_caption_in_a_column(tmp_path: Path, value: Any) -> None:
    assert caption(tmp_path / "a.mp4", caption=value) is None
    assert caption(tmp_path / "a.mp4", caption=value, text=A) == A


@pytest.mark.parametrize("value", [[A, B], ["", A], [None, A], f"['{A}', '{B}']", f'["{A}"]'])
def test_of_a_list_of_captions_the_first_is_taken(tmp_path: Path, value: Any) -> None:
    assert caption(tmp_path / "a.mp4", caption=value) == A


@pytest.mark.parametrize("column", ["caption", "Caption", "text", "prompt", "cap"])
def test_columns_of_trainers(tmp_path: Path, column: str) -> None:
    assert caption(tmp_path / "a.mp4", **{column: A}) == A


def test_a_caption_may_be_short_odd_or_in_brackets(tmp_path: Path) -> None:
    for text in ("nano", "7 cats", "[applause]", "[Music] a cat", "🎬", "猫", "1st"):
        assert caption(tmp_path / "a.mp4", caption=text) == text


def test_labels_of_a_detector_are_no_caption(tmp_path: Path) -> None:
    """As they stand beside pictures in the form of YOLO."""
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.25 0.125\n3 0.1 0.2 0.3 0.4\n")
    assert caption(tmp_path / "a.jpg", 0, 0) is None
