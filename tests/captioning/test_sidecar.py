"""Sidecar captions: all usual forms are read, and a clip gets the words that are spoken during the clip."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captioning import sidecar
from captioning.base import Caption, CaptionRequest, NoCaptions
from captioning.sidecar import Sidecar
from captioning.subtitles import Cue, parse_subtitles, spoken_between
from tests.loopback import Loopback


def request(
    uri: Path | str, start_s: float = 0.0, end_s: float = 10.0, clip_id: str = "c", **extra: Any
) -> CaptionRequest:
    return CaptionRequest(clip_id, str(uri), start_s, end_s, start_s == end_s, extra)


def caption(uri: Path | str, start_s: float = 0.0, end_s: float = 10.0, **extra: Any) -> str | None:
    found = Sidecar()([request(uri, start_s, end_s, **extra)])
    return found[0].text if found else None


def test_what_moves_a_cursor_is_no_part_of_a_caption(tmp_path: Path) -> None:
    odd = "a\x1b[2Jcat\x07 sleeps"
    (tmp_path / "b.txt").write_text(odd)
    assert caption(tmp_path / "a.mp4", caption=odd) == "a [2Jcat sleeps"
    assert caption(tmp_path / "b.mp4") == "a [2Jcat sleeps"


# --- subtitles ------------------------------------------------------------------------------------

VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE 00:00 is early

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Anna Lee>Hello &amp; <i>welcome</i></v>
to   the&nbsp;show

01:00:02.250 --> 01:00:04.000
<c.yellow>far</c> <00:00:03.000>later

00:05.000 --> 00:04.000
backwards

00:06.000 --> 00:07.000

00:08.000 --> 00:09.000
a < b and 3 > 2
"""

SRT = """1
00:00:01,000 --> 00:00:02,500
<b>One</b>
{\\an8}two

2
00:00:03,5 --> 00:00:04,25
<font color="#fff">three</font>

not a cue

3
0:0:5.000 --> 0:0:6.000
four"""

OF_VTT = [
    Cue(1.0, 2.5, "Hello & welcome to the show"),
    Cue(3602.25, 3604.0, "far later"),
    Cue(8.0, 9.0, "a < b and 3 > 2"),
]
OF_SRT = [Cue(1.0, 2.5, "One two"), Cue(3.5, 4.25, "three"), Cue(5.0, 6.0, "four")]


