"""Residual statistics against values computed by hand."""

from __future__ import annotations

import math

import pytest

from analysis.residuals import Compared, grouped, residuals


def compared(measured: float, predicted: float, batch: int = 1) -> Compared:
    return Compared("pass", "decode", batch, 128, "bf16", measured, predicted)


POINTS = [compared(100, 90), compared(100, 110, batch=2), compared(200, 240, batch=4), compared(50, 50, batch=8)]


def test_by_hand() -> None:
    found = residuals(POINTS)
    assert found is not None
    assert found.n == 4
    assert found.mape == pytest.approx((0.1 + 0.1 + 0.2 + 0) / 4)
    assert found.bias == pytest.approx((-0.1 + 0.1 + 0.2 + 0) / 4)
    assert found.median == pytest.approx(0.05)
    assert found.p90 == pytest.approx(0.1 + 0.7 * 0.1)  # between the third and the fourth of four
    assert (found.worst, found.worst_at) == (pytest.approx(0.2), "4 × 128")
    assert found.ratio == pytest.approx((0.9 * 1.1 * 1.2) ** 0.25)
    # Ranks 2, 3, 4, 1 against 2.5, 2.5, 4, 1: covariance 4.5, variances 5 and 4.5.
    assert found.rank == pytest.approx(4.5 / math.sqrt(5 * 4.5))


def test_an_optimist_and_a_pessimist_share_the_mape_but_not_the_bias() -> None:
    low, high = residuals([compared(100, 80)] * 3), residuals([compared(100, 120)] * 3)
    assert low is not None
    assert high is not None
    assert low.mape == pytest.approx(high.mape)
    assert (low.bias, high.bias) == (pytest.approx(-0.2), pytest.approx(0.2))
    assert low.worst < 0 < high.worst


def test_what_is_not_there_is_none() -> None:
    assert residuals([]) is None
    assert grouped([], lambda point: point.part) == {}
    for points in (POINTS[:2], [compared(100, 90)] * 3):
        found = residuals(points)
        assert found is not None
        assert found.rank is None


def test_groups() -> None:
    found = grouped(POINTS, lambda point: point.batch > 1)
    assert {name: one.n for name, one in found.items()} == {False: 1, True: 3}
    assert found[True].bias == pytest.approx(0.1)
