"""Builds the report: one HTML file that needs no network, and static pictures beside it.

Nothing in the page may run except the two scripts whose hashes its content security policy names. Model output, names
and error messages are escaped as text, and JSON is embedded without a `<`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.report_data import ReportData
from analysis.roofline.validation import score_rows
from analysis.roofline.validation_text import sentences
from analysis.wording import number
from reports import figures, grid_figures, machine_figures, residual_figures, static, style, tables

SHOWN_POINTS = 100
"""Roofline rows of one method in the page."""


class ReportError(ValueError):
    """The report cannot be written where it was asked for; the message is one sentence for the user."""


@dataclass(frozen=True)
class Written:
    """The files of a report."""

    html: Path
    pictures: tuple[Path, ...]


def build_report(data: ReportData, path: Path) -> Written:
    """Writes the HTML to `path`, PNG and SVG into `<stem>_files` beside it; `ReportError` if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(data), encoding="utf-8")
        pictures = static.write_pictures(data, path.with_name(f"{path.stem}_files"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReportError(f"the report cannot be written to {path} ({reason}); give -o a writable file.") from error
    return Written(path, tuple(pictures))


def render(data: ReportData) -> str:
    """The HTML of the report."""
    drawn = _figures(data)
    scripts = [get_plotlyjs(), _template_text("report.js")]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            columns=tables.columns,
            cells=tables.cells,
            interval=style.interval,
            figures=set(drawn),
            shown_points=SHOWN_POINTS,
            validation_scores=score_rows(data.validation) if data.validation is not None else [],
            validation_sentences=sentences(data.validation) if data.validation is not None else [],
            figures_json=_embedded({name: json.loads(figure.to_json()) for name, figure in drawn.items()}),
            raw_json=_embedded(data.raw),
            css=_template_text("report.css"),
            scripts=scripts,
            policy=_policy(scripts),
        )
    )


def _figures(data: ReportData) -> dict[str, go.Figure]:
    """All figures by the id of their place in the page."""
    drawn = {f"machine-{name}": figure for name, figure in machine_figures.machine_figures(data).items()}
    drawn |= {f"residual-{name}": figure for name, figure in residual_figures.residual_figures(data.validation).items()}
    if (frontier := grid_figures.frontier(data.frontier)) is not None:
        drawn["claims-frontier"] = frontier
    for index, contest in enumerate(data.contests, start=1):
        for name, figure in figures.contest_figures(contest).items():
            drawn[f"contest-{index}-{name.replace(' ', '-')}"] = figure
    return drawn


def _policy(scripts: list[str]) -> str:
    """Only these scripts may run, nothing is loaded; styles are inline because plotly writes them."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _embedded(document: Mapping[str, Any]) -> str:
    """JSON for a script element: without `<` it cannot end the element or open a comment."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment


def _template_text(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
