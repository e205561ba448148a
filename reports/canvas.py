"""What all interactive figures have in common: size, margins, error bars, named rows.

Colours of text and grid are left to the page, which follows the reader's light or dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from analysis.statistics import Estimate
from reports.style import NEUTRAL

HEIGHT = 320
"""Pixels of a figure whose content needs no more."""
FADED = 0.5
"""Opacity of what comes from unstable units."""


def new_figure(height: int, **layout: object) -> go.Figure:
    """An empty figure in the report's style."""
    figure = go.Figure()
    set_style(figure, height)
    figure.update_layout(**layout)
    return figure


def set_style(figure: go.Figure, height: int) -> None:
    """The report's style, for a figure that exists already (subplots)."""
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


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Names for the rows 0, 1, ... from the top; points of one row may then lie a little above and below it."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[escape(name) for name in names],
        range=[len(names) - 0.5, -0.5],
        automargin=True,
        ticksuffix=" ",
        zeroline=False,
    )


def error_bars(estimates: Sequence[Estimate]) -> dict[str, object]:
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
