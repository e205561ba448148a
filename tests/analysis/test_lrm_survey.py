"""The survey's table: recounted from the raw samples, wrong answers included, every row with the units behind it."""

from __future__ import annotations

import pytest

from analysis.comparison import compare
from analysis.lrm_survey import survey_rows, wilson
from suite.harness.measurement import UnitResult
from tests.analysis.factory import longbench_units, sample, unit


def _units(kept: float = 100.0) -> list[UnitResult]:
    """Dense: 4 tokens where right, 10 where wrong. The other method: 2 tokens each."""
    dense = [sample("a", score=100.0), sample("b", score=0.0, gaps=[10.0] * 9)]
    short = [sample("a", score=kept, gaps=[10.0]), sample("b", score=0.0, gaps=[10.0])]
    return [unit("dense", dense, workload="gsm8k"), unit("longheads", short, workload="gsm8k")]


def test_tokens_of_wrong_answers_count():
    units = _units()
    dense, other = survey_rows(compare(units), units)
    assert (dense.mean_tokens, dense.median_tokens, other.mean_tokens) == (7.0, 7.0, 2.0)
    assert (dense.accuracy, dense.answers) == (50.0, 2)
    assert other.token_ratio == 3.5
    assert dense.token_ratio is None


def test_no_gain_without_equal_accuracy():
    units = _units(kept=0.0)
    assert survey_rows(compare(units), units)[1].token_ratio is None


def test_every_row_names_its_units_and_leaf():
    units = _units()
    rows = survey_rows(compare(units), units)
    assert [row.keys for row in rows] == [(one.key,) for one in units]
    assert rows[1].leaf == "further_improvement.new_architecture"
    counted = sum(count.flops for count in units[0].counts)
    assert rows[0].flops == counted


def test_only_reasoning_workloads_are_in_the_table():
    units = longbench_units()
    assert survey_rows(compare(units), units) == ()


def test_wilson_interval():
    """Newcombe 1998, table I: 81 of 263."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12)
