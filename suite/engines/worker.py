"""A library as an engine in a child process: `python -m suite.engines.worker FD BACKEND SETTINGS`.

The parent writes one JSON line per call into the socket FD and reads one per event back. The call "cancel" ends a
stream early, or the one prompt of it with this index. Imports nothing but the standard library and the one backend, so
it also runs in an environment that has none of the suite's dependencies.
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
from contextlib import closing
from typing import Any, Protocol, TextIO, cast

Event = tuple[int, list[int], int, list[float]]
"""(prompt number, token ids, time stamp, log-probabilities where they are wanted)."""
Calls = queue.SimpleQueue[dict[str, Any] | None]
"""What the parent asks, in order; None when it has closed the socket."""


class Backend(Protocol):
    """What a module of `suite.engines.backends` makes from the settings with its `make`."""

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[Event]:
        """Tokens as they are made; closed early, it gives the prompts up."""
        ...

    def cancel(self, number: int) -> None:
        """Gives one prompt of the stream up."""

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
            with closing(cast(Any, backend.stream(call["prompts"]))) as events:
                for event in events:
                    send({"chunk": event})
                    if _cancelled(backend, calls):
                        break
            send({"end": True})


def _listen(incoming: TextIO, calls: Calls) -> None:
    """Calls come in while a stream is going out."""
    for line in incoming:
        calls.put(json.loads(line))
    calls.put(None)


def _cancelled(backend: Backend, calls: Calls) -> bool:
    """Whether the whole stream is to end. During it only cancels are asked for; those that come too late do nothing."""
    while not calls.empty():
        call = calls.get()
        if call is None:
            calls.put(None)
            return True
        if call["index"] is None:
            return True
        backend.cancel(call["index"])
    return False


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
