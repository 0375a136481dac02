"""Clips that are the spans of a list's rows have the captions of their rows."""

from __future__ import annotations

import pytest

from captioning.base import CaptionRequest
from captioning.sidecar import Sidecar
from captioning.texts import SPANS

ROWS = [
    {"start": 0.5, "end": 2.0, "caption": "a first piece"},
    {"start": 1.5, "end": 4.25, "caption": "overlapping piece"},
    {"start": 4, "end": 99, "caption": "over the end"},
    {"start": 4, "end": 6, "caption": "the same start"},
]


@pytest.mark.parametrize(
    ("start_s", "end_s", "caption"),
    [
        (0.5, 2.0, "a first piece"),
        (0.48, 2.02, "a first piece"),
        (1.5, 4.25, "overlapping piece"),
        (4.0, 6.0, "the same start"),
        (4.03, 5.97, "the same start"),
        (4.085, 6.82, "over the end"),  # the file ends here
        (200.0, 201.0, None),
    ],
)
def test_each_clip_has_the_caption_of_its_row(start_s: float, end_s: float, caption: str | None) -> None:
    request = CaptionRequest("c", "/nowhere/a.mp4", start_s, end_s, extra={SPANS: ROWS})
    found = Sidecar(by_row=True)([request])
    assert [c.text for c in found] == ([caption] if caption else [])
