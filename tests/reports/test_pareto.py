"""The front holds the points that nothing beats."""

from __future__ import annotations

import dataclasses

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


def test_the_legend_names_every_method_once(data: ReportData):
    """One that has no figure in the first panel too."""
    contest = data.contests[0]
    blind = dataclasses.replace(contest.rows[1], metrics={**contest.rows[1].metrics, "kv_read_bytes_per_step": None})
    changed = dataclasses.replace(contest, rows=(contest.rows[0], blind, *contest.rows[2:]))
    figure = contest_figures(changed)["pareto"]
    named = [trace.name for trace in figure.data if trace.mode == "markers" and trace.showlegend is not False]
    assert sorted(named) == sorted(row.label for row in contest.rows)
