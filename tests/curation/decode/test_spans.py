"""Spans of a scene: bounds, near-equal parts, trimmed edges; over random scenes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.decode.shots.spans import divide
from filters.base import ClipInfo, Frames
from filters.duration import Duration
from filters.rules import ACCEPTED, Rule, verdict


def _times(n: int, fps: float = 25.0, start: float = 0.0) -> list[float]:
    return [start + k / fps for k in range(n)]


def test_a_long_scene_is_divided_into_near_equal_parts() -> None:
    spans = divide(_times(25 * 23), 23.0, max_seconds=10, trim_seconds=0)
    assert len(spans) == 3  # not 10, 10 and a rest of 3
    assert max(s.duration_s for s in spans) - min(s.duration_s for s in spans) <= 2 / 25
    assert sum(s.frames for s in spans) == 25 * 23


def test_both_edges_are_trimmed_before_the_bounds_are_checked() -> None:
    (span,) = divide(_times(25 * 10), 10.0, max_seconds=9.6, trim_seconds=0.2)
    assert span.start_s == pytest.approx(0.2)
    assert span.end_s == pytest.approx(9.8)
    assert span.frames == 240


def test_edges_that_are_no_cuts_are_not_trimmed() -> None:
    (span,) = divide(_times(100), 4.0, max_seconds=10, trim_seconds=0.2, trim_start=False, trim_end=False)
    assert (span.start_s, span.end_s, span.frames) == (0.0, 4.0, 100)


def test_a_scene_shorter_than_its_trim_is_still_accounted_for() -> None:
    (span,) = divide(_times(5), 0.2, max_seconds=10, trim_seconds=0.2)
    assert span.frames == 5


def test_a_frame_that_is_longer_than_a_clip_stands_alone_and_shreds_no_neighbour() -> None:
    before, after = _times(100), _times(100, start=90_000.0)
    spans = divide([*before, *after], 90_004.0, max_seconds=10, trim_seconds=0)
    assert [(s.start_s, s.frames) for s in spans] == [(0.0, 99), (before[-1], 1), (90_000.0, 100)]
    assert spans[1].duration_s == pytest.approx(10)  # it was shown for a day, or nobody knows
    (only,) = divide([5.0], 1e6, max_seconds=10, trim_seconds=0.2)
    assert (only.start_s, only.end_s) == (5.0, 15.0)


@given(
    gaps=st.lists(st.floats(0.005, 0.5), min_size=1, max_size=300),
    start=st.floats(-5, 1e5),
    max_seconds=st.floats(0.6, 12),
    trim=st.floats(0, 1),
)
def test_spans_are_ordered_disjoint_bounded_and_aligned(
    gaps: list[float], start: float, max_seconds: float, trim: float
) -> None:
    times = [start]
    for gap in gaps[:-1]:
        times.append(times[-1] + gap)
    end = times[-1] + gaps[-1]
    spans = divide(times, end, max_seconds=max_seconds, trim_seconds=trim)
    assert spans
    boundaries = {*times, end}
    for s in spans:
        assert s.start_s in boundaries
        assert s.end_s in boundaries
        assert s.frames == sum(s.start_s <= t < s.end_s for t in times) >= 1
        whole = len(spans) == 1 and s.start_s == times[0] and s.end_s == end
        assert s.duration_s <= max_seconds + 1e-5 or s.frames == 1 or whole
    for a, b in itertools.pairwise(spans):
        assert a.end_s == b.start_s
    if not (len(spans) == 1 and spans[0].frames == len(times)):
        assert spans[0].start_s >= times[0] + trim - 1e-5
        assert spans[-1].end_s <= end - trim + 1e-5


def test_a_span_that_is_cut_to_the_longest_length_passes_the_rule() -> None:
    """Times are floats: 10 s from 133.2 s on end at 143.2 s, which is a little more or less than 10 s on."""
    rule = Rule(3, 10)
    over = 0
    for rate in (10, 24, 25, 30, 50, 60, 30000 / 1001):
        for start in range(0, 4000, 37):
            frames = round(20 * rate)  # two spans of 10 s, or nearly
            times = [float(Fraction(start + k) / Fraction(rate)) for k in range(frames + 1)]
            for span in divide(times[:-1], times[-1], max_seconds=10, trim_seconds=0):
                over += span.duration_s > 10
                clip = ClipInfo(span.duration_s, span.frames, float(rate), 640, 480)
                assert verdict(Duration()([Frames(clip)])[0].values, {"duration.seconds": rule}) == ACCEPTED
    assert over > 20  # of which the rule alone would reject each
    for wrong in (10.001, 2.999):
        clip = ClipInfo(wrong, 300, 30.0, 640, 480)
        assert verdict(Duration()([Frames(clip)])[0].values, {"duration.seconds": rule}) != ACCEPTED
