"""Agreement, kappa, precision, recall and intervals, by their formulas and by published figures."""

from __future__ import annotations

import pytest

from curation.judging.agreement import Agreement, wilson


def test_kappa_is_that_of_a_worked_example() -> None:
    """Of 50 proposals two readers say yes to 20 and no to 15 (the usual example of Cohen's kappa): the
    agreement is 0.7, by chance 0.5, and kappa 0.4."""
    found = Agreement(both_keep=20, false_accepts=5, false_rejects=10, both_reject=15)
    assert found.labels == 50
    assert found.share == pytest.approx(0.7)
    assert found.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert found.precision == pytest.approx(20 / 25)
    assert found.recall == pytest.approx(20 / 30)


def test_kappa_without_a_difference_is_not_defined() -> None:
    assert Agreement(7, 0, 0, 0).kappa is None
    assert Agreement(0, 0, 0, 7).kappa is None
    assert Agreement(0, 0, 0, 0).kappa is None
    assert Agreement(0, 0, 0, 7).precision is None
    assert Agreement(0, 3, 0, 0).recall is None
    assert Agreement(3, 0, 0, 4).kappa == 1.0
    assert Agreement(0, 3, 4, 0).kappa == pytest.approx(-0.96, abs=0.03)


def test_wilson_is_the_published_interval() -> None:
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29, by the score method."""
    for right, of, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, of) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
