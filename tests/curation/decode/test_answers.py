"""What a decoding child says is checked: a head with something missing is the failure of that source."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curation.decode import answers
from curation.sandbox.protocol import Message, SourceFailed

CLIP: dict[str, Any] = {
    "kind": "clip",
    "clip_id": "c",
    "start_s": 0,
    "end_s": 1.5,
    "frames": 3,
    "fps": None,
    "width": 64,
    "height": 48,
    "scores": {"a.b": 1, "a.c": None, "a.d": math.nan},
    "jpegs": {"text": 1, "aesthetics": 2},
    "has_thumbnail": True,
}
PARTS = [b"thumbnail", b"1", b"2", b"3"]


def test_a_clip_is_read() -> None:
    (clip,) = answers.measured([Message({"kind": "stage"}), Message(dict(CLIP), PARTS)])
    assert isinstance(clip, answers.ClipAnswer)
    assert (clip.thumbnail, clip.jpegs) == (b"thumbnail", {"text": [b"1"], "aesthetics": [b"2", b"3"]})
    assert (clip.start_s, clip.fps, clip.scores["a.b"], clip.scores["a.c"]) == (0.0, None, 1.0, None)
    assert math.isnan(clip.scores["a.d"] or 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "3"},
        {"frames": 3.5},
        {"end_s": None},
        {"fps": True},
        {"scores": {"a.b": "high"}},
        {"scores": None},
        {"jpegs": {"text": 1}},
        {"jpegs": {"text": -1, "aesthetics": 4}},
        {"jpegs": [3]},
        {"has_thumbnail": False},
    ],
)
def test_what_is_no_clip_fails_its_source(change: dict[str, Any]) -> None:
    with pytest.raises(SourceFailed, match="an answer that is not valid") as failed:
        list(answers.measured([Message({**CLIP, **change}, PARTS)]))
    assert (failed.value.error, failed.value.transient) == ("Crash", True)


@pytest.mark.parametrize("name", [n for n in CLIP if n not in ("kind", "has_thumbnail")])
def test_no_field_may_be_missing(name: str) -> None:
    head = {key: value for key, value in CLIP.items() if key != name}
    with pytest.raises(SourceFailed, match="an answer that is not valid"):
        list(answers.measured([Message(head, PARTS)]))


def test_parts_are_as_many_as_an_answer_has() -> None:
    head = {"kind": "clip", "clip_id": "c", "width": 2, "height": 2, "fps": 25, "frames": 1, "duration_s": 1}
    (cut,) = answers.cut([Message(head, [b"mp4"])])
    assert isinstance(cut, answers.EncodedAnswer)
    assert cut.mp4 == b"mp4"
    with pytest.raises(SourceFailed, match="an answer that is not valid"):
        list(answers.cut([Message(head)]))
    with pytest.raises(SourceFailed, match="an answer that is not valid"):
        answers.probed([])
