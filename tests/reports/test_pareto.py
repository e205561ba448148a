"""The front holds the points that nothing beats."""

from __future__ import annotations

from analysis.report_data import ReportData
from reports.figures import contest_figures
from reports.pareto import front


def test_the_front_by_rising_cost():
    points = [(3.0, 9.0), (1.0, 5.0), (2.0, 5.0), (2.0, 7.0), (4.0, 8.0)]
    assert front(points, higher_is_better=True) == [1, 3, 0]
    assert front(points, higher_is_better=False) == [1]


def test_a_panel_for_every_cost_that_was_measured(data: ReportData):
    figure = contest_figures(data.contests[0])["pareto"]
    titles = [axis.title.text for axis in figure.select_xaxes()]
    assert titles == ["KV MB/step", "tokens/request", "latency, ms"]
