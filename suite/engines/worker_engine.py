"""Engines that are a library in a worker process: native, transformers and vLLM's `LLM`."""

from __future__ import annotations

import dataclasses
import json
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

from suite.engines.base import Chunk, Engine, EngineError, Prompt, changes
from suite.engines.child import Child


class WorkerEngine(Engine):
    """Talks to `suite.engines.worker` over a socket pair. A worker that hangs is ended at the limit."""

    backend: ClassVar[str]
    _child: Child | None = None
    _socket: socket.socket | None = None
    _incoming: TextIO
    _outgoing: TextIO

    def python(self) -> Path:
        """The interpreter the worker runs in."""
        return Path(sys.executable)

    def environment(self) -> Mapping[str, str]:
        """Environment variables for the worker; one OpenMP pool of the asked size."""
        return {"OMP_NUM_THREADS": str(self.threads)}

    def settings(self) -> dict[str, Any]:
        """What the backend's `make` gets, as JSON."""
        return {
            "model": self.model.name, "directory": self.model.directory, "dtype": self.model.dtype,
            "torch_dtype": self.model.torch_dtype, "window": self.model.window, "threads": self.threads,
        }  # fmt: skip

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        module = ["-m", "suite.engines.worker", str(theirs.fileno()), self.backend, json.dumps(self.settings())]
        with theirs:
            command = [str(self.python()), *module]
            self._child = Child(self.name, command, self.environment(), (theirs.fileno(),))
        self._socket = ours
        self._incoming, self._outgoing = (ours.makefile(mode, encoding="utf-8") for mode in ("r", "w"))
        self._read("did not start", self.limits.start_s, time.monotonic() + self.limits.start_s)

    def ready(self) -> bool:
        return self._child is not None and self._child.alive

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        self._write({"call": "stream", "prompts": [dataclasses.asdict(prompt) for prompt in prompts]})
        deadline = time.monotonic() + self.limits.generate_s
        try:
            while "chunk" in (event := self._read("died", self.limits.generate_s, deadline)):
                index, ids, ns, logprobs = event["chunk"]
                yield Chunk(index, tuple(ids), ns, tuple(logprobs))
        except GeneratorExit:
            self._write({"call": "cancel", "index": None})
            while "chunk" in self._read("died", self.limits.generate_s, deadline):
                pass  # it was on its way
            raise

    def cancel(self, index: int) -> None:
        self._write({"call": "cancel", "index": index})

    def metrics(self) -> Mapping[str, float]:
        self._write({"call": "metrics"})
        found: dict[str, float] = self._read("died", 30.0, time.monotonic() + 30.0)["metrics"]
        return found

    def watched(self, prompts: Sequence[Prompt]) -> Mapping[str, float]:
        self._write({"call": "watch", "prompts": [dataclasses.asdict(prompt) for prompt in prompts]})
        seen = self._read("died", self.limits.generate_s, time.monotonic() + self.limits.generate_s)
        return changes(seen["before"], seen["largest"])

    def pids(self) -> list[int]:
        return [process.pid for process in self._child.processes()] if self._child is not None else []

    def cpu_seconds(self) -> float:
        return self._child.cpu_seconds() if self._child is not None else 0.0

    def peak_memory_bytes(self) -> int | None:
        return self._child.peak_memory_bytes() if self._child is not None else None

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        if self._socket is not None:
            self._socket.close()
        self._child = self._socket = None

    def _running(self) -> tuple[Child, socket.socket]:
        if self._child is None or self._socket is None:
            raise EngineError("died", self.name, "it is not running.")
        return self._child, self._socket

    def _write(self, document: dict[str, Any]) -> None:
        child, _ = self._running()
        try:
            self._outgoing.write(json.dumps(document) + "\n")
            self._outgoing.flush()
        except OSError as error:
            raise self._ended(child, "died") from error

    def _read(self, otherwise: Any, limit_s: float, deadline: float) -> dict[str, Any]:
        """The next event; a silent worker is killed at the deadline, one that has ended is a fault `otherwise`."""
        child, connection = self._running()
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            line = self._incoming.readline()
        except TimeoutError as error:
            child.kill()
            fault = child.fault("timed out", f"it was ended after {limit_s:.0f} s without an answer.")
            self.stop()
            raise fault from error
        except OSError as error:
            raise self._ended(child, otherwise) from error
        if not line:
            raise self._ended(child, otherwise)
        event: dict[str, Any] = json.loads(line)
        return event

    def _ended(self, child: Child, kind: Any) -> EngineError:
        child.kill()
        fault = child.fault(kind, "its process ended.")
        self.stop()
        return fault
