"""Pareto fronts: score against bytes read, tokens, latency and energy; accuracy against tokens and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.comparison import Comparison
from analysis.lrm_survey import SurveyRow
from analysis.statistics import Estimate
from reports.canvas import FADED, error_bars, set_style
from reports.style import NEUTRAL, colours

COSTS = {
    "kv_read_bytes_per_step": ("KV MB/step", 1e-6),
    "mean_output_tokens": ("tokens/request", 1.0),
    "median_e2el_ms": ("latency, ms", 1.0),
    "joules_per_token": ("J/token", 1.0),
}
"""Metrics that are better when smaller, their axis title and scale."""
ACROSS = 2
"""Panels in a row: as many as a phone can show."""


@dataclass(frozen=True)
class Mark:
    """A point of a panel: what it costs, and how good it is."""

    label: str
    cost: float
    score: Estimate
    trusted: bool = True


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
    """One panel per cost that at least two scored methods of a contest have; a line joins the front."""
    panels = {title: _marks(rows, cost, scale) for cost, (title, scale) in COSTS.items()}
    return _fronts(panels, rows[0].score_name or "score", rows[0].higher_is_better, colour)


def _marks(rows: Sequence[Comparison], cost: str, scale: float) -> list[Mark]:
    return [
        Mark(row.label, spent * scale, Estimate(score, None, None, row.requests), row.trusted)
        for row in rows
        if (score := row.metrics["score"]) is not None and (spent := row.metrics.get(cost)) is not None
    ]


def survey_fronts(rows: Sequence[SurveyRow]) -> list[go.Figure]:
    """Per workload and model, accuracy with its Wilson interval against the tokens and the FLOPs of an answer."""
    groups: dict[str, list[SurveyRow]] = {}
    for row in rows:
        groups.setdefault(f"{row.workload} on {row.model}", []).append(row)
    drawn = {title: _survey_front(own) for title, own in groups.items()}
    return [
        figure.update_layout(legend={"title": {"text": escape(title)}}) for title, figure in drawn.items() if figure
    ]


def _survey_front(rows: Sequence[SurveyRow]) -> go.Figure | None:
    panels = {
        "tokens per answer": [Mark(row.title, row.generated_tokens, row.accuracy) for row in rows],
        "GFLOP per answer": [Mark(row.title, row.work.flops / 1e9, row.accuracy) for row in rows if row.work],
    }
    return _fronts(panels, "accuracy, %", True, colours(row.title for row in rows))


def _fronts(
    panels: Mapping[str, Sequence[Mark]], score: str, higher_is_better: bool, colour: Mapping[str, str]
) -> go.Figure | None:
    """A panel per cost with two marks or more, named by its title; every mark is in the legend once."""
    panels = {title: marks for title, marks in panels.items() if len(marks) > 1}
    if not panels:
        return None
    figure = _grid(len(panels))
    named: set[str] = set()
    for index, (title, marks) in enumerate(panels.items()):
        place = {"row": index // ACROSS + 1, "col": index % ACROSS + 1}
        _add_front(figure, place, [(mark.cost, mark.score.value) for mark in marks], higher_is_better)
        for mark in marks:
            _add_mark(figure, place, mark, colour, showlegend=mark.label not in named)
            named.add(mark.label)
        figure.update_xaxes(title=title, nticks=4, tickangle=0, **place)
    direction = "higher" if higher_is_better else "lower"
    figure.update_yaxes(title=f"{escape(score)}<br>({direction} is better)", col=1)
    return figure


def _grid(panels: int) -> go.Figure:
    """Two panels in a row; the last one, where it is alone, has the row for itself."""
    rows = -(-panels // ACROSS)
    specs: list[list[dict[str, int] | None]] = [[{} for _ in range(ACROSS)] for _ in range(rows)]
    if panels % ACROSS:
        specs[-1] = [{"colspan": ACROSS}, *[None] * (ACROSS - 1)]
    figure = make_subplots(
        rows, ACROSS, specs=specs, shared_yaxes="all", horizontal_spacing=0.05, vertical_spacing=0.28 / rows
    )
    set_style(figure, 100 + 240 * rows)
    return figure


def _add_front(
    figure: go.Figure, place: Mapping[str, int], points: Sequence[tuple[float, float]], higher_is_better: bool
) -> None:
    best = [points[index] for index in front(points, higher_is_better)]
    x, y = [point[0] for point in best], [point[1] for point in best]
    line = {"color": NEUTRAL, "dash": "dot"}
    figure.add_scatter(x=x, y=y, mode="lines", line=line, showlegend=False, hoverinfo="skip", **place)


def _add_mark(
    figure: go.Figure, place: Mapping[str, int], mark: Mark, colour: Mapping[str, str], *, showlegend: bool
) -> None:
    figure.add_scatter(
        x=[mark.cost],
        y=[mark.score.value],
        error_y=error_bars([mark.score]) if mark.score.low is not None else None,
        mode="markers",
        name=escape(mark.label),
        legendgroup=mark.label,
        showlegend=showlegend,
        marker={"size": 11, "color": colour[mark.label], "opacity": 1.0 if mark.trusted else FADED},
        hovertemplate="%{x:.4~g}: %{y:.4~g}",
        **place,
    )
