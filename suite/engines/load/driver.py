"""Runs a plan on worker processes and waits for them, whatever happens: the records are on disk as they come."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from suite.engines.load import worker
from suite.engines.load.clock import Clock
from suite.engines.load.plan import Plan
from suite.engines.load.records import Record, measured, read
from suite.engines.load.target import Target
from suite.errors import UnitError

LEAD_S = 0.1
"""Between the word to all workers and second 0."""
STOP_S = 5.0
"""How long a worker may take to record what it had in flight."""


@dataclass(frozen=True)
class Outcome:
    """What came back. `interrupted`: the user stopped the run."""

    plan: Plan
    records: tuple[Record, ...]
    interrupted: bool

    @property
    def planned(self) -> int:
        """How many requests were to be measured; after an interruption, those that were due by then."""
        wanted = [item for item in self.plan.items if item.phase == "measure"]
        if not self.interrupted:
            return len(wanted)
        end = max((record.t_done for record in self.records), default=0.0)
        due = sum(item.due is not None and item.due <= end for item in wanted)
        return max(due, len(measured(self.records)))


def default_workers() -> int:
    """Half of the cores: on two, one sends and the other is the server's."""
    return max(1, len(os.sched_getaffinity(0)) // 2)


def run(
    plan: Plan,
    target: Target,
    records: Path,
    *,
    timeout_s: float,
    workers: int,
    listener: Callable[[int], None] | None = None,
) -> Outcome:
    """Sends the plan; `listener` hears how many requests have ended. Ctrl-C ends the run early, with its records."""
    records.parent.mkdir(parents=True, exist_ok=True)
    records.write_bytes(b"")
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[BaseProcess] = []
    interrupted = False
    try:
        for share in plan.shares(min(workers, plan.concurrency or workers)):
            here, there = context.Pipe()
            process = context.Process(target=worker.main, args=(there,), daemon=True)
            with _interrupts_deferred():
                process.start()
                pipes.append(here)
                processes.append(process)
            there.close()
            here.send(worker.Job(share, target, timeout_s, records))
        _start(pipes)
        _listen(pipes, listener)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        _stop(pipes, processes)
    return Outcome(plan, tuple(read(records)), interrupted)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """A process started meanwhile never hears Ctrl-C: it is the driver's, which says when to stop; here it comes late.

    The signal is blocked, which the new process inherits, and noted, as another thread of this one may get it.
    """
    noted: list[int] = []
    resource_tracker.ensure_running()  # `multiprocessing` unblocks the signal when it starts it
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


def _start(pipes: Sequence[Connection]) -> None:
    try:
        for pipe in pipes:
            pipe.recv()
    except EOFError as error:
        raise UnitError("a load worker ended before the run began; its error is above.") from error
    clock = Clock.starting_in(LEAD_S)
    for pipe in pipes:
        pipe.send(clock)


def _listen(pipes: Sequence[Connection], listener: Callable[[int], None] | None) -> None:
    """Until every worker has hung up."""
    done: dict[Connection, int] = {}
    open_pipes = list(pipes)
    while open_pipes:
        for pipe in wait(open_pipes):
            assert isinstance(pipe, Connection)
            try:
                done[pipe] = pipe.recv()
            except (EOFError, ConnectionResetError):
                open_pipes.remove(pipe)
        if listener is not None:
            listener(sum(done.values()))


def _stop(pipes: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join(STOP_S)
        process.kill()
        process.join()
