"""Interactive figures of grids: needles found by length and depth, and quality against what a token reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.report_data import FrontierPoint, HeatCell
from reports.canvas import HEIGHT, set_style
from reports.style import colours

ACROSS = 3
"""Heat maps in a row."""


def heat_maps(cells: Sequence[HeatCell]) -> go.Figure | None:
    """One map per method: context length across, depth of the needle down, mean score in the cell."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    if not methods:
        return None
    rows = -(-len(methods) // ACROSS)
    titles = [escape(method) for method in methods]
    figure = make_subplots(rows, min(ACROSS, len(methods)), subplot_titles=titles, shared_yaxes=True)
    set_style(figure, 90 + 240 * rows)
    lengths, depths = (sorted({getattr(cell, axis) for cell in cells}) for axis in ("length", "depth"))
    for index, method in enumerate(methods):
        found = {(cell.length, cell.depth): cell for cell in cells if cell.method == method}
        grid = [[found.get((length, depth)) for length in lengths] for depth in depths]
        figure.add_heatmap(
            x=[f"{length:,}" for length in lengths],
            y=[f"{depth:.0f}%" for depth in depths],
            z=[[None if cell is None else cell.score for cell in row] for row in grid],
            text=[["" if cell is None else f"{cell.score:.0f} over {cell.n}" for cell in row] for row in grid],
            zmin=0,
            zmax=100,
            colorscale="RdYlGn",
            showscale=index == 0,
            hovertemplate="%{x} tokens, depth %{y}: %{text}<extra>" + escape(method) + "</extra>",
            row=index // ACROSS + 1,
            col=index % ACROSS + 1,
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(margin={"t": 40})
    return figure


def frontier(points: Sequence[FrontierPoint]) -> go.Figure | None:
    """Perplexity and keys found against the KV bytes a token reads; a line per method, dense as a point."""
    methods = list(dict.fromkeys(point.method for point in points))
    if not methods:
        return None
    figure = make_subplots(cols=2, horizontal_spacing=0.1)
    set_style(figure, HEIGHT + 140)
    colour = colours(methods)
    for method in methods:
        own = sorted((point for point in points if point.method == method), key=lambda point: point.read_bytes)
        _add_line(figure, 1, method, own, [point.nats_per_token for point in own], colour)
        _add_line(figure, 2, method, own, [100 * point.passkeys for point in own], colour)
    figure.update_xaxes(title="KV bytes read per token, MB", rangemode="tozero")
    figure.update_yaxes(title="nats per token (lower is better)", row=1, col=1)
    figure.update_yaxes(title="passkeys found, % (higher is better)", range=[-3, 103], row=1, col=2)
    return figure


def _add_line(
    figure: go.Figure,
    column: int,
    method: str,
    points: Sequence[FrontierPoint],
    values: Sequence[float],
    colour: Mapping[str, str],
) -> None:
    figure.add_scatter(
        x=[point.read_bytes / 1e6 for point in points],
        y=list(values),
        text=[f"budget {point.share:.1%}, retention {point.retention:.1%}" for point in points],
        mode="lines+markers",
        name=escape(method),
        legendgroup=method,
        showlegend=column == 1,
        line={"color": colour[method], "width": 2},
        marker={"size": 9, "symbol": "diamond" if len(points) == 1 else "circle"},
        hovertemplate="%{x:.3~g} MB: %{y:.3~g}<br>%{text}<extra>" + escape(method) + "</extra>",
        row=1,
        col=column,
    )
