"""How commands talk: tables and JSON on stdout, progress and remarks on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from suite.harness.progress import Progress as Moment

_MIN_WIDTH = 160
NAME = 40  # characters; longer texts are sentences


def stdout() -> Console:
    """The console for what a person reads; wide enough for a table when it is not a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, _MIN_WIDTH))


def stderr() -> Console:
    """The console for progress and remarks."""
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout; NaN and infinity, which JSON does not have, are errors."""
    print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table on stdout; the first `left` columns are text, the others are numbers. Cells are never read as markup.

    What does not fit is folded: the texts where some are sentences, else the numbers, so that a row keeps its name.
    """
    from rich.text import Text

    names = all(len(line) <= NAME for row in rows for cell in row[:left] for line in cell.splitlines())

    drawn = Table(title=title, title_justify="left", header_style="bold")
    for index, name in enumerate(columns):
        text = index < left
        drawn.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=text == names)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    stdout().print(drawn)


@contextmanager
def progress_bar(unit: str = "units") -> Iterator[Callable[[Moment], None]]:
    """A bar with an ETA on stderr, drawn only when told to, so that it never wakes up inside a timed turn."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=stderr(), auto_refresh=False) as bar:
        task = bar.add_task("starting", total=1, eta="")

        def show(moment: Moment) -> None:
            eta = "" if moment.eta_s is None else f"about {span(moment.eta_s)} left"
            bar.update(task, description=moment.activity, completed=moment.units_done, total=moment.units, eta=eta)
            bar.refresh()

        yield show


def span(seconds: float) -> str:
    """`40 s`, or `2 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table: `digits` significant ones, or a dash."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """`1.93 [1.90, 1.96]`; without an interval it says so."""
    if value is None:
        return "-"
    return f"{number(value)} [{number(low)}, {number(high)}]" if low is not None else f"{number(value)} (no interval)"
