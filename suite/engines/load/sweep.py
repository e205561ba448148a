"""How much a server sustains: rates are doubled until one is too much, then the gap is bisected.

A rate is sustained while its requests all succeed, the number in flight does not grow through the window (card section
6: a queue that grows linearly is unstable) and, where objectives are given, nine of ten requests meet them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suite.engines.load.records import Record, measured

GROWTH = 0.05
"""Share of the requests that may still wait more at the end of the window than at its start: the noise of a queue."""
ATTAINMENT = 0.9
CLOSE = 1.1
"""The bisection ends when the rate that was too much is at most this much higher than the sustained one."""
DOUBLINGS = 12
HALVINGS = 4
"""Where the first rate is too much already. Each takes twice as long as the one before, so there are few."""


@dataclass(frozen=True)
class Point:
    """One rate that was tried. `failing` says why it was too much; it is empty where the server sustained it."""

    rate: float
    failing: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Saturation:
    """`sustained` is the highest rate kept up, `too_much` the lowest that was not; None where none was found."""

    points: tuple[Point, ...]

    @property
    def sustained(self) -> float | None:
        """Rates above one that failed do not count, even if they were lucky."""
        limit = self.too_much or float("inf")
        return max((point.rate for point in self.points if not point.failing and point.rate < limit), default=None)

    @property
    def too_much(self) -> float | None:
        return min((point.rate for point in self.points if point.failing), default=None)


def search(measure: Callable[[float], Point], start: float, ended: Callable[[], bool]) -> Saturation:
    """Measures rates until the sustained and the failing one are close, or `ended` says to stop."""
    found = Saturation(())
    for _ in range(2 * DOUBLINGS):
        rate = next_rate(found, start)
        if rate is None or ended():
            break
        found = Saturation((*found.points, measure(rate)))
    return found


def next_rate(found: Saturation, start: float) -> float | None:
    """The rate to try after these; None when nothing is left to learn."""
    low, high = found.sustained, found.too_much
    if low is not None and high is not None:
        return (low * high) ** 0.5 if high / low > CLOSE else None
    if low is not None:
        return 2 * low if len(found.points) <= DOUBLINGS else None
    if high is not None:
        return high / 2 if len(found.points) <= HALVINGS else None
    return start


def backlog_growth(records: Sequence[Record]) -> float:
    """How much the number in flight grows from the first measured arrival to the last, by the line that fits best.

    As a share of the requests that arrived: 1 - capacity / rate for a server that is asked for more than it can do.
    """
    due = np.sort([r.t_sched for r in measured(records)])
    if len(due) < 3 or due[-1] == due[0]:
        return 0.0
    arrived = np.searchsorted(np.sort([r.t_sched for r in records]), due, side="right")
    gone = np.searchsorted(np.sort([r.t_done for r in records]), due, side="right")
    slope = np.polyfit(due - due[0], arrived - gone, 1)[0]
    return float(slope * (due[-1] - due[0]) / len(due))


def failing(metrics: Mapping[str, Any], records: Sequence[Record]) -> str:
    """Why the server does not sustain this load; empty where it does."""
    if metrics["failed"] or metrics["lost"]:
        return f"{metrics['failed']} failed, {metrics['lost']} lost"
    if (growth := backlog_growth(records)) > GROWTH:
        return f"the queue grows by {growth:.0%} of the requests"
    attained = metrics["slo_attainment"]
    if attained is not None and attained < ATTAINMENT:
        return f"{attained:.0%} meet the objectives"
    return ""
