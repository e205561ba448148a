"""Scheduler and detokeniser of `suite.engines.step_loop`: called by the runner, or as processes beside it.

`python -m suite.engines.step_front ROLE FOLDER READ WRITE`: FOLDER holds the tokenizer and job.json, the last two are
descriptors of pipes. Messages are JSON. No torch is imported here, so a process starts quickly.

    runner -- tokens of a step --> detokeniser -- requests that ended --> scheduler -- what rows do next --> runner
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from suite.harness import threads
from suite.models.stops import cut_at_stop
from suite.models.tokenizer import HFTokenizer
from workloads.schema import Request

JOB = "job.json"
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of a character decode to before the last one is there


class Tokens(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def prompt(self, text: str, chat: bool) -> list[int]: ...


class Change(NamedTuple):
    """What a row does next: `request` (its place in the list) from its prompt on, or nothing (-1)."""

    row: int
    request: int = -1
    ids: Sequence[int] = ()
    limit: int = 0


class Scheduler:
    """Requests in the order they came; a row that has ended gets the next one, and its prompt is tokenised then."""

    def __init__(self, tokenizer: Tokens, requests: Sequence[Request], rows: int) -> None:
        self._tokenizer = tokenizer
        self._waiting = iter(enumerate(requests))
        self._row_of: dict[int, int] = {}
        self.first = [self._next(row) for row in range(rows)]

    @property
    def done(self) -> bool:
        """All requests have ended."""
        return not self._row_of

    def plan(self, ended: Iterable[int]) -> list[Change]:
        """The rows of these requests get other work; all other rows go on."""
        return [self._next(self._row_of.pop(request)) for request in ended]

    def _next(self, row: int) -> Change:
        number, request = next(self._waiting, (-1, None))
        if request is None:
            return Change(row)
        self._row_of[number] = row
        return Change(row, number, self._tokenizer.prompt(request.prompt, request.chat), request.max_new_tokens)


class Stream:
    """Tokens and text of one request, until it ends. The text grows by what the newest tokens add to it.

    A token is decoded together with those since the last but one addition, because its text depends on its neighbours.
    """

    def __init__(self, tokenizer: Tokens, request: Request, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._request, self._eos_ids = tokenizer, request, eos_ids
        self._context = self._read = 0
        self.tokens: list[int] = []
        self.text = ""
        self.stop_reason = ""

    def add(self, token: int) -> None:
        """The next token; `stop_reason` says afterwards whether it is the last."""
        self.tokens.append(token)
        known = self._tokenizer.decode(self.tokens[self._context : self._read])
        text = self._tokenizer.decode(self.tokens[self._context :])
        if not text.endswith(_UNFINISHED):
            self.text += text[len(known) :]
            self._context, self._read = self._read, len(self.tokens)
        self._end(token)

    def _end(self, token: int) -> None:
        cut = cut_at_stop(self.text, self._request.stop)
        if token in self._eos_ids:
            self.stop_reason = "eos"
        elif cut != self.text:
            self.stop_reason = "stop"
        elif len(self.tokens) == self._request.max_new_tokens:
            self.stop_reason = "length"
        self.text = cut


class Detokeniser:
    """The streams of all requests. `discarded` counts tokens that came for a request that had ended.

    `known_ns[n]` is when the text of step n was known (`time.perf_counter_ns()`).
    """

    def __init__(self, tokenizer: Tokens, requests: Sequence[Request], eos_ids: Sequence[int]) -> None:
        self.streams = [Stream(tokenizer, request, eos_ids) for request in requests]
        self.discarded = 0
        self.known_ns: list[int] = []

    def take(self, step: Iterable[Sequence[int]]) -> list[int]:
        """(request, token) of every row of a step; returns the requests that end with it."""
        ended = [request for request, token in step if self._ends(request, token)]
        self.known_ns.append(time.perf_counter_ns())
        return ended

    def _ends(self, request: int, token: int) -> bool:
        stream = self.streams[request]
        if stream.stop_reason:
            self.discarded += 1
            return False
        stream.add(token)
        return bool(stream.stop_reason)

    def report(self) -> dict[str, Any]:
        """All that is known in the end."""
        outputs = [(stream.tokens, stream.text, stream.stop_reason) for stream in self.streams]
        return {"outputs": outputs, "discarded": self.discarded, "known_ns": self.known_ns}


def send(connection: Connection, message: object) -> None:
    """As JSON: nothing that a pipe brings is unpickled."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Any:
    """Waits for a message; EOFError where the other side is gone."""
    return json.loads(connection.recv_bytes())


def messages(connection: Connection) -> Iterator[Any]:
    """Until `None` comes."""
    while (message := receive(connection)) is not None:
        yield message


def detokenise(runner: Connection, scheduler: Connection, detokeniser: Detokeniser) -> None:
    """Says that it is ready, takes the steps, tells the scheduler who has ended, and reports to the runner at last."""
    send(runner, "ready")
    for step in messages(runner):
        if ended := detokeniser.take(step):
            send(scheduler, ended)
    send(runner, detokeniser.report())


def schedule(detokeniser: Connection, runner: Connection, scheduler: Scheduler) -> None:
    """Sends the changes of rows, and `None` when all requests have ended."""
    send(runner, scheduler.first)
    while not scheduler.done:
        send(runner, scheduler.plan(receive(detokeniser)))
    send(runner, None)


def main(role: str, folder: Path, read: int, write: int) -> None:
    """One of the two processes."""
    _leave_the_runner_alone()
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    tokenizer = HFTokenizer.from_directory(folder)
    requests = [Request.model_validate(request) for request in job["requests"]]
    if role == "scheduler":
        schedule(Connection(read), Connection(write), Scheduler(tokenizer, requests, job["rows"]))
    else:
        detokenise(Connection(read), Connection(write), Detokeniser(tokenizer, requests, job["eos_ids"]))


def _leave_the_runner_alone() -> None:
    """Moves to the cores that the runner is not bound to, if there are any: a pinned parent hands its core down."""
    if hasattr(os, "sched_setaffinity"):
        everything = threads.available_cpus()
        os.sched_setaffinity(0, everything - os.sched_getaffinity(0) or everything)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
