"""Builds the report: one HTML file that needs no network, and static pictures beside it.

Nothing in the page may run except the scripts whose hashes its content security policy names. Model output, names
and error messages are escaped as text, and JSON is embedded without a `<`. What a reader may never look at costs
nothing before it is asked for: plotly and the figures are text until a plot comes near the window, the raw data is
compressed until it is downloaded.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from analysis.headlines import contest_title
from analysis.lrm_printed import printed_rows
from analysis.report_data import ReportData
from analysis.roofline.validation import score_rows
from analysis.roofline.validation_text import sentences
from analysis.wording import number, plural
from reports import figures, grid_figures, machine_figures, pareto, residual_figures, static, style, tables

SHOWN_POINTS = 100
"""Roofline rows of one method in the page."""


class ReportError(ValueError):
    """The report cannot be written where it was asked for; the message is one sentence for the user."""


@dataclass(frozen=True)
class Embedded:
    """A figure in the page: its height in pixels and its JSON."""

    height: int
    json: str


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
    return _page(
        "report.html.jinja",
        ["page.js", "report.js", *(["explorer.js"] if data.explorer else [])],
        data=data,
        columns=tables.columns,
        cells=tables.cells,
        ablation=tables.ABLATION,
        contest_title=contest_title,
        interval=style.interval,
        percent=style.percent,
        plural=plural,
        size=style.size,
        printed=printed_rows() if data.survey else (),
        figures={name: Embedded(figure.layout.height, _harmless(figure.to_json())) for name, figure in drawn.items()},
        shown_points=SHOWN_POINTS,
        validation_scores=score_rows(data.validation) if data.validation is not None else [],
        validation_sentences=sentences(data.validation) if data.validation is not None else [],
        raw=_compressed(data.raw),
        explorer_json=_embedded(data.explorer),
        heading="h2",
    )


def render_explorer(document: Mapping[str, Any]) -> str:
    """The HTML of the roofline explorer alone, with the data of `analysis.roofline.explorer`."""
    scripts = ["page.js", "explorer.js"]
    return _page("explorer.html.jinja", scripts, explorer_json=_embedded(document), heading="h1")


def _page(template: str, names: Sequence[str], **context: Any) -> str:
    """A page with plotly, asleep, and the scripts of these names, and no others."""
    plotly, scripts, css = get_plotlyjs(), [*map(_template_text, names)], _template_text("report.css")
    shared = {"css": css, "plotly": plotly, "scripts": scripts, "policy": _policy([plotly, *scripts])}
    return _environment().get_template(template).render(**shared, **context)


def _figures(data: ReportData) -> dict[str, go.Figure]:
    """All figures by the id of their place in the page."""
    drawn = {f"machine-{name}": figure for name, figure in machine_figures.machine_figures(data).items()}
    drawn |= {f"residual-{name}": figure for name, figure in residual_figures.residual_figures(data.validation).items()}
    if (frontier := grid_figures.frontier(data.frontier)) is not None:
        drawn["claims-frontier"] = frontier
    for index, fronts in enumerate(pareto.survey_fronts(data.survey), start=1):
        drawn[f"survey-{index}"] = fronts
    for index, study in enumerate(data.studies, start=1):
        drawn[f"study-{index}"] = figures.best_so_far(study.best_so_far)
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


def _harmless(text: str) -> str:
    """JSON for a script element: without `<` it cannot end the element or open a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _embedded(document: Mapping[str, Any]) -> str:
    return _harmless(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def _compressed(document: Mapping[str, Any]) -> str:
    """JSON as base64 of gzip: a tenth of the text, and nothing that a browser has to read before it is wanted."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


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
