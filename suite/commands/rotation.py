"""What a night gets to: whatever was left longest, as long as there is time for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from suite.harness.history import Turn

GUESS_S = 60.0
"""Seconds of a run nobody has timed yet."""


class Rotation:
    """The names of one kind, oldest attempt first; what was never tried comes before, in the order given.

    An attempt counts when it begins: what kills the night each time must not keep the others from their turn.
    """

    def __init__(self, what: Literal["run", "ledger"], names: Sequence[str], past: Sequence[Turn]) -> None:
        turns = [turn for turn in past if turn.what == what]
        self._last = {turn.name: turn.at for turn in turns}
        self._seconds = {turn.name: turn.seconds for turn in turns if turn.finished}
        self._cut_off = {turn.name: turn.seconds for turn in turns if not turn.finished and turn.error == CUT_OFF}
        self.names = sorted(names, key=lambda name: self._last.get(name, ""))

    def estimate_s(self, name: str) -> float:
        """As long as last time; twice as long as it was given when that was not enough."""
        return self._seconds.get(name) or 2 * self._cut_off.get(name, GUESS_S / 2)


CUT_OFF = "the budget was used up"


class Deadline:
    """The time that a night has left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds until it is over, below 0 afterwards."""
        return self._end - time.monotonic()
