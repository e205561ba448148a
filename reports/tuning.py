"""The page of a tuning study: its history, which parameters mattered, and the landscape along each of them."""

from __future__ import annotations

import html
from pathlib import Path

import optuna
from plotly import graph_objects

from analysis.tuning import best_so_far, finished, importances


def write_page(study: optuna.Study, title: str, output: Path) -> None:
    """One self-contained HTML file."""
    drawn = [_history(study), _importances(study), _slices(study)]
    parts = [figure.to_html(full_html=False, include_plotlyjs=not index) for index, figure in enumerate(drawn)]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    output.write_text(f"{head}<h1>{html.escape(title)}</h1>{''.join(parts)}</html>", encoding="utf-8")


def _history(study: optuna.Study) -> graph_objects.Figure:
    trials = finished(study)
    numbers = [trial.number for trial in trials]
    values = [trial.values[0] if trial.values else None for trial in trials]
    figure = graph_objects.Figure()
    figure.add_scatter(x=numbers, y=values, mode="markers", name="trial")
    figure.add_scatter(x=numbers, y=best_so_far(study), mode="lines", line_shape="hv", name="best so far, score kept")
    return figure.update_layout(
        title="Speed-up over the default, by trial", xaxis_title="trial", yaxis_title="x faster"
    )


def _importances(study: optuna.Study) -> graph_objects.Figure:
    shares = importances(study)
    figure = graph_objects.Figure(graph_objects.Bar(x=list(shares.values()), y=list(shares), orientation="h"))
    return figure.update_layout(title="Share of the speed that each option explains")


def _slices(study: optuna.Study) -> graph_objects.Figure:
    figure: graph_objects.Figure = optuna.visualization.plot_slice(
        study, target=lambda trial: trial.values[0], target_name="x faster"
    )
    return figure
