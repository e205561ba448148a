"""vLLM's `LLM` as an engine, in vLLM's own environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from suite.engines import vllm_environment
from suite.engines.base import EngineModel, Limits
from suite.engines.vllm_arguments import VllmArguments
from suite.engines.worker_engine import WorkerEngine
from suite.harness.threads import available_cpus

KV_CACHE_GIB = 2


def environment(threads: int) -> dict[str, str]:
    """vLLM's own variables. By itself its CPU build keeps a core for its scheduler and computes on the others.

    Told of one core to bind to, it still computes with a thread per core of the machine: their number is said apart.
    Without the ahead-of-time path the compiler's own cache serves later starts, also with other arguments: 22 s instead
    of 70, at the same speed.
    """
    cores = sorted(available_cpus())[:threads]
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_AOT_COMPILE": "0",
        "HF_HUB_OFFLINE": "1",
    }


class VllmEngine(WorkerEngine):
    """`LLM` in one process, stepped by the worker.

    Without `arguments` it computes on `threads` cores, and has no prefix cache unless asked: repeats stay fresh.
    """

    name: ClassVar[str] = "vllm"
    backend: ClassVar[str] = "vllm"

    def __init__(
        self,
        model: EngineModel,
        threads: int,
        limits: Limits | None = None,
        arguments: VllmArguments | None = None,
        prefix_cache: bool = False,
    ) -> None:
        super().__init__(model, threads, limits)
        self._arguments, self._prefix_cache = arguments, prefix_cache

    def settings(self) -> dict[str, Any]:
        own = self._arguments.keywords() if self._arguments else {"enable_prefix_caching": self._prefix_cache}
        return {**super().settings(), "arguments": own}

    def python(self) -> Path:
        return vllm_environment.python()

    def environment(self) -> Mapping[str, str]:
        own = self._arguments.environment(self.threads) if self._arguments else {}
        return {**environment(self.threads), **own, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