@pytest.mark.parametrize(("text", "cues"), [(VTT, OF_VTT), (SRT, OF_SRT)], ids=["vtt", "srt"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_cues_are_read_with_any_line_ends(text: str, cues: list[Cue], newline: str) -> None:
    assert parse_subtitles(text.replace("\n", newline)) == cues


# Forms that people write, as "vtt" or "srt". `python -m benchmarks.libraries` has others read them.
FORMS: dict[str, tuple[str, str, list[Cue]]] = {
    "a VTT with marks": ("vtt", VTT, OF_VTT),
    "an SRT with marks": ("srt", SRT, OF_SRT),
    "a VTT without its first line": ("vtt", "00:01.000 --> 00:02.000\na cat\n", [Cue(1, 2, "a cat")]),
    "a VTT whose cues have names": (
        "vtt",
        "WEBVTT\n\nfirst\n00:01.000 --> 00:02.000\na cat\n\nsecond\n00:03.000 --> 00:04.000\na dog\n",
        [Cue(1, 2, "a cat"), Cue(3, 4, "a dog")],
    ),
    "a VTT with a note after a cue": (
        "vtt",
        "WEBVTT\n\n00:01.000 --> 00:02.000\na cat\n\nNOTE by Anna\n",
        [Cue(1, 2, "a cat")],
    ),
    "a VTT with decimal commas": ("vtt", "WEBVTT\n\n00:01,000 --> 00:02,000\na cat\n", [Cue(1, 2, "a cat")]),
    "a VTT with tenths": ("vtt", "WEBVTT\n\n00:01.5 --> 00:02.25\na cat\n", [Cue(1.5, 2.25, "a cat")]),
    "a VTT with a time at each word": (
        "vtt",
        "WEBVTT\n\n00:01.000 --> 00:04.000\nhello<00:00:01.500><c> and</c><00:00:02.500><c> welcome</c>\n",
        [Cue(1, 4, "hello and welcome")],
    ),
    "an SRT without numbers": (
        "srt",
        "00:00:01,000 --> 00:00:02,000\na cat\n\n00:00:03,000 --> 00:00:04,000\na dog\n",
        [Cue(1, 2, "a cat"), Cue(3, 4, "a dog")],
    ),
    "an SRT without hours": ("srt", "1\n00:01,000 --> 00:02,000\na cat\n", [Cue(1, 2, "a cat")]),
    "an SRT with a year": (
        "srt",
        "1\n00:00:01,000 --> 00:00:02,000\nin the year\n1984\n\n2\n00:00:03,000 --> 00:00:04,000\na dog\n",
        [Cue(1, 2, "in the year 1984"), Cue(3, 4, "a dog")],
    ),
    "an SRT with braces": (
        "srt",
        "1\n00:00:01,000 --> 00:00:02,000\na {set} of \\N things\n",
        [Cue(1, 2, "a {set} of \\N things")],
    ),
    "an SRT of a hundred hours": (
        "srt",
        "1\n100:00:01,000 --> 100:00:02,000\na cat\n",
        [Cue(360001, 360002, "a cat")],
    ),
    "no subtitles": ("srt", "nothing that is a cue", []),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_people_write_are_read(name: str) -> None:
    _, text, cues = FORMS[name]
    assert parse_subtitles(text) == cues


@pytest.mark.parametrize("text", ["", "WEBVTT", "\n\n\n", "no --> times\nat all", "1\n\n2\n\n3"])
def test_a_text_without_cues_gives_none(text: str) -> None:
    assert parse_subtitles(text) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4 * 3600 * 1000),
            st.integers(1, 60_000),
            st.from_regex(r"[A-Za-z']{1,9}( [a-z,.]{1,9}){0,3}", fullmatch=True),
        ),
        max_size=6,
    ),
    st.booleans(),
)
def test_written_cues_are_read_back(rows: list[tuple[int, int, str]], as_srt: bool) -> None:
    def stamp(ms: int) -> str:
        text = f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"
        return text.replace(".", ",") if as_srt else text.removeprefix("00:")

    blocks = [
        f"{k}\n{stamp(start)} --> {stamp(start + length)}\n{said}"
        for k, (start, length, said) in enumerate(rows, 1)
    ]
    text = "\n\n".join(blocks if as_srt else ["WEBVTT", *blocks])
    found = parse_subtitles(text)
    assert [c.text for c in found] == [said for _, _, said in rows]
    for cue, (start, length, _) in zip(found, rows, strict=True):
        assert cue.start_s == pytest.approx(start / 1000, abs=1e-9)
        assert cue.end_s == pytest.approx((start + length) / 1000, abs=1e-9)


# --- matching by time -----------------------------------------------------------------------------

times = st.integers(0, 400).map(lambda n: n / 8)
spans = st.tuples(times, st.integers(1, 160).map(lambda n: n / 8)).map(lambda p: (p[0], p[0] + p[1]))


@settings(deadline=None, max_examples=300)
@given(st.lists(spans, max_size=6), spans)
def test_cues_inside_the_clip_are_used_and_cues_outside_are_not(
    cue_spans: list[tuple[float, float]], clip: tuple[float, float]
) -> None:
    cues = [Cue(start, end, f"cue{k}") for k, (start, end) in enumerate(sorted(cue_spans))]
    said = (spoken_between(cues, *clip) or "").split()
    assert said == sorted(said)  # in order of time
    for cue in cues:
        overlap = min(cue.end_s, clip[1]) - max(cue.start_s, clip[0])
        if clip[0] <= cue.start_s and cue.end_s <= clip[1]:
            assert cue.text in said
        elif cue.start_s <= clip[0] and clip[1] <= cue.end_s:
            assert cue.text in said  # shown during the whole clip
        elif overlap <= 0 or overlap < 0.5 * min(cue.end_s - cue.start_s, clip[1] - clip[0]):
            assert cue.text not in said
        else:
            assert cue.text in said


