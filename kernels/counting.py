"""Counting kernel work in an extra, untimed pass.

Dispatchers ask `if counting.active is not None` and only then compute a cost, so a timed pass pays one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.cost import ZERO, Cost


class Counter:
    """Costs and numbers of calls, by op name."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}
        self.calls: dict[str, int] = {}

    def add(self, op: str, cost: Cost) -> None:
        """Add one call of `op`."""
        self.costs[op] = self.costs.get(op, ZERO) + cost
        self.calls[op] = self.calls.get(op, 0) + 1

    @property
    def total(self) -> Cost:
        """The sum over all ops."""
        return sum(self.costs.values(), ZERO)


active: Counter | None = None


def record(op: str, cost: Cost) -> None:
    """Add one call to the active counter, if there is one."""
    if active is not None:
        active.add(op, cost)


@contextmanager
def counting() -> Iterator[Counter]:
    """Count every kernel call made inside the block; an inner block takes the calls made inside it."""
    global active
    outer, counter = active, Counter()
    active = counter
    try:
        yield counter
    finally:
        active = outer
