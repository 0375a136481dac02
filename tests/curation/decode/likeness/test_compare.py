"""Distances between frames, against the same formulas written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curation.decode.likeness.compare import (
    COARSE,
    COARSE_LAGS,
    FINE,
    FINE_LAGS,
    INPUTS,
    Vectors,
    rows,
    stride_of,
    windows,
)
from curation.decode.likeness.describe import BINS, CHROMA, LENGTH, LUMA, describe, shrink


def pictures(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    smooth = random.integers(0, 256, (count, 3, 3, 4))
    return [
        tuple(np.kron(plane, np.ones((6, 8))).astype(np.uint8) for plane in picture)  # type: ignore[misc]
        for picture in smooth
    ]


def by_hand(one: np.ndarray, other: np.ndarray) -> list[float]:
    """Luma, chroma, layout and colours of two vectors, in plain Python."""
    a, b = [float(x) for x in one], [float(x) for x in other]
    luma = math.sqrt(sum((x - y) ** 2 for x, y in zip(a[:LUMA], b[:LUMA], strict=True)) / LUMA)
    ends = slice(LUMA, LUMA + CHROMA)
    chroma = math.sqrt(sum((x - y) ** 2 for x, y in zip(a[ends], b[ends], strict=True)) / CHROMA)

    def layout(values: list[float]) -> list[float]:
        mean = sum(values) / LUMA
        spread = math.sqrt(sum((x - mean) ** 2 for x in values) / LUMA)
        return [(x - mean) / (spread + 3) for x in values]

    pairs = zip(layout(a[:LUMA]), layout(b[:LUMA]), strict=True)
    shape = 0.5 * sum((x - y) ** 2 for x, y in pairs) / LUMA

    def shares(roots: list[float]) -> list[float]:
        counts = [(x / 10) ** 2 for x in roots]
        width = BINS // 8
        smooth = []
        for k, count in enumerate(counts):
            beside = [counts[k + d] for d in (-width, width) if 0 <= k + d < BINS]
            smooth.append(0.5 * count + 0.25 * sum(beside))
        return [x / sum(smooth) for x in smooth]

    common = sum(
        math.sqrt(x * y) for x, y in zip(shares(a[LUMA + CHROMA :]), shares(b[LUMA + CHROMA :]), strict=True)
    )
    return [
        math.log1p(luma) / 3,
        math.log1p(chroma) / 2,
        math.sqrt(shape),
        math.sqrt(max(0.0, 1 - common)),
    ]


def test_the_distances_are_those_of_the_formulas() -> None:
    vectors = np.stack([describe(*p) for p in pictures(40)])
    fine, coarse, own = rows(Vectors.of(vectors), 0, stride=2)
    fine, coarse = fine.reshape(40, 15, 4), coarse.reshape(40, 16, 4)
    for k, lag in [(1, 1), (20, 1), (20, 15), (39, 7), (3, 9)]:
        old = max(0, k - lag)
        assert fine[k, lag - 1] == pytest.approx(by_hand(vectors[k], vectors[old]), abs=2e-3)
    for k, lag in [(39, 16), (39, 1), (10, 3)]:
        old = max(0, k - 2 * lag)
        assert coarse[k, lag - 1] == pytest.approx(by_hand(vectors[k], vectors[old]), abs=2e-3)
    assert own[5, 1] == pytest.approx(vectors[5, :LUMA].mean() / 255)
    assert own[5, 0] == pytest.approx(math.log1p(vectors[5, :LUMA].std()) / 4)


def test_what_a_window_holds() -> None:
    """The distance between the first two frames of the fine window, and the widest of the coarse one."""
    vectors = np.stack([describe(*p) for p in pictures(120)])
    fine, coarse, own = rows(Vectors.of(vectors), 0, stride=3)
    (window,) = windows(fine, coarse, own, np.array([60]), stride=3)
    assert len(window) == INPUTS
    assert window[:4] == pytest.approx(by_hand(vectors[53], vectors[52]), abs=2e-3)
    end = 4 * len(FINE) * len(FINE_LAGS) // 2 + 4 * len(COARSE) * len(COARSE_LAGS) // 2
    assert window[end - 4 : end] == pytest.approx(by_hand(vectors[84], vectors[36]), abs=2e-3)


def test_a_flash_changes_light_but_not_layout() -> None:
    (picture,) = pictures(1, seed=3)
    y = (picture[0] // 3).astype(np.uint8)
    brighter = np.clip(y.astype(int) * 2 + 30, 0, 255).astype(np.uint8)
    vectors = np.stack([describe(y, *picture[1:]), describe(brighter, *picture[1:])])
    luma, chroma, layout, _ = rows(Vectors.of(vectors), 0, 1)[0][1, :4]
    assert luma > 1
    assert chroma == 0
    assert layout < 0.1


def test_a_small_picture_is_in_full_range() -> None:
    planes = (
        np.full((270, 480), 235, np.uint8),
        np.full((135, 240), 16, np.uint8),
        np.full((135, 240), 128, np.uint8),
    )
    y, u, v = shrink(*planes, full_range=False)
    assert (y.shape, set(y.ravel()), set(u.ravel()), set(v.ravel())) == ((18, 32), {255}, {0}, {128})
    assert set(shrink(*planes, full_range=True)[0].ravel()) == {235}
    vector = describe(y, u, v)
    assert vector.shape == (LENGTH,)
    assert vector[LUMA + CHROMA :].max() == 240  # 10 times the root of 576 pixels: all are in one bin


def test_the_coarse_window_spans_the_same_time_at_every_rate() -> None:
    assert [stride_of(fps) for fps in (7, 14, 25, 30, 60)] == [1, 2, 4, 4, 9]
    assert stride_of(60_000) == stride_of(25)  # what a DV file of six frames declared
