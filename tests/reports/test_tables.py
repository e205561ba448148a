"""Cells and number formats: what a reader sees of a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis.comparison import Comparison
from analysis.report_data import ReportData
from analysis.wording import number, signed
from reports import style, tables


@pytest.fixture
def rows(data: ReportData) -> dict[str, Comparison]:
    return {row.label: row for row in data.contests[0].rows}


def cell(row: Comparison, title: str) -> tables.Cell:
    return tables.cells(row)[[column.title for column in tables.COLUMNS].index(title)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.0, "1.00"),
        (0.99996, "1.00"),
        (27.345, "27.3"),
        (354.6, "355"),
        (12345.6, "12\u202f346"),
        (-1.5, "-1.50"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_formats() -> None:
    assert [style.percent(value) for value in (None, 0.0, 0.042, 0.38, 1.0)] == ["–", "0%", "4.2%", "38%", "100%"]
    assert [style.size(value) for value in (None, 12, 2.3e4, 3.46e7, 1.2e9)] == [
        "–",
        "12 B",
        "23.0 kB",
        "34.6 MB",
        "1.20 GB",
    ]
    assert style.interval(None, None) == "no interval"
    assert style.interval(1.0, 2.0) == "[1.00, 2.00]"
    assert [signed(value) for value in (1.25, -0.5, 0.0)] == ["+1.2", "−0.50", "0"]


def test_the_baseline_is_one_and_uncoloured(rows: dict[str, Comparison]) -> None:
    assert cell(rows["dense"], "Decode speed-up") == tables.Cell("1", "baseline")
    assert cell(rows["dense"], "Δ score").detail == "baseline"


def test_colour_follows_the_interval_not_the_value(rows: dict[str, Comparison]) -> None:
    assert cell(rows["longheads"], "Decode speed-up").tone == "better"
    assert cell(rows["longheads"], "First-token speed-up").tone == "worse"
    assert cell(rows["streaming"], "First-token speed-up").tone == ""
    assert cell(rows["longheads"], "Δ score").tone == "worse"


def test_status_names_what_went_wrong(rows: dict[str, Comparison]) -> None:
    assert cell(rows["streaming"], "Units") == tables.Cell("4 ok", "1 gated, 1 failed", 4, "worse")
    assert cell(rows["longheads"], "Units").tone == "doubtful"


def test_a_score_carries_its_source_and_coverage(rows: dict[str, Comparison]) -> None:
    assert cell(rows["streaming"], "Score").detail == "over 4 of 6 tasks\nsource: synthetic"


def test_rates_are_quoted_against_the_ceiling(rows: dict[str, Comparison]) -> None:
    assert cell(rows["dense"], "Decode GB/s").detail.endswith("% of ceiling")


def drafting(row: Comparison) -> Comparison:
    figures = {"tau": 2.5, "draft_acceptance_rate": 0.34, "draft_time_share": 0.042, "predicted_decode_speedup": 1.44}
    return replace(row, metrics={**row.metrics, **figures})


def test_draft_figures_are_there_where_somebody_drafts(rows: dict[str, Comparison]) -> None:
    assert tables.columns(list(rows.values())) == tables.COLUMNS
    one = drafting(rows["longheads"])
    shown = tables.columns([rows["dense"], one])
    assert [column.title for column in shown[-3:]] == ["Tokens/pass", "Drafting", "Predicted speed-up"]
    tau, share, predicted = tables.cells(one, shown)[-3:]
    assert (tau.text, tau.detail) == ("2.50", "34% accepted")
    assert share.text == "4.2%"
    measured = number(one.ratios["tpot"].value)
    assert (predicted.text, predicted.detail) == ("1.44×", f"measured {measured}×")
    assert [cell.text for cell in tables.cells(rows["dense"], shown)[-3:]] == ["–"] * 3


def test_only_the_baseline_is_grey_and_no_two_methods_share_a_colour() -> None:
    chosen = style.colours(["dense", "longheads", "dense · transformers", "longheads", "streaming"])
    assert chosen["dense"] == style.NEUTRAL
    assert [chosen[name] for name in ("longheads", "dense · transformers", "streaming")] == list(style.PALETTE[:3])


def test_more_methods_than_colours_still_get_one() -> None:
    assert len(style.colours(f"m{index}" for index in range(20))) == 21
