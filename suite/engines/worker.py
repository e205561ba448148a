"""A library as an engine in a child process: `python -m suite.engines.worker FD BACKEND SETTINGS`.

The parent writes one JSON line per call into the socket FD and reads one per event back. Imports nothing but the
standard library and the one backend, so it also runs in an environment that has none of the suite's dependencies.
`SETTINGS` is JSON: model, directory, dtype, threads, window. Stamps are `time.perf_counter_ns()`, which on Linux is one
clock for all processes.
"""

from __future__ import annotations

import importlib
import json
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

Event = tuple[int, list[int], int, list[float]]
"""(prompt number, token ids, time stamp, log-probabilities where they are wanted)."""
Calls = queue.SimpleQueue[dict[str, Any] | None]
"""What the parent asks, in order; None when it has closed the socket."""


class Backend(Protocol):
    """What a module of `suite.engines.backends` makes from the settings with its `make`."""

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[Event]: ...

    def cancel(self, number: int) -> None: ...

    def metrics(self) -> dict[str, float]: ...


def serve(connection: socket.socket, backend: Backend) -> None:
    """Answers until the parent closes the socket."""
    incoming, outgoing = (connection.makefile(mode, encoding="utf-8") for mode in ("r", "w"))

    def send(document: dict[str, Any]) -> None:
        outgoing.write(json.dumps(document) + "\n")
        outgoing.flush()

    calls: Calls = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, calls), daemon=True).start()
    send({"ready": True})
    while (call := calls.get()) is not None:
        if call["call"] == "metrics":
            send({"metrics": backend.metrics()})
        elif call["call"] == "watch":
            before = backend.metrics()
            send({"before": before, "largest": _largest(backend, call["prompts"], before)})
        elif call["call"] == "stream":
            for event in backend.stream(call["prompts"]):
                send({"chunk": event})
                _cancel(backend, calls)
            send({"end": True})


def _listen(incoming: TextIO, calls: Calls) -> None:
    """Calls come in while a stream is going out."""
    for line in incoming:
        calls.put(json.loads(line))
    calls.put(None)


def _cancel(backend: Backend, calls: Calls) -> None:
    """During a stream nothing else is asked; what comes too late is passed over."""
    while not calls.empty():
        call = calls.get()
        if call is None:
            calls.put(None)
            return
        backend.cancel(call["index"])


def _largest(backend: Backend, prompts: list[dict[str, Any]], largest: dict[str, float]) -> dict[str, float]:
    """Each metric's largest value over a look before the run and one after every step."""
    last = 0
    for _, _, ns, _ in backend.stream(prompts):
        if ns != last:
            seen, last = backend.metrics(), ns
            largest = {name: max(value, largest.get(name, value)) for name, value in seen.items()}
    return largest


if __name__ == "__main__":
    descriptor, module, settings = sys.argv[1:]
    made: Backend = importlib.import_module(f"suite.engines.backends.{module}").make(json.loads(settings))
    serve(socket.socket(fileno=int(descriptor)), made)
