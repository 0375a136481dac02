"""The encoder: the same frames give the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from curation.config.load import load_config
from curation.decode import cut
from tests import render
from tests.conftest import CHEAP


@pytest.mark.parametrize("size", [(322, 182), (70, 50)])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, size: tuple[int, int]) -> None:
    """Sides that are no multiples of 16 once gave several files from the same frames, half of the time."""
    path = tmp_path / "a.mp4"
    render.write_video(path, render.scenes([30], size, fps=20), fps=20)
    config = load_config(CHEAP)
    span = {"clip_id": "c", "start_s": 0.0, "end_s": 1.5, "frames": 30, "fps": 20.0}
    asked = {"uri": str(path), "spans": [span], "cut": config.cut.model_dump()}
    asked["run"] = config.run.model_dump()
    made = {
        hashlib.md5(m.parts[0]).hexdigest()
        for _ in range(60)
        for m in cut.run(asked)
        if m.head["kind"] == "clip"
    }
    assert len(made) == 1
