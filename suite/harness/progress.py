"""How far a run is. Events come between turns only, so a display must not refresh itself while a turn is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from suite.harness.plan import Block


@dataclass(frozen=True)
class Progress:
    """A moment of a run. `eta_s` is `None` until something has been measured."""

    activity: str
    blocks_done: int
    blocks: int
    units_done: int
    units: int
    eta_s: float | None


Listener = Callable[[Progress], None]


def work(block: Block) -> float:
    """Relative amount of work in a block: its estimated seconds, or else its number of requests."""
    return block.estimate_s or float(ticks(block))


def ticks(block: Block) -> int:
    """Announcements a block makes when all its items exist: one per turn, and one per counting pass."""
    batches = -(-block.workload.limit // block.units[0].engine.batch_size)
    return len(block.units) * (batches * block.protocol.repeats + 1)


class Tracker:
    """Turns the announcements of a running block into `Progress` events."""

    def __init__(self, blocks: Sequence[Block], listener: Listener | None) -> None:
        self._blocks = blocks
        self._listener = listener
        self._started = time.perf_counter()
        self._units = sum(len(block.units) for block in blocks)
        self._finished: list[Block] = []
        self._skipped = 0.0
        self._current: Block | None = None
        self._ticks = 0

    def begin(self, block: Block) -> None:
        """A block is about to be measured."""
        self._current, self._ticks = block, 0
        self.tick(block.workload.task)

    def end(self, block: Block, measured: bool) -> None:
        """A block is done; one that was not measured says nothing about the speed."""
        self._finished.append(block)
        self._skipped += 0.0 if measured else work(block)
        self._current = None
        self.tick(f"{block.workload.task} done")

    def tick(self, activity: str) -> None:
        """Something begins."""
        self._ticks += 1
        if self._listener is not None:
            units_done = sum(len(block.units) for block in self._finished)
            self._listener(
                Progress(activity, len(self._finished), len(self._blocks), units_done, self._units, self._eta_s())
            )

    def _eta_s(self) -> float | None:
        """Time left if the rest goes as fast as what was measured so far."""
        finished = sum(work(block) for block in self._finished)
        begun = work(self._current) * min(1.0, self._ticks / ticks(self._current)) if self._current is not None else 0.0
        measured = finished + begun - self._skipped
        left = sum(work(block) for block in self._blocks) - finished - begun
        return (time.perf_counter() - self._started) * left / measured if measured > 0 else None
