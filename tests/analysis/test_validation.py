"""Validation of the roofline: planted models are found, wrong ones show, no shape is on both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.residuals import residuals
from analysis.roofline.validation import Assessment, assess, is_fitted, newest, score_rows
from analysis.roofline.validation_text import sentences
from suite.harness.measurement import Calibration, PassTimes, Validation
from tests.analysis.factory import PLANTED, calibration, perturbed, seen, validation

Change = Callable[[PassTimes], float]


def assessed(run: Validation, ceilings: Calibration | None = None) -> Assessment:
    found = assess([run], ceilings or calibration())
    assert found is not None
    return found


def changed(run: Validation, factor: Change) -> Validation:
    """The run with every unit's times multiplied."""
    times = [one.model_copy(update={"ms": tuple(factor(one) * ms for ms in one.ms)}) for one in run.times]
    return run.model_copy(update={"times": tuple(times)})


@pytest.fixture(scope="module")
def run() -> Validation:
    return validation()


@pytest.fixture(scope="module")
def found(run: Validation) -> Assessment:
    return assessed(run)


def test_planted_rates_are_recovered(found: Assessment) -> None:
    for name, seconds in PLANTED.items():
        assert found.fitted.seconds[name] == pytest.approx(seconds, rel=0.15), name
    described = {name: (value, unit) for name, value, unit in found.fitted.described()}
    assert described["prefill linear flop"] == (pytest.approx(350, rel=0.05), "GFLOP/s")
    assert described["decode attention byte"] == (pytest.approx(30, rel=0.05), "GB/s")
    assert described["linear call"] == (pytest.approx(12, rel=0.1), "µs")


def test_and_predict_shapes_that_were_not_fitted(found: Assessment) -> None:
    assert found.missed() == []
    for phase in ("prefill", "decode"):
        score = residuals(found.side(True, phase, "pass"))
        assert score is not None
        assert score.mape < 0.03
        assert abs(score.bias) < 0.02
        assert score.rank is not None
        assert score.rank > 0.99


def test_a_model_that_does_not_hold_elsewhere_shows_as_bias(run: Validation) -> None:
    """Shapes held out are 20% slower than the fitted ones say."""
    slower = assessed(changed(run, lambda one: 1.0 if is_fitted(one.batch, one.tokens) else 1.25))
    fitted, scored = (residuals(slower.side(held_out, "decode", "pass")) for held_out in (False, True))
    assert fitted is not None
    assert scored is not None
    assert abs(fitted.bias) < 0.02
    assert scored.bias == pytest.approx(-0.2, abs=0.02)
    assert sum("bias" in line for line in slower.missed()) == 2


def test_a_missing_term_shows_on_both_sides(run: Validation) -> None:
    """A cost that no term describes: passes of many sequences take far longer at one length."""
    odd = assessed(changed(run, lambda one: 4.0 if (one.phase, one.tokens) == ("decode", 512) else 1.0))
    for held_out in (False, True):
        score = residuals(odd.side(held_out, "decode", "pass"))
        assert score is not None
        assert score.mape > 0.1
        assert score.worst < -0.5


@given(batch=st.integers(1, 64), tokens=st.integers(1, 1 << 17))
def test_a_shape_has_one_side(batch: int, tokens: int) -> None:
    assert is_fitted(batch, tokens) == is_fitted(batch, tokens)
    assert is_fitted(batch, tokens) != is_fitted(2 * batch, tokens)
    assert is_fitted(batch, tokens) != is_fitted(batch, 2 * tokens)


def test_the_split_leaks_no_shape(run: Validation, found: Assessment) -> None:
    fitted, scored = ({(one.batch, one.tokens) for one in found.side(held_out)} for held_out in (False, True))
    assert fitted
    assert scored
    assert not fitted & scored
    spoiled = assessed(changed(run, lambda one: 1.0 if is_fitted(one.batch, one.tokens) else 9.0))
    assert spoiled.fitted == found.fitted  # held-out times were never looked at
    refitted = assessed(changed(run, lambda one: 9.0 if is_fitted(one.batch, one.tokens) else 1.0))
    assert refitted.fitted != found.fitted


def test_the_bound_is_below_and_a_halved_ceiling_is_noticed(run: Validation, found: Assessment) -> None:
    assert found.above() == []
    assert all(point.bound_ms for point in found.points)
    for kind in ("read", "gemm"):
        whole = calibration()
        halved = [
            one.model_copy(update={"value": one.value / 2}) if one.kind == kind else one for one in whole.ceilings
        ]
        wrong = assessed(run, whole.model_copy(update={"ceilings": tuple(halved)}))
        assert wrong.above(), kind
        assert any("the uncalibrated bound is above" in line for line in wrong.missed())