def test_two_neighbouring_clips_share_a_cue_only_if_each_has_half_of_it() -> None:
    cues = [Cue(0.0, 4.0, "one"), Cue(4.0, 6.4, "two"), Cue(6.4, 9.0, "three")]
    assert spoken_between(cues, 0.0, 5.0) == "one"
    assert spoken_between(cues, 5.0, 10.0) == "two three"
    assert spoken_between(cues, 20.0, 25.0) is None


def test_a_line_that_is_shown_twice_is_used_once() -> None:
    cues = [Cue(0, 1, "a"), Cue(1, 2, "a"), Cue(2, 3, "b"), Cue(3, 4, "a")]
    assert spoken_between(cues, 0, 4) == "a b a"


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return tmp_path / "my.holiday.mp4"  # the file does not need to exist


def beside(video: Path, suffix: str, content: str | bytes) -> None:
    path = video.with_name("my.holiday" + suffix)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("suffix", "content", "text"),
    [
        (".txt", "  a cat\n  sleeps \n", "a cat sleeps"),
        (".txt", b"\xef\xbb\xbfwith a mark", "with a mark"),
        (".txt", "Möwen über 東京 🎬", "Möwen über 東京 🎬"),
        (".txt", "", None),
        (".txt", " \n ", None),
        (".json", '"a  cat"', "a cat"),
        (".json", '{"caption": "a cat", "text": "other"}', "a cat"),
        (".json", '{"text": "a cat", "licence": 3}', "a cat"),
        (".json", b'\xef\xbb\xbf{"text": "a cat"}', "a cat"),
        (".json", '[{"start": 1, "end": 3, "text": "a"}, {"start": 20, "end": 30, "text": "b"}]', "a"),
        (".json", "[]", None),
        (".vtt", b"\xef\xbb\xbfWEBVTT\r\n\r\n00:01.000 --> 00:02.000\r\na cat\r\n", "a cat"),
        (".srt", "1\n00:00:01,000 --> 00:00:02,000\na cat\n", "a cat"),
        (".srt", "1\n00:00:41,000 --> 00:00:42,000\nlater\n", None),
        (".srt", "nothing that is a cue", None),
        (".txt", "ein Kätzchen".encode("utf-8-sig"), "ein Kätzchen"),
        (".txt", "ein Kätzchen".encode("utf-16"), "ein Kätzchen"),
        (".json", codecs.BOM_UTF16_BE + '{"text": "ein Kätzchen"}'.encode("utf-16-be"), "ein Kätzchen"),
        (".srt", "1\r\n00:00:01,000 --> 00:00:02,000\r\nein Kätzchen\r\n".encode("utf-16"), "ein Kätzchen"),
    ],
)
def test_each_form_is_read(video: Path, suffix: str, content: str | bytes, text: str | None) -> None:
    beside(video, suffix, content)
    assert caption(video) == text


def test_a_json_list_is_matched_by_time(video: Path) -> None:
    parts = [{"start": 0, "end": 5, "caption": "first"}, {"start": 5.0, "end": "10", "text": "second"}]
    beside(video, ".json", json.dumps(parts))
    assert caption(video, 0, 4) == "first"
    assert caption(video, 6, 9) == "second"
    assert caption(video, 0, 10) == "first second"
    assert caption(video, 50, 60) is None


@pytest.mark.parametrize(
    "content",
    ["{half", "", '[{"start": "x", "end": 2, "text": "a"}]', '{"segments": [{"start": "x", "text": "a"}]}'],
)
def test_the_error_for_broken_json_names_the_file(video: Path, content: str) -> None:
    beside(video, ".json", content)
    with pytest.raises(ValueError, match="not a caption file") as error:
        caption(video)
    assert str(video.with_name("my.holiday.json")) in str(error.value)
    assert "`start` and `end`" in str(error.value)


