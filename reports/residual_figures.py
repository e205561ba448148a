"""Interactive figures of a validation: measured against predicted times, and residuals by shape."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.residuals import Compared
from analysis.roofline.validation import Assessment
from analysis.wording import number
from reports.canvas import HEIGHT, new_figure, set_style
from reports.style import NEUTRAL, PHASE_SYMBOLS, PHASES, colours

SCALE = 0.15
"""Residual at which a cell of the map has its full colour."""


def residual_figures(found: Assessment | None) -> dict[str, go.Figure]:
    """Both figures; none without a validation."""
    if found is None:
        return {}
    return {"scatter": scatter(found.points), "shapes": shapes(found)}


def scatter(points: Sequence[Compared]) -> go.Figure:
    """Predicted over measured time of every part; shapes that were fitted are open, on the line nothing is wrong."""
    figure = new_figure(HEIGHT + 160)
    times = [time for point in points for time in (point.measured_ms, point.predicted_ms) if time > 0]
    ends = [min(times), max(times)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": NEUTRAL, "dash": "dot"}, showlegend=False)
    colour = colours(sorted({point.part for point in points}))
    for part, phase in sorted({(point.part, point.phase) for point in points}):
        own = [point for point in points if (point.part, point.phase) == (part, phase)]
        symbol = PHASE_SYMBOLS[phase]
        figure.add_scatter(
            x=[point.measured_ms for point in own],
            y=[point.predicted_ms for point in own],
            mode="markers",
            name=escape(f"{part}, {phase}"),
            marker={
                "color": colour[part],
                "size": 8,
                "symbol": [symbol if point.held_out else f"{symbol}-open" for point in own],
            },
            text=[_point_text(point) for point in own],
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(title="measured, ms", type="log", tickformat="~g", dtick=1)
    figure.update_yaxes(title="predicted, ms", type="log", tickformat="~g", dtick=1)
    return figure


def _point_text(point: Compared) -> str:
    side = "held out" if point.held_out else "fitted"
    lines = [
        f"<b>{escape(point.phase)} {escape(point.part)}</b>, batch × tokens {escape(point.where)}, {side}",
        f"measured {number(point.measured_ms)} ms, predicted {number(point.predicted_ms)} ms ({point.residual:+.1%})",
        f"the machine's bound is {number(point.bound_ms)} ms",
    ]
    return "<br>".join(lines)


def shapes(found: Assessment) -> go.Figure:
    """Residuals of whole passes: batch down, tokens across; the shapes held out are marked."""
    phases = [phase for phase in PHASES if any(point.phase == phase for point in found.points)]
    figure = make_subplots(cols=len(phases), subplot_titles=[f"{phase}, whole passes" for phase in phases])
    set_style(figure, HEIGHT)
    passes = [point for point in found.points if point.part == "pass"]
    batches, lengths = (sorted({getattr(point, axis) for point in passes}) for axis in ("batch", "tokens"))
    for column, phase in enumerate(phases, start=1):
        cells = {(point.batch, point.tokens): point for point in passes if point.phase == phase}
        grid = [[cells.get((batch, tokens)) for tokens in lengths] for batch in batches]
        figure.add_heatmap(
            x=[f"{tokens:,}" for tokens in lengths],
            y=[str(batch) for batch in batches],
            z=[[None if cell is None else cell.residual for cell in row] for row in grid],
            text=[["" if cell is None else _cell_text(cell) for cell in row] for row in grid],
            texttemplate="%{text}",
            zmin=-SCALE,
            zmax=SCALE,
            colorscale="RdBu",
            showscale=False,
            hovertemplate="batch %{y}, %{x} tokens: %{text}<extra>" + phase + "</extra>",
            row=1,
            col=column,
        )
    figure.update_xaxes(title="tokens", type="category")
    figure.update_yaxes(title="batch", type="category")
    figure.update_layout(margin={"t": 40})
    return figure


def _cell_text(point: Compared) -> str:
    return f"{'' if point.held_out else '('}{100 * point.residual:+.0f}%{'' if point.held_out else ')'}"
