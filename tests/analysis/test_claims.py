"""Verdicts: the effect must be there, and the interval must reach the target."""

from __future__ import annotations

import pytest

from analysis.claims import judge, reproduce_document
from analysis.statistics import Estimate
from tests.analysis.factory import finding


@pytest.mark.parametrize(
    ("low", "value", "high", "target", "verdict"),
    [
        (1.8, 1.9, 2.1, 2.0, "reproduced"),
        (2.2, 2.3, 2.4, 2.0, "reproduced"),
        (1.4, 1.5, 1.6, 2.0, "partly"),
        (0.9, 1.6, 2.3, 2.0, "not reproduced"),
        (0.7, 0.8, 0.9, 2.0, "not reproduced"),
        (1.1, 1.2, 1.3, None, "reproduced"),
        (0.9, 1.1, 1.3, None, "not reproduced"),
        (None, 2.5, None, 2.0, "partly"),
        (None, 0.5, None, 2.0, "not reproduced"),
    ],
)
def test_at_least(low: float | None, value: float, high: float | None, target: float | None, verdict: str) -> None:
    assert judge(Estimate(value, low, high, 10), target) == verdict


@pytest.mark.parametrize(
    ("low", "value", "high", "target", "verdict"),
    [
        (0.45, 0.5, 0.55, 0.5, "reproduced"),
        (0.6, 0.7, 0.8, 0.5, "partly"),
        (0.9, 1.0, 1.1, 0.5, "not reproduced"),
    ],
)
def test_at_most(low: float, value: float, high: float, target: float, verdict: str) -> None:
    assert judge(Estimate(value, low, high, 10), target, direction="at most") == verdict


def test_a_difference_has_another_null() -> None:
    assert judge(Estimate(3.0, 1.0, 5.0, 10), 4.0, null=0.0) == "reproduced"
    assert judge(Estimate(3.0, -1.0, 5.0, 10), 4.0, null=0.0) == "not reproduced"


def test_nothing_measured_is_no_failure_to_reproduce() -> None:
    assert judge(None, 2.0) == "not measurable here"


def test_the_document_has_the_fields_of_the_design() -> None:
    (row,) = reproduce_document([finding()])
    assert list(row) == [
        "slug", "claim", "paper", "conditions", "measured", "low", "high", "unit", "verdict", "reason", "command",
    ]  # fmt: skip
    assert (row["measured"], row["verdict"]) == (1.86, "reproduced")
