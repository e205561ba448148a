"""A library as an engine in a child process: `python -m suite.engines.worker FD BACKEND SETTINGS`.

The parent writes one JSON line per call into the socket FD and reads one per event back. A stream ends early when the
parent writes the call "cancel". Imports nothing but the
standard library and the one backend, so it also runs in an environment that has none of the suite's dependencies.
`SETTINGS` is JSON: model, directory, dtype, threads, window. Stamps are `time.perf_counter_ns()`, which on Linux is one
clock for all processes.
"""

from __future__ import annotations

import importlib
import json
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Protocol, cast

Event = tuple[int, list[int], int]
"""(prompt number, token ids, time stamp)."""


class Backend(Protocol):
    """What a module of `suite.engines.backends` makes from the settings with its `make`."""

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[Event]:
        """Tokens as they are made; closed early, it gives the prompts up."""
        ...

    def metrics(self) -> dict[str, float]: ...


def serve(connection: socket.socket, backend: Backend) -> None:
    """Answers until the parent closes the socket."""
    stream = connection.makefile("rw", encoding="utf-8")

    def send(document: dict[str, Any]) -> None:
        stream.write(json.dumps(document) + "\n")
        stream.flush()

    send({"ready": True})
    for line in stream:
        call = json.loads(line)
        if call["call"] == "metrics":
            send({"metrics": backend.metrics()})
        elif call["call"] == "watch":
            before = backend.metrics()
            send({"before": before, "largest": _largest(backend, call["prompts"], before)})
        elif call["call"] == "stream":
            with closing(cast(Any, backend.stream(call["prompts"]))) as events:
                for index, ids, ns in events:
                    send({"chunk": [index, ids, ns]})
                    if select.select([connection], [], [], 0)[0]:  # to cancel it: nothing else is asked meanwhile
                        break
            send({"end": True})


def _largest(backend: Backend, prompts: list[dict[str, Any]], largest: dict[str, float]) -> dict[str, float]:
    """Each metric's largest value over a look before the run and one after every step."""
    last = 0
    for _, _, ns in backend.stream(prompts):
        if ns != last:
            seen, last = backend.metrics(), ns
            largest = {name: max(value, largest.get(name, value)) for name, value in seen.items()}
    return largest


if __name__ == "__main__":
    descriptor, module, settings = sys.argv[1:]
    made: Backend = importlib.import_module(f"suite.engines.backends.{module}").make(json.loads(settings))
    serve(socket.socket(fileno=int(descriptor)), made)
