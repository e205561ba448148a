"""The interactive figures: what they hold, and that an empty one is left out."""

from __future__ import annotations

import dataclasses

import pytest

from analysis.report_data import Latencies, ReportData, TaskScore
from analysis.spec_bench import SpecBenchRow
from reports import figures, machine_figures
from reports.canvas import FADED
from reports.style import NEUTRAL


def test_contest_figures(data: ReportData) -> None:
    drawn = figures.contest_figures(data.contests[0])
    assert list(drawn) == [
        "speedups", "first token", "inter-token", "cache", "pareto", "score and retention", "prediction", "task scores",
    ]  # fmt: skip


def test_speedups_show_the_ratio_and_its_interval(data: ReportData) -> None:
    rows = data.contests[0].rows
    figure = figures.contest_figures(data.contests[0])["speedups"]
    decode = figure.data[0]
    ratio = next(row for row in rows if row.label == "longheads").ratios["tpot"]
    assert list(decode.text) == ["longheads", "streaming"]
    assert [round(place) for place in decode.y] == [0, 1]
    assert list(figure.layout.yaxis.ticktext) == ["longheads", "streaming"]
    assert decode.x[0] == pytest.approx(ratio.value)
    assert decode.x[0] + decode.error_x.array[0] == pytest.approx(ratio.high)
    assert decode.x[0] - decode.error_x.arrayminus[0] == pytest.approx(ratio.low)


def test_a_contest_of_one_method_has_no_speedups(data: ReportData) -> None:
    contest = data.contests[0]
    alone = dataclasses.replace(contest, rows=contest.rows[:1], latencies=(), task_scores=(), predictions=())
    assert set(figures.contest_figures(alone)) == {"cache", "score and retention"}


def test_of_many_tasks_those_are_drawn_that_differ_most() -> None:
    scores = [
        TaskScore(method, f"t{place:02}", 50.0 + (place if method == "b" else 0), None, 1)
        for place in range(figures.SHOWN_TASKS + 10)
        for method in ("a", "b")
    ]
    figure = figures.task_scores(scores, {"a": NEUTRAL, "b": NEUTRAL})
    assert figure is not None
    assert list(figure.layout.yaxis.ticktext) == [f"t{place:02}" for place in range(10, figures.SHOWN_TASKS + 10)]
    assert "40 of 50 tasks" in figure.layout.xaxis.title.text


def test_accepted_drafts_stand_at_their_places(data: ReportData) -> None:
    assert figures.accepted_drafts(data.contests[0].rows, {}) is None
    dense, row, *_ = data.contests[0].rows
    rates = {"draft_acceptance_at_1": 0.8, "draft_acceptance_at_2": 0.5, "draft_acceptance_at_3": None}
    one = dataclasses.replace(row, metrics={**row.metrics, **rates})
    figure = figures.accepted_drafts([dense, one], {row.label: NEUTRAL})
    assert figure is not None
    (line,) = figure.data
    assert (line.name, list(line.x), list(line.y)) == (row.label, [1, 2, 3, 4], [0.8, 0.5, None, None])


def test_a_report_of_drafts_shows_their_columns_and_places(data: ReportData) -> None:
    from reports.build import render

    contest = data.contests[0]
    figures_of = {"tau": 2.5, "draft_acceptance_rate": 0.34, "draft_acceptance_at_1": 0.8}
    rows = tuple(dataclasses.replace(row, metrics={**row.metrics, **figures_of}) for row in contest.rows)
    plain, drafted = (
        render(dataclasses.replace(data, contests=(dataclasses.replace(contest, rows=some),)))
        for some in (contest.rows, rows)
    )
    for shown in ("Tokens/pass", "34% accepted", 'id="contest-1-accepted-drafts"'):
        assert shown in drafted
        assert shown not in plain


def test_spec_benchs_own_figures_have_a_table_that_says_what_they_are(data: ReportData) -> None:
    from reports.build import render

    row = SpecBenchRow("lookahead", "overall", 3, 43.3, 1.857, 0.021, 2.39)
    contest = dataclasses.replace(data.contests[0], spec_bench=(row,))
    plain, shown = (render(dataclasses.replace(data, contests=(one,))) for one in (data.contests[0], contest))
    for text in ("Spec-Bench protocol", "1.86×", "a ratio of means", "2.39"):
        assert text in shown
    assert "Spec-Bench protocol" not in plain


def test_the_curve_is_the_distribution_of_the_gaps() -> None:
    figure = figures.inter_token([Latencies("m", (1.0,), tuple(float(gap) for gap in range(1001)), 0)], {"m": NEUTRAL})
    assert figure is not None
    (curve,) = figure.data
    assert len(curve.x) == figures.CURVE_POINTS
    assert curve.x[-1] == 1000.0
    assert curve.x[len(curve.x) // 2] == pytest.approx(1000 * curve.y[len(curve.y) // 2])


def test_the_roof_bends_at_its_ridge(data: ReportData) -> None:
    figure = machine_figures.roofline(data.roofs, data.points)
    assert figure is not None
    memory = figure.data[0]
    ridge = 500 / 32
    index = list(memory.x).index(ridge)
    assert memory.y[index] == pytest.approx(500)
    assert memory.y[index - 1] == pytest.approx(memory.x[index - 1] * 32)
    assert max(memory.y) == 500


def test_prefill_and_decode_points_per_method(data: ReportData) -> None:
    figure = machine_figures.roofline(data.roofs, data.points)
    assert figure is not None
    names = {trace.name for trace in figure.data if trace.mode == "markers"}
    methods = ("dense", "longheads", "streaming")
    assert names == {f"{method}, {phase}" for method in methods for phase in ("prefill", "decode")}
    assert sum(len(trace.x) for trace in figure.data if trace.mode == "markers") == len(data.points)
    unstable = next(trace for trace in figure.data if trace.name == "longheads, decode")
    assert sorted(set(unstable.marker.opacity)) == [FADED, 0.9]


def test_a_roof_without_points_and_points_without_a_roof(data: ReportData) -> None:
    assert machine_figures.roofline(data.roofs, ()) is not None
    assert machine_figures.roofline((), data.points) is not None
    assert machine_figures.roofline((), ()) is None
    assert machine_figures.bandwidth(()) is None


def test_parts_of_a_prediction_add_up_to_the_measured_time(data: ReportData) -> None:
    predictions = data.contests[0].predictions
    figure = figures.prediction(predictions)
    assert figure is not None
    first = [trace for trace in figure.data if trace.xaxis == "x"]
    prefill = [p.measured_ms for p in predictions if p.phase == "prefill"]
    assert [sum(parts) for parts in zip(*(trace.x for trace in first), strict=True)] == pytest.approx(prefill)


def test_task_scores_stand_where_they_are(data: ReportData) -> None:
    """Methods are set apart along the rows, never along the axis of the scores."""
    contest = data.contests[0]
    figure = figures.contest_figures(contest)["task scores"]
    drawn = {(trace.name, round(y)): x for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    tasks = list(figure.layout.yaxis.ticktext)
    assert drawn == {(score.method, tasks.index(score.task)): score.score for score in contest.task_scores}
    assert figure.layout.scattermode is None
