"""Residuals of ordinary units are those of their placements."""

from __future__ import annotations

import json
from statistics import fmean

import pytest

from analysis.documents import run_document
from analysis.placement import placements
from analysis.roofline.ceilings import Ceilings
from analysis.unit_scores import unit_scores
from tests.analysis.factory import calibration, longbench_units


def test_dense_units_against_their_placements() -> None:
    units, ceilings = longbench_units(), Ceilings(calibration())
    dense = [unit for unit in units if unit.spec.method.name == "dense" and unit.status == "ok"]
    for score in (score for score in unit_scores(units, ceilings) if score.part == "dense"):
        places = [placements(unit, ceilings)[score.phase] for unit in dense]
        errors = [(place.predicted_ms or 0.0) / place.measured_ms - 1 for place in places]
        assert score.residuals.n == len(dense)
        assert score.residuals.bias == pytest.approx(fmean(errors))
        assert score.residuals.mape == pytest.approx(fmean(map(abs, errors)))
        assert (score.batch, score.dtype, score.held_out) == (1, "bf16", None)


def test_unstable_failed_and_gated_units_are_left_out() -> None:
    units, ceilings = longbench_units(), Ceilings(calibration())
    counted = sum(score.residuals.n for score in unit_scores(units, ceilings) if score.phase == "decode")
    assert counted == sum(unit.status == "ok" for unit in units) < len(units)


def test_without_ceilings_nothing_is_predicted() -> None:
    assert unit_scores(longbench_units(), None) == []


def test_the_document_of_a_run_has_them() -> None:
    rows = json.loads(json.dumps(run_document(longbench_units(), {}, calibration())))["residuals"]
    assert {row["phase"] for row in rows} == {"prefill", "decode"}
    assert all(row["residuals"]["n"] for row in rows)
