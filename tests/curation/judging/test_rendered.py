"""Rendered films whose cuts are known by their frame numbers, built as users build, and judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, pairwise
from pathlib import Path

import pytest

from curation import build, judge
from curation.cluster import session
from tests import render
from tests.curation.inline import Inline

pytestmark = pytest.mark.heavy

CONFIG = {
    "base": "none",
    "shots": {"detector": "adaptive"},  # finds cuts between textures of one tint
    "spans": {"min_seconds": 1, "max_seconds": 3, "trim_seconds": 0.1},
    "filters": {"duration": {}, "motion": {}},
    "rules": {"motion.speed": {"min": 0.02}},
    "cut": {"preset": "ultrafast"},
}
FPS = 20


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inline]:
    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    with Inline() as did:
        yield did


@pytest.mark.parametrize("start_s", [0.0, 1.5])
def test_cuts_and_verdicts_of_a_film_are_those_that_were_drawn(
    tmp_path: Path, inline: Inline, start_s: float
) -> None:
    """Four shots, cut at frames 50, 95 and 145; the third one stands still. The film may begin late."""
    lengths = [50, 45, 50, 140]
    size = (192, 128)
    shots = [
        render.pan(k, size, fps=FPS, seconds=length / FPS, speed=0.0 if k == 2 else 0.1)
        for k, length in enumerate(lengths)
    ]
    times = [start_s + k / FPS for k in range(sum(lengths))]
    render.write_video(tmp_path / "film.mp4", chain(*shots), fps=FPS, pts=times)
    cuts = render.cut_frames(lengths)
    assert cuts == [50, 95, 145]
    edges = [0, *cuts, sum(lengths)]
    truth = {
        "fps": FPS,
        "cuts": [*cuts, 200],  # no cut was drawn at 200
        "gradual": [],
        "shots": [
            {
                "first": a,
                "last": b - 1,
                "judgement": "reject" if k == 2 else "keep",
                "reason": "static" * (k == 2),
            }
            for k, (a, b) in enumerate(pairwise(edges))
        ],
        "start_s": start_s,
        "variable_rate": False,
    }
    (tmp_path / "truth.json").write_text(json.dumps({"film.mp4": truth}))
    build(tmp_path / "film.mp4", tmp_path / "d", config=CONFIG)
    found = judge(tmp_path / "truth.json", tmp_path / "d")
    a = found.agreement
    assert (a.both_keep, a.false_accepts, a.false_rejects, a.both_reject) == (3, 0, 0, 1)
    assert a.kappa == 1.0
    assert found.by_rule == {"motion.speed": (1, 0)}
    told = found.changes
    assert (told.cuts, told.found) == (4, 3)
    assert [round((s.time_s - found.outcomes[0].start_s) * FPS) for s in told.missed] == [200]
    assert told.elsewhere == []  # the last shot makes several clips, and their boundaries are no cuts
    assert told.holding_gradual == []
    assert len(told.holding_cuts) == 1  # the clip with frame 200 inside
