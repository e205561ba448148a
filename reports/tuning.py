"""The page of a tuning study: its history, which parameters mattered, and the landscape along and across them."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from plotly import graph_objects

from analysis.tuning import best_so_far, finished, importances

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column names, and rows of cells."""


@dataclass(frozen=True)
class Section:
    """One setting: its studies by sampler, the first of which is drawn in full, and the table of its race."""

    title: str
    studies: Mapping[str, optuna.Study]
    unit: str
    table: Table | None = None


def write_page(title: str, sections: Sequence[Section], output: Path) -> None:
    """One self-contained HTML file."""
    parts = [f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>']
    parts.append(f"<h1>{html.escape(title)}</h1>")
    for number, section in enumerate(sections):
        parts.append(f"<h2>{html.escape(section.title)}</h2>{_table(section.table)}")
        for place, figure in enumerate(_figures(section)):
            parts.append(figure.to_html(full_html=False, include_plotlyjs=not number and not place))
    output.write_text("".join([*parts, "</html>"]), encoding="utf-8")


def _table(table: Table | None) -> str:
    if table is None:
        return ""
    names, rows = table
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table border='1' cellpadding='6' style='border-collapse:collapse'><tr>{head}</tr>{body}</table>"


def _figures(section: Section) -> list[graph_objects.Figure]:
    study = next(iter(section.studies.values()))
    landscape = _landscape(study, section.unit)
    drawn = [_history(section), _importances(study), _slices(study, section.unit)]
    return [*drawn, *([] if landscape is None else [landscape])]


def _history(section: Section) -> graph_objects.Figure:
    """The trials of the first study, and the best so far of all."""
    figure = graph_objects.Figure()
    for place, (name, study) in enumerate(section.studies.items()):
        trials = finished(study)
        numbers = [trial.number for trial in trials]
        if not place:
            values = [trial.values[0] if trial.values else None for trial in trials]
            figure.add_scatter(x=numbers, y=values, mode="markers", name="trial")
        figure.add_scatter(x=numbers, y=best_so_far(study), mode="lines", line_shape="hv", name=f"best so far, {name}")
    return figure.update_layout(title=f"{section.unit}, by trial", xaxis_title="trial", yaxis_title=section.unit)


def _importances(study: optuna.Study) -> graph_objects.Figure:
    shares = importances(study)
    figure = graph_objects.Figure(graph_objects.Bar(x=list(shares.values()), y=list(shares), orientation="h"))
    return figure.update_layout(title="Share of the speed that each option explains")


def _slices(study: optuna.Study, unit: str) -> graph_objects.Figure:
    figure: graph_objects.Figure = optuna.visualization.plot_slice(
        study, target=lambda trial: trial.values[0], target_name=unit
    )
    return figure


def _landscape(study: optuna.Study, unit: str) -> graph_objects.Figure | None:
    """The plane of the two options that matter most, or of the first two; `None` where there are no two."""
    shares = importances(study)
    names = sorted(shares, key=lambda name: -shares[name]) or [n for trial in study.trials[:1] for n in trial.params]
    if len(names) < 2:
        return None
    figure: graph_objects.Figure = optuna.visualization.plot_contour(
        study, params=names[:2], target=lambda trial: trial.values[0], target_name=unit
    )
    return figure