@pytest.mark.parametrize("suffix", [".txt", ".vtt", ".srt", ".json"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_the_error_for_another_encoding_names_the_file(video: Path, suffix: str, encoding: str) -> None:
    text = {".txt": "ein Kätzchen", ".json": '{"text": "ein Kätzchen"}'}
    cue = "1\n00:00:01,000 --> 00:00:02,000\nein Kätzchen\n"
    beside(video, suffix, text.get(suffix, cue).encode(encoding))
    with pytest.raises(ValueError, match="not in UTF-8") as error:
        caption(video)
    assert str(video.with_name(f"my.holiday{suffix}")) in str(error.value)


def test_a_long_sidecar_is_read_up_to_a_complete_character(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar, "_MAX_BYTES", 6)
    beside(video, ".txt", "Kätzchä".encode())
    assert caption(video) == "Kätzc"
    beside(video, ".txt", "Katzeä".encode())
    assert caption(video) == "Katze"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_sidecar_that_cannot_be_read_is_an_error(video: Path, make: Callable[[Path], None]) -> None:
    make(video.with_name("my.holiday.txt"))
    with pytest.raises(ValueError, match=r"my\.holiday\.txt: not a regular file"):
        caption(video)


def test_a_name_that_is_too_long_for_a_suffix_has_no_sidecar(video: Path) -> None:
    assert caption(video.with_name("n" * 251 + ".mp4")) is None


def test_json_that_is_too_deep_or_has_lone_surrogates(video: Path) -> None:
    beside(video, ".json", "[" * 100_000)
    with pytest.raises(ValueError, match="not a caption file"):
        caption(video)
    beside(video, ".json", '{"caption": "half \\ud83c here"}')
    assert caption(video) == "half ? here"


# --- precedence -----------------------------------------------------------------------------------


def test_the_order_of_preference(video: Path) -> None:
    assert caption(video) is None
    beside(video, ".txt", "of txt")
    assert caption(video) == "of txt"
    beside(video, ".json", '"of json"')
    assert caption(video) == "of json"
    beside(video, ".srt", "1\n00:00:01,000 --> 00:00:02,000\nof srt\n")
    assert caption(video) == "of srt"
    beside(video, ".vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nof vtt\n")
    assert caption(video) == "of vtt"
    assert caption(video, caption="of the list") == "of the list"


def test_an_empty_sidecar_is_skipped_for_the_next(video: Path) -> None:
    beside(video, ".vtt", "WEBVTT\n\n00:41.000 --> 00:42.000\nlater\n")
    beside(video, ".txt", "of txt")
    assert caption(video) == "of txt"
    assert caption(video, 41, 42) == "later"
    for nothing in (None, "", "  "):
        assert caption(video, caption=nothing) == "of txt"


def test_the_column_is_configurable_and_part_of_the_key(video: Path) -> None:
    captioner = Sidecar("title")
    (found,) = captioner([request(video, title="  a\ntitle ", caption="not this")])
    assert found.text == "a title"
    assert captioner.key != Sidecar().key
    assert Sidecar("caption").key == Sidecar().key
    assert captioner([request(video, caption="not this")]) == []


def test_captions_are_matched_by_clip_id(video: Path, tmp_path: Path) -> None:
    beside(video, ".srt", "1\n00:00:01,000 --> 00:00:02,000\none\n\n2\n00:00:11,000 --> 00:00:12,000\ntwo\n")
    clips = [
        request(video, 10, 20, "second"),
        request(tmp_path / "silent.mp4", 0, 10, "nothing"),
        request(video, 0, 10, "first"),
    ]
    assert Sidecar()(clips) == [
        Caption("second", "sidecar", "sidecar", "two"),
        Caption("first", "sidecar", "sidecar", "one"),
    ]
    assert NoCaptions()(clips) == []


def test_the_files_of_a_source_are_read_once_for_all_clips(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(video, ".txt", "words")
    read: list[str] = []
    plain = sidecar._read

    def counting(path: str) -> sidecar.Content | None:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(sidecar, "_read", counting)
    captioner = Sidecar()
    for k in range(3):
        assert len(captioner([request(video, k, k + 1)])) == 1
    assert len(read) == len(set(read)) == 4
    for k in range(200):
        captioner([request(video.with_name(f"{k}.mp4"))])
    assert len(captioner._kept) <= sidecar._MAX_KEPT


@pytest.mark.parametrize(
    "name", ["no_suffix", "über uns.mkv", "-x.mp4", "a.b/c.mp4", "a.b/plain", "it's [1]%.mov"]
)
def test_sidecars_of_unusual_names_are_found(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True)
    folder.with_suffix(".txt").write_text("words")
    assert caption(tmp_path / name) == "words"


def test_a_remote_source_has_remote_sidecars(video: Path) -> None:
    beside(video, ".txt", "far away")
    assert caption(video.as_uri()) == "far away"
    assert caption("memory://nowhere/v.mp4") is None


def test_a_still_image_takes_a_text_and_no_cues(video: Path) -> None:
    beside(video, ".vtt", "WEBVTT\n\n00:00.000 --> 00:02.000\nwords\n")
    assert caption(video, 0, 0) is None
    beside(video, ".txt", "a picture")
    assert caption(video, 0, 0) == "a picture"


# --- what others made -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".txt", ".json", ".vtt", ".srt"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_link_out_of_the_folder_is_left_alone_and_told(tmp_path: Path, suffix: str, prefix: str) -> None:
    (tmp_path / "private").write_text('"1\n00:00:01,000 --> 00:00:02,000\n-----BEGIN PRIVATE KEY-----"')
    folder = tmp_path / "videos"
    folder.mkdir()
    link = folder / f"a{suffix}"
    link.symlink_to(tmp_path / "private")
    captioner = Sidecar()
    assert captioner([request(f"{prefix}{folder}/a.mp4")]) == []
    (path, reason), *others = captioner.left_alone.items()
    assert (path, others) == (f"{prefix}{link}", [])
    assert str(tmp_path / "private") in reason
    (folder / "a.txt").unlink(missing_ok=True)
    (folder / "a.txt").write_text("words")
    assert caption(f"{prefix}{folder}/a.mp4") == "words"  # what is no link is read


def test_links_within_the_folder_and_to_the_folder_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    (folder / "texts").mkdir(parents=True)
    (folder / "texts" / "x.txt").write_text("words")
    (folder / "a.txt").symlink_to("texts/x.txt")
    (tmp_path / "way").symlink_to(folder)
    assert caption(folder / "a.mp4") == "words"
    assert caption(tmp_path / "way" / "a.mp4") == "words"
    (tmp_path / "videos2").mkdir()
    (tmp_path / "videos2" / "x.txt").write_text("of another folder whose name begins alike")
    (folder / "b.txt").symlink_to(tmp_path / "videos2" / "x.txt")
    assert caption(folder / "b.mp4") is None


def test_nothing_beside_an_address_that_is_refused_is_opened() -> None:
    with Loopback({"/a.txt": b"words"}) as server:
        captioner = Sidecar(refused=lambda address: "not such" if address.startswith("http") else None)
        assert captioner([request(f"{server.address}/a.mp4")]) == []
        assert captioner.left_alone == {f"{server.address}/a.txt": "not such"}
        chained = Sidecar()
        assert chained([request(f"simplecache::{server.address}/a.mp4")]) == []
        assert len(chained.left_alone) == 1
    assert server.got == []


def test_what_people_wrote_moves_no_cursor(video: Path) -> None:
    evil = "a \x1b[2J\x1b]0;T\x07cat\x00 \x9b1m sleeps\ufeff"
    clean = "a [2J ]0;T cat 1m sleeps"
    assert caption(video, caption=evil) == clean
    beside(video, ".json", json.dumps({"caption": evil}))
    assert caption(video) == clean
    beside(video, ".txt", evil.replace("\x00", ""))
    video.with_name("my.holiday.json").unlink()
    assert caption(video) == clean
