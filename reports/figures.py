"""The interactive figures of one contest (plotly). Labels are escaped: plotly renders a subset of HTML in them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.comparison import Comparison
from analysis.drafts import PLACES
from analysis.report_data import ContestReport, Latencies, Prediction, TaskScore
from analysis.wording import number, plural
from reports.canvas import FADED, HEIGHT, error_bars, name_rows, new_figure, set_style
from reports.grid_figures import heat_maps
from reports.pareto import pareto
from reports.style import PALETTE, PHASES, colours, percent

BOX_POINTS = 400
"""More points than this are drawn as outliers only."""
CURVE_POINTS = 300
SHOWN_TASKS = 40
"""Of more tasks those are drawn on which the methods differ most."""

Colours = Mapping[str, str]


def contest_figures(contest: ContestReport) -> dict[str, go.Figure]:
    """Figures of one contest by name; one that would be empty is left out."""
    colour = colours(row.label for row in contest.rows)
    candidates = {
        "speedups": speedups(contest.rows, colour),
        "first token": first_token(contest.latencies, colour),
        "inter-token": inter_token(contest.latencies, colour),
        "cache": cache(contest.rows),
        "pareto": pareto(contest.rows, colour),
        "score and retention": score_retention(contest.rows, colour),
        "prediction": prediction(contest.predictions),
        "accepted drafts": accepted_drafts(contest.rows, colour),
        "task scores": task_scores(contest.task_scores, colour),
        "needles": heat_maps(contest.heat),
    }
    return {name: figure for name, figure in candidates.items() if figure is not None}


def speedups(rows: Sequence[Comparison], colour: Colours) -> go.Figure | None:
    """Speed-ups over dense with their 95% intervals, 1 marked."""
    compared = [row for row in rows if row.ratios]
    if not compared:
        return None
    figure = new_figure(max(HEIGHT, 130 + 46 * len(compared)))
    kinds = (
        ("tpot", "decode (TPOT)", "circle", -0.12),
        ("ttft", "first token (TTFT)", "square-open", 0.12),
        ("e2el", "whole search", "diamond", 0.0),
    )
    for name, words, symbol, offset in kinds:
        places = [place for place, row in enumerate(compared) if name in row.speedups]
        if not places:
            continue
        drawn = [compared[place] for place in places]
        estimates = [row.ratios[name] for row in drawn]
        figure.add_scatter(
            x=[estimate.value for estimate in estimates],
            y=[place + offset for place in places],
            text=[escape(row.label) for row in drawn],
            error_x=error_bars(estimates),
            mode="markers",
            name=words,
            marker={
                "symbol": symbol,
                "size": 11,
                "color": [colour[row.label] for row in drawn],
                "opacity": [1.0 if row.trusted else FADED for row in drawn],
            },
            hovertemplate="%{text}: %{x:.2f}× as fast<extra>" + words + "</extra>",
        )
    figure.add_vline(x=1, line={"dash": "dot", "width": 1.5, "color": "#888"})
    figure.update_xaxes(title="speed-up over dense (log scale)", type="log", tickformat=".3~g", nticks=8)
    name_rows(figure, [row.label for row in compared])
    return figure


def accepted_drafts(rows: Sequence[Comparison], colour: Colours) -> go.Figure | None:
    """Share of drafted tokens accepted at each place of the draft, of the rounds that came so far."""
    names = [f"draft_acceptance_at_{place}" for place in range(1, PLACES + 1)]
    drawn = {row.label: [row.metrics.get(name) for name in names] for row in rows}
    drawn = {label: rates for label, rates in drawn.items() if rates[0] is not None}
    if not drawn:
        return None
    figure = new_figure(HEIGHT)
    for label, rates in drawn.items():
        figure.add_scatter(
            x=list(range(1, PLACES + 1)),
            y=rates,
            mode="lines+markers",
            name=escape(label),
            line={"color": colour[label], "width": 2},
            marker={"size": 9},
            hovertemplate="place %{x}: %{y:.0%} accepted",
        )
    figure.update_xaxes(title="place in the draft", dtick=1)
    figure.update_yaxes(title="accepted", tickformat=".0%", range=[0, 1.05])
    return figure


def first_token(latencies: Sequence[Latencies], colour: Colours) -> go.Figure | None:
    """Box plots of TTFT with the single requests."""
    if not latencies:
        return None
    figure = new_figure(HEIGHT, showlegend=False)
    for series in latencies:
        few = len(series.ttft_ms) <= BOX_POINTS
        figure.add_box(
            y=series.ttft_ms,
            name=escape(series.method),
            marker={"color": colour[series.method], "size": 4, "opacity": 0.6},
            boxpoints="all" if few else "outliers",
            jitter=0.5,
            pointpos=0,
        )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(title="time to first token, ms", rangemode="tozero")
    return figure


def inter_token(latencies: Sequence[Latencies], colour: Colours) -> go.Figure | None:
    """Empirical distribution of the gaps between tokens: the share of gaps that are shorter."""
    drawn = [series for series in latencies if series.itl_ms]
    if not drawn:
        return None
    figure = new_figure(HEIGHT)
    for series in drawn:
        shares = np.linspace(0, 1, min(CURVE_POINTS, len(series.itl_ms)))
        figure.add_scatter(
            x=np.quantile(series.itl_ms, shares).tolist(),
            y=shares.tolist(),
            mode="lines",
            line={"color": colour[series.method], "width": 2, "shape": "hv"},
            name=escape(series.method),
            hovertemplate="%{y:.0%} of the gaps are below %{x:.2f} ms",
        )
    figure.update_xaxes(title="gap between tokens, ms (log scale)", type="log", tickformat=".3~g", nticks=8)
    figure.update_yaxes(title="share of gaps", tickformat=".0%", range=[0, 1.02])
    return figure


def cache(rows: Sequence[Comparison]) -> go.Figure | None:
    """What is stored and what a step reads: as shares of the full cache, and in megabytes."""
    drawn = [row for row in rows if row.metrics["selected_retention"] is not None]
    if not drawn:
        return None
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    set_style(figure, max(HEIGHT, 140 + 50 * len(drawn)))
    shares = (("stored_retention", "stored"), ("selected_retention", "read per step"))
    sizes = (("kv_resident_bytes", "stored"), ("kv_read_bytes_per_step", "read per step"))
    for column, group, scale in ((1, shares, 1.0), (2, sizes, 1e-6)):
        for (name, words), tint in zip(group, ("#9db4cf", "#2f6fb5"), strict=True):
            values = [(row.metrics[name] or 0.0) * scale for row in drawn]
            figure.add_bar(
                x=values,
                y=[escape(row.label) for row in drawn],
                orientation="h",
                name=words,
                marker={"color": tint},
                text=[percent(value) if column == 1 else number(value) for value in values],
                textposition="auto",
                showlegend=column == 1,
                legendgroup=words,
                hovertemplate="%{y}: %{text}<extra>" + words + "</extra>",
                row=1,
                col=column,
            )
    figure.update_layout(barmode="group", bargap=0.3)
    figure.update_xaxes(title="share of full cache", tickformat=".0%", rangemode="tozero", nticks=4, row=1, col=1)
    figure.update_xaxes(title="MB", rangemode="tozero", nticks=5, row=1, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def score_retention(rows: Sequence[Comparison], colour: Colours) -> go.Figure | None:
    """Quality against the share of the cache that a step reads."""
    drawn = [row for row in rows if row.metrics["score"] is not None and row.metrics["selected_retention"] is not None]
    if not drawn:
        return None
    figure = new_figure(HEIGHT)
    for row in drawn:
        error = row.metrics["score_standard_error"]
        figure.add_scatter(
            x=[row.metrics["selected_retention"]],
            y=[row.metrics["score"]],
            error_y={"type": "data", "array": [error or 0.0], "thickness": 1.5, "width": 5},
            mode="markers",
            cliponaxis=False,
            marker={"size": 12, "color": colour[row.label]},
            name=escape(f"{row.label} {row.score_coverage}"),
            hovertemplate="reads %{x:.1%} of the cache<br>score %{y:.3~g}",
        )
    top = max(row.metrics["selected_retention"] or 0.0 for row in drawn)
    figure.update_xaxes(title="share of the cache read per step", tickformat=".0%", range=[0, 1.06 * top])
    direction = "higher" if drawn[0].higher_is_better else "lower"
    figure.update_yaxes(title=f"{escape(drawn[0].score_name or 'score')} ({direction} is better)")
    return figure


def task_scores(scores: Sequence[TaskScore], colour: Colours) -> go.Figure | None:
    """Score of every task, with standard errors; one task says nothing that the table does not."""
    by_task: dict[str, list[float]] = {}
    for score in scores:
        by_task.setdefault(score.task, []).append(score.score)
    if len(by_task) < 2:
        return None
    widest = sorted(by_task, key=lambda task: min(by_task[task]) - max(by_task[task]))[:SHOWN_TASKS]
    tasks = [task for task in by_task if task in widest]
    figure = new_figure(max(HEIGHT, 110 + 30 * len(tasks)))
    methods = list(dict.fromkeys(score.method for score in scores))
    for rank, method in enumerate(methods):
        own = [score for score in scores if score.method == method and score.task in tasks]
        offset = 0.5 * ((rank + 0.5) / len(methods) - 0.5)
        figure.add_scatter(
            x=[score.score for score in own],
            y=[tasks.index(score.task) + offset for score in own],
            error_x={
                "type": "data",
                "array": [score.standard_error or 0.0 for score in own],
                "thickness": 1,
                "width": 3,
            },
            mode="markers",
            name=escape(method),
            marker={"size": 9, "color": colour[method]},
            text=[escape(f"{score.task}: {number(score.score)} over {plural(score.n, 'request')}") for score in own],
            hovertemplate="%{text}",
        )
    some = f" (the {len(tasks)} of {len(by_task)} tasks that differ most)" if len(tasks) < len(by_task) else ""
    figure.update_xaxes(title=f"score ± standard error{some}")
    name_rows(figure, tasks)
    return figure


def prediction(predictions: Sequence[Prediction]) -> go.Figure | None:
    """Measured time of a pass, split into what the roofline explains, calls, and the rest."""
    if not predictions:
        return None
    phases = [phase for phase in PHASES if any(p.phase == phase for p in predictions)]
    figure = make_subplots(cols=len(phases), shared_yaxes=True, horizontal_spacing=0.06)
    methods = list(dict.fromkeys(p.method for p in predictions))
    set_style(figure, max(HEIGHT, 140 + 46 * len(methods)))
    for column, phase in enumerate(phases, start=1):
        own = [p for p in predictions if p.phase == phase]
        parts = (
            ("roofline", "#2f6fb5", [p.predicted_ms - p.launch_ms for p in own]),
            ("call overhead", "#9db4cf", [p.launch_ms for p in own]),
            ("unexplained", "#e0812e", [p.measured_ms - p.predicted_ms for p in own]),
        )
        for words, tint, values in parts:
            figure.add_bar(
                x=values,
                y=[escape(p.method) for p in own],
                orientation="h",
                name=words,
                marker={"color": tint},
                showlegend=column == 1,
                legendgroup=words,
                hovertemplate="%{y}: %{x:.3~g} ms<extra>" + words + "</extra>",
                row=1,
                col=column,
            )
        figure.update_xaxes(title=PHASES[phase], nticks=5, tickangle=0, row=1, col=column)
    figure.update_layout(barmode="relative", bargap=0.35)
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def best_so_far(series: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """How a search went: its best figure after every trial, a line per sampler."""
    figure = new_figure(HEIGHT)
    for (name, values), tint in zip(series.items(), itertools.cycle(PALETTE), strict=False):
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=list(values),
            mode="lines+markers",
            name=escape(name),
            line={"color": tint, "shape": "hv", "width": 2},
            hovertemplate="trial %{x}: %{y:.4~g}",
        )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="best so far")
    return figure
