"""The detector on histories with a known truth: quiet on clean nights, quick on a step, not blind to a drift."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import change_points
from analysis.change_points import last_shift
from analysis.regression import judge_night
from suite.harness.history import Observation
from tests.analysis.nights import history, levels

SEEDS = (1, 2, 3)
HISTORIES = 40
STEP, DRIFT, DRIFT_NIGHTS = math.log(1.05), math.log(1.02), 10


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_nights_are_quiet(seed: int) -> None:
    """100 judged nights of ten units with two times each; a night counts when any of them is called a regression."""
    factors = levels(np.random.default_rng(seed), 20, 110)
    known: list[Observation] = []
    false_alarms = 0
    for night, tonight in enumerate(history(factors)):
        known += tonight
        verdicts = judge_night(known, tonight[0].night) if night >= 10 else []
        false_alarms += any(one.outcome == "regression" for one in verdicts)
    assert false_alarms <= 1


def _found_after(planted: np.ndarray, seed: int, family: int = 20) -> list[float]:
    """Nights until each of `HISTORIES` histories with this change is found; infinite where it is not."""
    rng = np.random.default_rng(seed)
    waits = []
    for _ in range(HISTORIES):
        base = int(rng.integers(20, 50))
        values = levels(rng, 1, base + len(planted))[0]
        values[base:] *= np.exp(planted)
        shifts = ((n, last_shift(values[: base + n].tolist(), family)) for n in range(1, len(planted) + 1))
        waits.append(next((float(n) for n, shift in shifts if shift is not None and shift.size > 0), math.inf))
    return waits


@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_of_5_percent_is_found_within_3_nights(seed: int) -> None:
    waits = _found_after(np.full(3, STEP), seed)
    assert sum(wait <= 3 for wait in waits) >= 0.9 * HISTORIES


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drift_of_2_percent_is_found_within_15_nights(seed: int) -> None:
    """0.2 % a night for ten nights, and five more at the new level."""
    drift = DRIFT * np.minimum(np.arange(1, 16) / DRIFT_NIGHTS, 1)
    waits = _found_after(drift, seed)
    assert sum(wait <= 15 for wait in waits) >= 0.9 * HISTORIES


def test_the_shift_says_where_it_began_and_by_how_much() -> None:
    values = levels(np.random.default_rng(5), 1, 40)[0]
    values[30:] *= 1.08
    shift = last_shift(values.tolist())
    assert shift is not None
    assert abs(shift.start - 30) <= 1
    assert math.exp(shift.size) == pytest.approx(1.08, rel=0.01)


def test_faster_is_a_shift_too_and_becomes_the_level_that_counts() -> None:
    values = levels(np.random.default_rng(6), 1, 50)[0]
    values[20:] *= 0.8
    faster = last_shift(values[:40].tolist())
    assert faster is not None
    assert faster.size < 0
    values[45:] *= 1.1  # still faster than it ever was, and slower than it had become
    slower = last_shift(values.tolist())
    assert slower is not None
    assert slower.size > 0


def test_a_night_alone_is_no_shift() -> None:
    values = levels(np.random.default_rng(7), 1, 40)[0]
    for place in (20, 30, 38, 39):
        alone = values.copy()
        alone[place] *= 1.2
        assert last_shift(alone.tolist()) is None


def test_a_few_nights_are_no_history() -> None:
    values = [10.0] * change_points.MIN_BASE + [20.0] * (change_points.MIN_NIGHTS - 1)
    assert last_shift(values) is None
    assert last_shift([*values, 20.0]) is not None


def test_a_noisy_history_asks_for_more() -> None:
    """The same step is found on a quiet machine and not on one ten times as restless."""
    for breath, found in ((0.004, True), (0.04, False)):
        values = levels(np.random.default_rng(8), 1, 33, breath)[0]
        values[30:] *= 1.05
        assert (last_shift(values.tolist(), 20) is not None) == found
