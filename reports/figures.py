"""The report's interactive figures (plotly). Labels are escaped: plotly renders a subset of HTML in them.

Colours of text and grid are left to the page, which follows the reader's light or dark mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.comparison import Comparison
from analysis.report_data import ContestReport, Latencies, Prediction, ReportData, Roof, RoofPoint, Stream, TaskScore
from analysis.statistics import Estimate
from reports.style import NEUTRAL, PHASE_SYMBOLS, PHASES, colours, number, percent

HEIGHT = 320
"""Pixels of a figure whose content needs no more."""
BOX_POINTS = 400
"""More points than this are drawn as outliers only."""
CURVE_POINTS = 300
FADED = 0.35

Colours = Mapping[str, str]


def contest_figures(contest: ContestReport) -> dict[str, go.Figure]:
    """Figures of one contest by name; one that would be empty is left out."""
    colour = colours(row.label for row in contest.rows)
    candidates = {
        "speedups": speedups(contest.rows, colour),
        "first token": first_token(contest.latencies, colour),
        "inter-token": inter_token(contest.latencies, colour),
        "cache": cache(contest.rows),
        "score and retention": score_retention(contest.rows, colour),
        "prediction": prediction(contest.predictions),
        "task scores": task_scores(contest.task_scores, colour),
    }
    return {name: figure for name, figure in candidates.items() if figure is not None}


def machine_figures(data: ReportData) -> dict[str, go.Figure]:
    """Figures that are not of one contest."""
    candidates = {"roofline": roofline(data.roofs, data.points), "bandwidth": bandwidth(data.streams)}
    return {name: figure for name, figure in candidates.items() if figure is not None}


def _figure(height: int, **layout: object) -> go.Figure:
    figure = go.Figure()
    _style(figure, height)
    figure.update_layout(**layout)
    return figure


def _style(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        hoverlabel={"align": "left"},
    )


def _bars(estimates: Sequence[Estimate]) -> dict[str, object]:
    """Asymmetric error bars; none where an estimate has no interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0.0 if e.high is None else e.high - e.value for e in estimates],
        "arrayminus": [0.0 if e.low is None else e.value - e.low for e in estimates],
        "color": NEUTRAL,
        "thickness": 1.5,
        "width": 5,
    }


def speedups(rows: Sequence[Comparison], colour: Colours) -> go.Figure | None:
    """Speed-ups over dense with their 95% intervals, 1 marked."""
    compared = [row for row in rows if row.ratios]
    if not compared:
        return None
    figure = _figure(max(HEIGHT, 130 + 46 * len(compared)))
    for name, words, symbol in (("tpot", "decode (TPOT)", "circle"), ("ttft", "first token (TTFT)", "square-open")):
        drawn = [row for row in compared if name in row.ratios]
        estimates = [row.ratios[name] for row in drawn]
        figure.add_scatter(
            x=[estimate.value for estimate in estimates],
            y=[escape(row.label) for row in drawn],
            error_x=_bars(estimates),
            mode="markers",
            name=words,
            marker={
                "symbol": symbol,
                "size": 11,
                "color": [colour[row.label] for row in drawn],
                "opacity": [1.0 if row.trusted else FADED for row in drawn],
            },
            hovertemplate="%{y}: %{x:.2f}× as fast<extra>" + words + "</extra>",
        )
    figure.add_vline(x=1, line={"dash": "dot", "width": 1.5, "color": "#888"})
    figure.update_layout(scattermode="group", scattergap=0.6)
    figure.update_xaxes(title="speed-up over dense (log scale)", type="log", tickformat=".3~g", nticks=8)
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def first_token(latencies: Sequence[Latencies], colour: Colours) -> go.Figure | None:
    """Box plots of TTFT with the single requests."""
    if not latencies:
        return None
    figure = _figure(HEIGHT, showlegend=False)
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
    figure.update_yaxes(title="time to first token, ms", rangemode="tozero")
    return figure


