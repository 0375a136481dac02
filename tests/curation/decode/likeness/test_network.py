"""The network: in blocks as over the whole, and decisions that do not depend on when they are made."""

from __future__ import annotations

import numpy as np
import pytest

from curation.decode.likeness.compare import COARSE, Vectors, rows, windows
from curation.decode.likeness.decide import Change, Decider, changes
from curation.decode.likeness.describe import describe
from curation.decode.likeness.network import Stream, network
from tests.curation.decode.likeness.test_compare import pictures


@pytest.mark.parametrize("stride", [1, 4, 9])
@pytest.mark.parametrize("frames", [1, 30, 203])
def test_blocks_give_what_whole_windows_give(stride: int, frames: int) -> None:
    """The stream multiplies rows without copying windows; here each window is made by itself."""
    vectors = np.stack([describe(*p) for p in pictures(frames)])
    reach = -int(COARSE[0]) * stride
    padded = np.concatenate([np.repeat(vectors[:1], reach, 0), vectors, np.repeat(vectors[-1:], reach, 0)])
    of = rows(Vectors.of(padded), 0, stride)
    whole = network().probabilities(windows(*of, np.arange(frames) + reach, stride))
    for block in (1, 7, 64, 500):
        stream = Stream(stride, block)
        found = np.concatenate([*(stream.push(v) for v in vectors), stream.finish()])
        assert found.shape == (frames, 2)
        assert np.allclose(found, whole, atol=2e-3)  # the roots of rounding errors


def test_a_source_without_frames_has_no_changes() -> None:
    assert len(Stream(4).finish()) == 0
    assert Decider(0.5, 0.5).finish() == []


def probabilities(text: str) -> np.ndarray:
    """A letter for each frame: c a probable cut, C a more probable one, g of a gradual transition, b both."""
    cut = {"c": 0.6, "C": 0.9, "b": 0.8}
    gradual = {"g": 0.8, "b": 0.9}
    return np.array([(cut.get(x, 0.1), gradual.get(x, 0.1)) for x in text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("..........c.........", [Change(10, 9)]),
        ("..........cC........", [Change(11, 10)]),  # one cut, seen in two frames
        ("....c....c..........", [Change(4, 3), Change(9, 8)]),
        ("....c...c...........", [Change(4, 3)]),  # nearer than any shot is short
        (".....gggggg.........", [Change(5, 10)]),
        (".....ggg..ggg.......", [Change(5, 12)]),  # two improbable frames within it
        (".....ggg...ggg......", [Change(5, 7), Change(11, 13)]),
        (".....gg.............", []),
        (".....gggbggg........", [Change(5, 7), Change(8, 7), Change(8, 11)]),  # a cut within: two parts
        (".....gbggg..........", [Change(6, 5), Change(6, 9)]),
    ],
)
def test_what_probabilities_say(text: str, expected: list[Change]) -> None:
    assert changes(probabilities(text), 0.5, 0.5) == expected


@pytest.mark.parametrize("seed", range(20))
def test_decisions_are_the_same_whenever_they_are_made(seed: int) -> None:
    random = np.random.default_rng(seed)
    found = random.random((1500, 2)) * 0.4
    for first in random.integers(20, 1400, 40):
        if random.random() < 0.5:
            found[first, 0] = random.uniform(0.4, 1)
        else:
            found[first : first + random.integers(1, 50), 1] += random.uniform(0, 0.6)
    found[0, 0] = 0
    expected = changes(found, 0.5, 0.5)
    assert len(expected) > 15
    decider, decided, at = Decider(0.5, 0.5), [], 0
    while at < len(found):
        size = int(random.integers(1, 90))
        decided += decider.push(found[at : at + size])
        at += size
    assert [*decided, *decider.finish()] == expected


def test_the_first_frame_is_no_cut() -> None:
    decider = Decider(0.5, 0.5)
    assert [*decider.push(probabilities("C........")), *decider.finish()] == []


def test_a_change_without_end_is_decided_in_parts() -> None:
    decider = Decider(0.5, 0.5)
    found = [c for _ in range(20) for c in decider.push(probabilities("g" * 64))] + decider.finish()
    assert sum(c.last - c.first + 1 for c in found) == 20 * 64
    assert max(c.last - c.first + 1 for c in found) <= 400
