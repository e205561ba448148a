"""Engines on the same prompts: all of them running, one computing at a time, in interleaved rounds A B C, B C A, ..."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from suite.engines.base import Engine, EngineError, Output, Prompt
from suite.harness.noise import Disturbance, snapshot
from suite.harness.progress import Listener, Progress

Prompts = Callable[[int, int], Sequence[Prompt]]
"""(batch size, round) -> that many prompts, others in every round; round 0 is the untimed one."""


@dataclass
class Cell:
    """What one engine did with one batch size; a fault ends it, and what was measured before it stays here.

    `outputs[r]` are those of timed round r. `metrics` are the engine's own, from an untimed round before.
    """

    engine: str
    batch: int
    outputs: dict[int, list[Output]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    token_source: str = "engine"
    disturbance: Disturbance = field(default_factory=Disturbance)
    fault: EngineError | None = None

    def seconds(self) -> dict[int, float]:
        """From handing the prompts over to the last token of the batch, by round."""
        return {number: _seconds(outputs) for number, outputs in self.outputs.items()}


@dataclass(frozen=True)
class Difference:
    """Where two engines first differ: token `position` of the answer to prompt `request` of a round."""

    batch: int
    round: int
    request: int
    position: int
    tokens: tuple[int | None, int | None]


class Comparison:
    """Starts every engine, runs all batch sizes on those that live, and ends them all."""

    def __init__(
        self, engines: Sequence[Engine], prompts: Prompts, batches: Sequence[int], rounds: int, listener: Listener
    ) -> None:
        self._engines, self._prompts, self._batches, self._rounds = engines, prompts, batches, rounds
        self._listener = listener
        self._faults: dict[str, EngineError] = {}
        self._measuring_s = 0.0
        self._done = 0

    def run(self) -> list[Cell]:
        """One cell per batch size and engine, in that order."""
        cells = [Cell(engine.name, batch) for batch in self._batches for engine in self._engines]
        with ExitStack() as stack:
            for engine in self._engines:
                self._tell(f"starting {engine.name}")
                with self._noted(engine):
                    stack.enter_context(engine)
            rows = iter(cells)
            for batch in self._batches:
                self._run_batch(batch, {engine.name: next(rows) for engine in self._engines})
        return cells

    def _run_batch(self, batch: int, cells: Mapping[str, Cell]) -> None:
        for number in range(self._rounds + 1):
            prompts = self._prompts(batch, number)
            for engine in _rotated(self._engines, number):
                self._tell(f"{engine.name}, batch {batch}, " + (f"round {number}" if number else "warming up"))
                start = time.monotonic()
                if engine.name not in self._faults:  # one that has failed is asked nothing more
                    with self._noted(engine):
                        (self._timed if number else self._watched)(engine, cells[engine.name], prompts, number)
                self._measuring_s += time.monotonic() - start
                self._done += batch
        for name, cell in cells.items():
            cell.fault = self._faults.get(name)

    @contextmanager
    def _noted(self, engine: Engine) -> Iterator[None]:
        try:
            yield
        except EngineError as fault:
            self._faults[engine.name] = fault

    def _watched(self, engine: Engine, cell: Cell, prompts: Sequence[Prompt], _: int) -> None:
        cell.metrics = engine.watched(prompts)

    def _timed(self, engine: Engine, cell: Cell, prompts: Sequence[Prompt], number: int) -> None:
        with self._others_stopped(engine):
            before = snapshot(engine.cpu_seconds())
            outputs = engine.generate(prompts)
            cell.disturbance.add(before, snapshot(engine.cpu_seconds()))
        cell.outputs[number] = outputs
        cell.peak_memory_bytes, cell.token_source = engine.peak_memory_bytes(), engine.token_source

    @contextmanager
    def _others_stopped(self, engine: Engine) -> Iterator[None]:
        """No other engine runs: one that waits may spin, as vLLM's server does for seconds after an answer."""
        others = [pid for other in self._engines if other is not engine for pid in other.pids()]
        try:
            _signal(others, signal.SIGSTOP)
            yield
        finally:
            _signal(others, signal.SIGCONT)

    def _tell(self, activity: str) -> None:
        total = sum(self._batches) * len(self._engines) * (self._rounds + 1)
        eta_s = self._measuring_s * (total - self._done) / self._done if self._done else None
        self._listener(Progress(activity, self._done, total, self._done, total, eta_s))


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _rotated(engines: Sequence[Engine], turn: int) -> list[Engine]:
    start = turn % len(engines)
    return [*engines[start:], *engines[:start]]


def _seconds(outputs: Sequence[Output]) -> float:
    return (max(output.token_ns[-1] for output in outputs) - outputs[0].start_ns) / 1e9


def differences(expected: Cell, found: Cell) -> Iterator[Difference]:
    """The first difference of every request in the rounds that both have."""
    for number in sorted(expected.outputs.keys() & found.outputs.keys()):
        pairs = zip(expected.outputs[number], found.outputs[number], strict=True)
        for request, (ours, theirs) in enumerate(pairs):
            position = first_difference(ours.token_ids, theirs.token_ids)
            if position is not None:
                tokens = (_at(ours.token_ids, position), _at(theirs.token_ids, position))
                yield Difference(expected.batch, number, request, position, tokens)


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Where two answers first differ; the end of the shorter one is a difference too."""
    unequal = (i for i, (ours, theirs) in enumerate(zip(expected, found, strict=False)) if ours != theirs)
    shorter = min(len(expected), len(found))
    return next(unequal, None if len(expected) == len(found) else shorter)


def _at(tokens: Sequence[int], position: int) -> int | None:
    return tokens[position] if position < len(tokens) else None
