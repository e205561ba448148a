"""The scheduler and the detokeniser of `suite.engines.step_loop` as processes, and the runner's way to them."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from suite.engines.base import EngineError
from suite.engines.child import Child
from suite.engines.step_front import JOB, Change, receive, send
from suite.errors import UnitError
from suite.models.language_model import LanguageModel
from suite.models.tokenizer import HFTokenizer
from workloads.schema import Request

WAIT_S = 120.0  # the longest time without a message from a process that owes one


class Front:
    """The runner's ends of the pipes to the two processes."""

    def __init__(self, children: Sequence[Child], detokeniser: Connection, scheduler: Connection) -> None:
        self._children, self._detokeniser, self._scheduler = children, detokeniser, scheduler
        self._receive(detokeniser)  # it is ready

    def changes(self, *, wait: bool) -> list[Change] | None:
        """All that have arrived; None when all requests have ended. Only a runner without work waits."""
        found: list[Change] = []
        while wait or select.select([self._scheduler], [], [], 0)[0]:
            message = self._receive(self._scheduler)
            if message is None:
                return None
            found += (Change(*change) for change in message)
            wait = False
        return found

    def detokenise(self, step: Sequence[tuple[int, int]] | None) -> None:
        """Hands over (request, token) of a step, None after the last, and waits for nothing."""
        try:
            send(self._detokeniser, step)
        except OSError as error:
            raise self._fault() from error

    def report(self) -> dict[str, Any]:
        """What the detokeniser knows in the end."""
        self.detokenise(None)
        report: dict[str, Any] = self._receive(self._detokeniser)
        return report

    def _receive(self, connection: Connection) -> Any:
        try:
            if connection.poll(WAIT_S):
                return receive(connection)
        except (EOFError, OSError) as error:
            raise self._fault() from error
        raise self._children[0].fault("timed out", f"no message for {WAIT_S:.0f} s.")

    def _fault(self) -> EngineError:
        dead = next((child for child in self._children if not child.alive), self._children[0])
        return dead.fault("died", "its process ended.")


@contextmanager
def front_processes(model: LanguageModel, requests: Sequence[Request], rows: int) -> Iterator[Front]:
    """Starts both processes; they are gone afterwards, whatever happened."""
    with TemporaryDirectory(prefix="suite-step-loop-") as folder, ExitStack() as stack:
        _write_job(Path(folder), model, requests, rows)
        ours, detokeniser = Pipe()
        ended, told = Pipe(duplex=False)
        changes, planner = Pipe(duplex=False)
        for end in (ours, detokeniser, ended, told, changes, planner):
            stack.callback(end.close)
        children = []
        for role, ends in {"detokeniser": (detokeniser, told), "scheduler": (ended, planner)}.items():
            descriptors = [end.fileno() for end in ends]
            command = [sys.executable, "-m", "suite.engines.step_front", role, folder, *map(str, descriptors)]
            children.append(Child(role, command, {}, descriptors))
            stack.callback(children[-1].stop)
            for end in ends:
                end.close()  # so that a process that has died is noticed
        yield Front(children, ours, changes)


def _write_job(folder: Path, model: LanguageModel, requests: Sequence[Request], rows: int) -> None:
    """What the two processes read when they start."""
    if not isinstance(model.tokenizer, HFTokenizer):
        raise UnitError(f"the tokenizer of {model.name} cannot be written to a file for another process.")
    model.tokenizer.save(folder)
    texts = [request.model_dump(mode="json") for request in requests]
    job = {"requests": texts, "rows": rows, "eos_ids": list(model.config.eos_ids)}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
