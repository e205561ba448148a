"""The figures and tables of a validation in the report."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.report_data import ReportData
from analysis.residuals import residuals
from analysis.roofline.validation import Assessment, assess
from reports.build import render
from reports.residual_figures import residual_figures, scatter, shapes
from tests.analysis.factory import calibration, perturbed, validation


@pytest.fixture(scope="module")
def found() -> Assessment:
    assessed = assess([perturbed(validation(), lambda one: one.phase == "prefill")], calibration())
    assert assessed is not None
    return assessed


def test_every_point_is_drawn_and_the_fitted_ones_are_open(found: Assessment) -> None:
    line, *marks = scatter(found.points).data
    assert list(line.x) == list(line.y)
    assert sum(len(mark.x) for mark in marks) == len(found.points)
    symbols = [symbol for mark in marks for symbol in mark.marker.symbol]
    assert sum(symbol.endswith("-open") for symbol in symbols) == len(found.side(held_out=False))
    passes = next(mark for mark in marks if mark.name == "pass, decode")
    assert passes.x[0] == found.side(False, "decode", "pass")[0].measured_ms


def test_the_map_has_every_shape_in_its_place(found: Assessment) -> None:
    prefill, decode = shapes(found).data
    for phase, drawn in (("prefill", prefill), ("decode", decode)):
        point = next(one for one in found.side(True, phase, "pass") if (one.batch, one.tokens) == (2, 512))
        row, column = list(drawn.y).index("2"), list(drawn.x).index("512")
        assert drawn.z[row][column] == pytest.approx(point.residual)
        assert drawn.text[row][column] == f"{100 * point.residual:+.0f}%"
        assert drawn.text[row][list(drawn.x).index("128")].startswith("(") == (not is_held_out(found, 2, 128))


def is_held_out(found: Assessment, batch: int, tokens: int) -> bool:
    return next(point.held_out for point in found.points if (point.batch, point.tokens) == (batch, tokens))


def test_without_a_validation_nothing_is_drawn() -> None:
    assert residual_figures(None) == {}


def test_the_page_tells_both_sides_and_the_units(data: ReportData, found: Assessment) -> None:
    page = render(dataclasses.replace(data, validation=found))
    score = residuals(found.side(True, "decode", "pass"))
    assert score is not None
    for told in ("Measured against predicted", "held out", "fitted", "residual-scatter", f"{100 * score.mape:.1f}%"):
        assert told in page
    assert "the uncalibrated bound is above 0 of" in page
    plain = render(data)
    assert "residual-scatter" not in plain
    assert "Units against the uncalibrated roofline" in plain
    assert {(row.phase, row.part) for row in data.scores} >= {("decode", "dense"), ("prefill", "dense")}
    assert all(row.held_out is None for row in data.scores)
