"""Subtitles and captions in other forms than WebVTT and SubRip. The right text is written beside each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest

from captioning.formats import cues_of
from captioning.sidecar import Sidecar
from tests.captioning.test_sidecar import caption, request

A, B = "a red ball, rolling down", "a green cube falls"
ASS = r"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:03.00,Default,,0,0,0,,a note of the translator
Dialogue: 0,0:00:00.00,0:00:03.00,Default,,0,0,0,,{\an8\i1}a red ball, rolling\Ndown{\i0}
Dialogue: 0,0:00:03.00,0:00:06.00,Default,Anna,0,0,0,,a green cube falls
Dialogue: 0,0:00:03.00,0:00:06.00,Default,,0,0,0,,{\p1}m 0 0 l 100 0 100 100{\p0}
"""
SSA = ASS.replace("Layer, Start", "Marked, Start").replace("Dialogue: 0,", "Dialogue: Marked=0,")
SBV = f"0:00:00.000,0:00:03.000\n{A}\n\n0:00:03.000,0:00:06.000\na green cube\nfalls\n"
LRC = f"[ti:A title]\n[00:03.00]{B}\n[00:00.00]{A}\n[00:06.00]\n"
TTML = f"""<?xml version="1.0" encoding="utf-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter" ttp:tickRate="10">
<body><div>
<p begin="00:00:00.000" end="00:00:03.000">a red ball,<br/>rolling <span tts:color="red">down</span></p>
<p begin="BEGIN" TO>{B}</p>
</div></body></tt>"""
EVENTS = [
    {"tStartMs": 0, "dDurationMs": 6000, "id": 1},
    {
        "tStartMs": 0,
        "dDurationMs": 4000,
        "segs": [{"utf8": "a red ball,"}, {"utf8": " rolling"}],
    },
    {"tStartMs": 2000, "dDurationMs": 10, "aAppend": 1, "segs": [{"utf8": "\n"}]},
    {"tStartMs": 2000, "dDurationMs": 1000, "segs": [{"utf8": "down"}]},
    {"tStartMs": 3000, "dDurationMs": 3000, "segs": [{"utf8": B}]},
]
JSON3 = json.dumps({"wireMagic": "pb3", "events": EVENTS})
SRT = f"1\n00:00:00,000 --> 00:00:03,000\n{A}\n\n2\n00:00:03,000 --> 00:00:06,000\n{B}\n"
JSONL = "\n".join(json.dumps({"start": s, "end": s + 3, "caption": t}) for s, t in ((0, A), (3, B)))
TIMED = [{"timestamp": ["00:00:00", "00:00:03"], "content": A}, {"timestamp": [3, 6], "content": B}]
PARALLEL = {"timestamps": [[0, 3], [3, 6]], "sentences": [A, B]}


def _ttml(begin: str, to: str) -> str:
    return TTML.replace("BEGIN", begin).replace("TO", to)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ass", ASS),
        ("a.ssa", SSA),
        ("a.en.ass", ASS.replace("\n", "\r\n")),
        ("a.srt", ASS),
        ("a.sbv", SBV),
        ("a.srt", SBV),
        ("a.lrc", LRC),
        ("a.ttml", _ttml("00:00:03.000", 'end="00:00:06.000"')),
        ("a.en.ttml", _ttml("3s", 'dur="3000ms"')),
        ("a.dfxp", _ttml("30t", 'end="60t"').replace("<p ", "<tt:p ").replace("</p>", "</tt:p>")),
        ("a.srt", _ttml("00:00:03.000", 'end="00:00:06.000"')),
        ("a.json3", JSON3),
        ("a.en.json3", JSON3),
        ("a.json", JSON3),
        ("a.srt", SRT.replace("\n", "\r\r\n")),
        ("a.srt", SRT.replace("00:00:00,000", "-00:00:01,000")),
        ("a.json", JSONL),
        ("a.json", json.dumps({"captions": TIMED})),
        ("a.json", json.dumps({"duration": 6, **PARALLEL})),
        ("a.json", json.dumps({"a": PARALLEL, "b": {"caption": "of another file"}})),
    ],
)
def test_subtitles_in_other_forms(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    for start, end, said in ((0, 3, A), (3, 6, B)):
        assert caption(tmp_path / "a.mp4", start, end) == said


def test_ffmpeg_finds_the_same_times(tmp_path: Path) -> None:
    for name, text in (("a.ass", ASS), ("a.lrc", LRC), ("a.srt", f"1\n00:00:01,500 --> 00:00:02,250\n{A}\n")):
        (tmp_path / name).write_text(text)
        with av.open(str(tmp_path / name)) as container:
            packets = [p for p in container.demux() if p.size and p.pts is not None]
            starts = {float(p.pts * p.time_base) for p in packets}
        found = {cue.start_s for cue in cues_of(text, Path(name).suffix)}
        assert found <= starts, name
        assert found


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ('{"short": "a ball", "long": "a red ball"}', "a red ball"),
        ('{"caption": "a ball"}', "a ball"),
        ('[{"caption": "a ball"}, {"caption": "another"}]', "a ball"),
        ({"short_caption": "a ball", "detailed_caption": "a red ball"}, "a red ball"),
        ('{"subject": "a ball"}', '{"subject": "a ball"}'),  # as it is written: its keys are not known
        ("{a ball}", "{a ball}"),
        ("\u200b\ufeff\u202b", None),
        ("😀 שלום", "😀 שלום"),
        ("word " * 50_000, ("word " * 50_000).strip()),
    ],
)
def test_captions_in_a_cell(cell: Any, said: str | None) -> None:
    found = Sidecar()([request(Path("/nowhere/a.mp4"), caption=cell)])
    assert [c.text for c in found] == ([said] if said else [])


def test_captions_under_several_names() -> None:
    columns = {"short_caption": "a ball", "dense_caption": "a red ball", "licence": "CC0"}
    (found,) = Sidecar()([request(Path("/nowhere/a.mp4"), **columns)])
    assert found.text == "a red ball"
    (found,) = Sidecar("short_caption")([request(Path("/nowhere/a.mp4"), **columns)])
    assert found.text == "a ball"


def test_what_holds_no_cue_is_named_and_the_next_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("00:00:00:00 then 00:00:03:00\nframes\n")
    (tmp_path / "a.txt").write_bytes(b"a ball\0\0\0")
    sidecar = Sidecar()
    (found,) = sidecar([request(tmp_path / "a.mp4")])
    assert found.text == "a ball"
    (tmp_path / "a.txt").unlink()
    sidecar = Sidecar()
    assert sidecar([request(tmp_path / "a.mp4")]) == []
    assert sidecar.left_alone == {str(tmp_path / "a.srt"): "it holds no caption"}


def test_hostile_subtitles_are_read_in_a_moment() -> None:
    for text, suffix in (
        ("<tt><p begin='1s' " * 200_000, ".ttml"),
        ("<p>" * 300_000, ".ttml"),
        ("<tt><p " + "a" * 1_000_000, ".ttml"),
        ("<tt><p begin='0s' end='3s'>" + "<" * 1_000_000, ".ttml"),
        ("[00:01]" * 200_000, ".lrc"),
        ("{" * 1_000_000, ".ass"),
        ("[Events]\nDialogue: " + "," * 1_000_000, ".ass"),
    ):
        cues_of(text, suffix)