def test_without_a_calibration_there_is_no_bound(run: Validation) -> None:
    found = assess([run], None)
    assert found is not None
    assert {point.bound_ms for point in found.points} == {None}
    assert found.above() == []


def test_rows_cover_every_class_phase_and_batch(found: Assessment) -> None:
    rows = score_rows(found)
    assert {row.dtype for row in rows} == {"bf16"}
    whole = [row for row in rows if not row.batch]
    assert len(whole) == 2 * 2 * 5  # sides, phases, parts
    assert sum(row.residuals.n for row in whole) == len(found.points)
    assert sum(row.residuals.n for row in rows if row.batch) == len(found.points)


def test_only_runs_of_the_same_kind_are_pooled(run: Validation) -> None:
    other = run.model_copy(update={"code_version": "older"})
    assert newest([run, other, run]) == [run, run]
    slow = changed(run, lambda one: 3.0)
    pooled = assess([other, slow, run, run], calibration())
    assert pooled is not None
    for once, point in zip(assessed(run).points, pooled.points, strict=True):
        assert once.measured_ms <= point.measured_ms <= 3 * once.measured_ms  # a median of all three


def test_nothing_to_fit() -> None:
    assert assess([], calibration()) is None
    empty = validation().model_copy(update={"times": ()})
    assert assess([empty], calibration()) is None


def waits(times: PassTimes) -> bool:
    """What memory bounds on the planted machine."""
    return times.phase == "decode"


def test_the_perturbation_tells_right_bounds_from_wrong_ones() -> None:
    right = assessed(perturbed(validation(), lambda one: not waits(one)))
    wrong = assessed(perturbed(validation(), waits))
    for found, accuracy in ((right, 1.0), (wrong, 0.0)):
        assert {one.level for one in found.perturbed} == {"memory", "compute"}
        assert {one.part for one in found.perturbed} == {"linear", "attention"}
        assert found.accuracy == accuracy
        assert len(found.points) == len(assessed(validation()).points)  # perturbed times are no measurements
    assert sum(line.startswith("not so: ") for line in sentences(wrong)) == len(wrong.perturbed)
    assert not any(line.startswith("not so: ") for line in sentences(right))
    assert any("(100%)" in line for line in sentences(right))


def test_what_was_not_perturbed_says_nothing(found: Assessment) -> None:
    assert found.perturbed == ()
    assert found.accuracy is None


def test_a_ceiling_that_was_passed_meanwhile_is_raised(run: Validation, found: Assessment) -> None:
    calm = assessed(seen(run, 20.0, 300.0))
    assert [(one.kind, one.calibrated) for one in calm.ceilings] == [("read", 32.0), ("gemm", 500.0)]
    assert calm.points == found.points
    fast = assessed(seen(run, 64.0, 1000.0))
    assert [one.best for one in fast.ceilings] == [pytest.approx(64), pytest.approx(1000)]
    for before, after in zip(found.points, fast.points, strict=True):
        assert before.bound_ms is not None
        assert after.bound_ms is not None
        assert after.bound_ms <= before.bound_ms
        if (after.phase, after.part) == ("decode", "attention"):
            assert after.bound_ms == pytest.approx(before.bound_ms / 2, rel=0.01)
    assert fast.fitted == found.fitted


def test_what_was_seen_stands_in_for_a_peak_that_was_refused(run: Validation) -> None:
    whole = calibration()
    kept = tuple(one for one in whole.ceilings if one.kind != "gemm")
    unstable = whole.model_copy(update={"ceilings": kept})
    assert {point.bound_ms for point in assessed(run, unstable).points} == {None}
    found = assessed(seen(run, 32.0, 500.0), unstable)
    assert [one.calibrated for one in found.ceilings] == [32.0, None]
    assert all(point.bound_ms for point in found.points)
    assert found.above() == []
    nothing = assessed(seen(run, 32.0, 500.0), whole.model_copy(update={"ceilings": ()}))
    assert {point.bound_ms for point in nothing.points} == {None}


def test_noise_is_not_fitted_away() -> None:
    """5% of noise in single samples gives a residual of the median's size, on both sides."""
    noisy = assessed(validation(noise=0.05))
    for held_out in (False, True):
        score = residuals(noisy.side(held_out, "decode"))
        assert score is not None
        assert 0.005 < score.mape < 0.05
        assert np.sign(score.worst) in (-1, 1)
