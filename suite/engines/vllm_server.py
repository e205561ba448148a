"""vLLM's own OpenAI-compatible server as an engine: a child process in vLLM's environment."""

from __future__ import annotations

import socket
import time
from typing import ClassVar

from suite.engines import vllm, vllm_environment
from suite.engines.base import EngineError, EngineModel, FaultKind, Limits
from suite.engines.child import Child
from suite.engines.openai_server import OpenAIEngine
from suite.harness.threads import available_cpus

_POLL_S = 0.25


class VllmServerEngine(OpenAIEngine):
    """`python -m vllm.entrypoints.openai.api_server` on a free port of 127.0.0.1; no prefix cache unless asked.

    One core of the machine is left to its two other processes, as vLLM does by itself: where all compute, these take
    turns with threads that wait for each other (SmolLM2 on two cores: 116 ms for a token instead of 33).
    """

    name: ClassVar[str] = "vllm-server"
    alive_path: ClassVar[str] = "/health"
    _child: Child | None = None

    def __init__(
        self, model: EngineModel, threads: int, limits: Limits | None = None, prefix_cache: bool = False
    ) -> None:
        super().__init__(model, threads, limits)
        self._caching = "--enable-prefix-caching" if prefix_cache else "--no-enable-prefix-caching"

    def start(self) -> None:
        port = _free_port()
        self.base_url, self.served = f"http://127.0.0.1:{port}", self.model.name
        computing = min(self.threads, max(1, len(available_cpus()) - 1))
        self._child = child = Child(self.name, self._command(port), vllm.environment(computing))
        deadline = time.monotonic() + self.limits.start_s
        while not self.ready():
            if not child.alive:
                raise self._fault("did not start", "its process ended.")
            if time.monotonic() > deadline:
                raise self._fault("timed out", f"it was ended after {self.limits.start_s:.0f} s without being ready.")
            time.sleep(_POLL_S)

    def _command(self, port: int) -> list[str]:
        return [
            str(vllm_environment.python()), "-m", "vllm.entrypoints.openai.api_server",
            "--host", "127.0.0.1", "--port", str(port), "--model", self.model.directory,
            "--served-model-name", self.model.name, "--dtype", self.model.torch_dtype,
            "--max-model-len", str(self.model.window), self._caching, "--generation-config", "vllm",
            "--disable-uvicorn-access-log",
        ]  # fmt: skip

    def ready(self) -> bool:
        return self._child is not None and self._child.alive and super().ready()

    def pids(self) -> list[int]:
        return [process.pid for process in self._child.processes()] if self._child is not None else []

    def peak_memory_bytes(self) -> int | None:
        return self._child.peak_memory_bytes() if self._child is not None else None

    def cpu_seconds(self) -> float:
        return self._child.cpu_seconds() if self._child is not None else 0.0

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
        self._child = None

    def _fault(self, kind: FaultKind, detail: str) -> EngineError:
        """A server that failed is ended: what it would say next means nothing."""
        if self._child is None:
            return super()._fault("died", "it is not running.")
        self._child.kill()
        fault = self._child.fault(kind, detail)
        self.stop()
        return fault


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
