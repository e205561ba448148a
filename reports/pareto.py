"""Pareto fronts of one contest: score against bytes read, tokens, latency and energy, whichever were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.comparison import Comparison
from reports.canvas import FADED, HEIGHT, set_style
from reports.style import NEUTRAL

COSTS = {
    "kv_read_bytes_per_step": ("KV MB/step", 1e-6),
    "mean_output_tokens": ("tokens/request", 1.0),
    "median_e2el_ms": ("latency, ms", 1.0),
    "joules_per_token": ("J/token", 1.0),
}
"""Metrics that are better when smaller, their axis title and scale."""


def front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[int]:
    """Places of the (cost, score) points that no other point beats, by rising cost: none is as cheap and better."""
    sign = 1.0 if higher_is_better else -1.0
    best, kept = float("-inf"), []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if sign * points[index][1] > best:
            best = sign * points[index][1]
            kept.append(index)
    return kept


def pareto(rows: Sequence[Comparison], colour: Mapping[str, str]) -> go.Figure | None:
    """One panel per cost that at least two scored methods have; a line joins the front."""
    scored = [row for row in rows if row.metrics["score"] is not None]
    panels = {cost: [row for row in scored if row.metrics.get(cost) is not None] for cost in COSTS}
    panels = {cost: drawn for cost, drawn in panels.items() if len(drawn) > 1}
    if not panels:
        return None
    figure = make_subplots(cols=len(panels), shared_yaxes=True, horizontal_spacing=0.04)
    set_style(figure, HEIGHT + 40)
    for column, (cost, drawn) in enumerate(panels.items(), start=1):
        _panel(figure, column, cost, drawn, colour)
    direction = "higher" if scored[0].higher_is_better else "lower"
    figure.update_yaxes(title=f"{escape(scored[0].score_name or 'score')} ({direction} is better)", row=1, col=1)
    return figure


def _panel(figure: go.Figure, column: int, cost: str, rows: Sequence[Comparison], colour: Mapping[str, str]) -> None:
    title, scale = COSTS[cost]
    points = [((row.metrics[cost] or 0.0) * scale, row.metrics["score"] or 0.0) for row in rows]
    best = [points[index] for index in front(points, rows[0].higher_is_better)]
    line = {"color": NEUTRAL, "dash": "dot"}
    x, y = [point[0] for point in best], [point[1] for point in best]
    figure.add_scatter(x=x, y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip", row=1, col=column)
    for row, (x_value, y_value) in zip(rows, points, strict=True):
        figure.add_scatter(
            x=[x_value],
            y=[y_value],
            mode="markers",
            name=escape(row.label),
            legendgroup=row.label,
            showlegend=column == 1,
            marker={"size": 11, "color": colour[row.label], "opacity": 1.0 if row.trusted else FADED},
            hovertemplate="%{x:.4~g}: %{y:.4~g}",
            row=1,
            col=column,
        )
    figure.update_xaxes(title=title, nticks=4, tickangle=0, row=1, col=column)