def inter_token(latencies: Sequence[Latencies], colour: Colours) -> go.Figure | None:
    """Empirical distribution of the gaps between tokens: the share of gaps that are shorter."""
    drawn = [series for series in latencies if series.itl_ms]
    if not drawn:
        return None
    figure = _figure(HEIGHT)
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
    _style(figure, max(HEIGHT, 140 + 50 * len(drawn)))
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
    figure.update_xaxes(title="share of the full cache", tickformat=".0%", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="MB, mean of the counted requests", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def score_retention(rows: Sequence[Comparison], colour: Colours) -> go.Figure | None:
    """Quality against the share of the cache that a step reads."""
    drawn = [row for row in rows if row.metrics["score"] is not None and row.metrics["selected_retention"] is not None]
    if not drawn:
        return None
    figure = _figure(HEIGHT, showlegend=False)
    for row in drawn:
        error = row.metrics["score_standard_error"]
        figure.add_scatter(
            x=[row.metrics["selected_retention"]],
            y=[row.metrics["score"]],
            error_y={"type": "data", "array": [error or 0.0], "thickness": 1.5, "width": 5},
            mode="markers+text",
            text=[escape(f"  {row.label} {row.score_coverage}")],
            textposition="middle right",
            cliponaxis=False,
            marker={"size": 12, "color": colour[row.label]},
            name=escape(row.label),
            hovertemplate="reads %{x:.1%} of the cache<br>score %{y:.3~g}",
        )
    top = max(row.metrics["selected_retention"] or 0.0 for row in drawn)
    figure.update_layout(margin={"r": 96})
    figure.update_xaxes(
        title="selected retention: share of the cache read per step", tickformat=".0%", range=[0, 1.06 * top]
    )
    direction = "higher" if drawn[0].higher_is_better else "lower"
    figure.update_yaxes(title=f"{escape(drawn[0].score_name or 'score')} ({direction} is better)")
    return figure


def task_scores(scores: Sequence[TaskScore], colour: Colours) -> go.Figure | None:
    """Score of every task, with standard errors; one task says nothing that the table does not."""
    tasks = list(dict.fromkeys(score.task for score in scores))
    if len(tasks) < 2:
        return None
    figure = _figure(max(HEIGHT, 110 + 30 * len(tasks)))
    for method in dict.fromkeys(score.method for score in scores):
        own = [score for score in scores if score.method == method]
        figure.add_scatter(
            x=[score.score for score in own],
            y=[escape(score.task) for score in own],
            error_x={
                "type": "data",
                "array": [score.standard_error or 0.0 for score in own],
                "thickness": 1,
                "width": 3,
            },
            mode="markers",
            name=escape(method),
            marker={"size": 9, "color": colour[method]},
            customdata=[score.n for score in own],
            hovertemplate="%{y}: %{x:.3~g} over %{customdata} requests",
        )
    figure.update_layout(scattermode="group", scattergap=0.45)
    figure.update_xaxes(title="score ± standard error")
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def prediction(predictions: Sequence[Prediction]) -> go.Figure | None:
    """Measured time of a pass, split into what the roofline explains, calls, and the rest."""
    if not predictions:
        return None
    phases = [phase for phase in PHASES if any(p.phase == phase for p in predictions)]
    figure = make_subplots(cols=len(phases), shared_yaxes=True, horizontal_spacing=0.06)
    methods = list(dict.fromkeys(p.method for p in predictions))
    _style(figure, max(HEIGHT, 140 + 46 * len(methods)))
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
        figure.update_xaxes(title=f"ms, {PHASES[phase]}", row=1, col=column)
    figure.update_layout(barmode="relative", bargap=0.35)
    figure.update_yaxes(autorange="reversed", automargin=True, ticksuffix=" ")
    return figure


def roofline(roofs: Sequence[Roof], points: Sequence[RoofPoint]) -> go.Figure | None:
    """Achieved GFLOP/s over arithmetic intensity, under the measured ceilings."""
    if not points and not roofs:
        return None
    figure = _figure(520)
    span = _intensities(roofs, points)
    for roof, tint in zip(roofs, (NEUTRAL, "#a08256", "#5f9182", "#93709f") * len(roofs), strict=False):
        for (name, bandwidth), dash in zip(roof.bandwidths_gb_per_s.items(), ("solid", "dash"), strict=False):
            label = f"{roof.label}: {name}, {number(bandwidth)} GB/s"
            figure.add_scatter(
                x=span.tolist(),
                y=np.minimum(roof.peak_gflop_per_s, span * bandwidth).tolist(),
                mode="lines",
                line={"color": tint, "width": 2, "dash": dash},
                name=escape(label),
                hovertemplate=f"{escape(label)}, peak {number(roof.peak_gflop_per_s)} GFLOP/s<extra></extra>",
            )
    _add_points(figure, points)
    figure.update_xaxes(title="arithmetic intensity, FLOP per counted byte", type="log", tickformat="~g", dtick=1)
    figure.update_yaxes(title="GFLOP/s", type="log", tickformat="~g", dtick=1)
    figure.update_layout(legend={"orientation": "v", "x": 1.01, "y": 1, "yanchor": "top"})
    return figure


def _intensities(roofs: Sequence[Roof], points: Sequence[RoofPoint]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Where the roof is drawn: beyond all points, and beyond every ridge so that each bend is seen."""
    ridges = [roof.peak_gflop_per_s / rate for roof in roofs for rate in roof.bandwidths_gb_per_s.values()]
    marks = [*ridges, *(point.intensity for point in points)]
    inside = np.geomspace(min(marks) / 4, max(marks) * 4, 64)
    return np.sort(np.concatenate([inside, ridges]))


def _add_points(figure: go.Figure, points: Sequence[RoofPoint]) -> None:
    colour = colours(point.method for point in points)
    for method, phase in dict.fromkeys((point.method, point.phase) for point in points):
        own = [point for point in points if (point.method, point.phase) == (method, phase)]
        figure.add_scatter(
            x=[point.intensity for point in own],
            y=[point.gflop_per_s for point in own],
            mode="markers",
            name=f"{escape(method)}, {phase}",
            marker={
                "symbol": PHASE_SYMBOLS[phase],
                "size": 9,
                "color": colour[method],
                "opacity": [0.9 if point.trusted else FADED for point in own],
            },
            text=[_point_text(point) for point in own],
            hovertemplate="%{text}<extra></extra>",
        )


def _point_text(point: RoofPoint) -> str:
    lines: Iterable[str] = (
        f"<b>{escape(point.method)}, {point.phase}</b>",
        escape(f"{point.contest.workload} / {point.task}, {point.contest.model}"),
        f"{number(point.gflop_per_s)} GFLOP/s, {number(point.gb_per_s)} GB/s, {number(point.intensity)} FLOP/byte",
        f"{percent(point.ceiling_fraction)} of the measured ceiling",
        f"measured {number(point.measured_ms)} ms, predicted {number(point.predicted_ms)} ms",
        "fits into the last-level cache" if point.cache_resident else "",
        "" if point.trusted else "unstable",
    )
    return "<br>".join(line for line in lines if line)


def bandwidth(streams: Sequence[Stream]) -> go.Figure | None:
    """Measured bandwidth over the working set, with the extreme samples."""
    if not streams:
        return None
    figure = _figure(380)
    tints = {"read": "#3b7dd8", "copy": "#e0812e", "triad": "#2a9d74"}
    for stream in streams:
        estimates = [Estimate(v, lo, hi, 0) for v, lo, hi in zip(stream.gb_per_s, stream.low, stream.high, strict=True)]
        figure.add_scatter(
            x=stream.sizes,
            y=stream.gb_per_s,
            error_y=_bars(estimates),
            mode="lines+markers",
            name=f"{stream.kind}, {stream.threads} thread{'s' if stream.threads != 1 else ''}",
            line={"color": tints[stream.kind], "dash": "solid" if stream.threads > 1 else "dot"},
            hovertemplate="%{y:.3~g} GB/s at %{x:.3~s}B",
        )
    figure.update_xaxes(title="working set, bytes (log scale)", type="log", tickformat=".3~s", nticks=8)
    figure.update_yaxes(title="GB/s", rangemode="tozero")
    return figure
