"""vLLM's `LLM` as an engine, in vLLM's own environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from suite.engines import vllm_environment
from suite.engines.worker_engine import WorkerEngine
from suite.harness.threads import available_cpus

KV_CACHE_GIB = 2


def environment(threads: int) -> dict[str, str]:
    """vLLM's own variables. By itself its CPU build keeps a core for its scheduler and computes on the others."""
    cores = sorted(available_cpus())[:threads]
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class VllmEngine(WorkerEngine):
    """`LLM` in one process, stepped by the worker."""

    name: ClassVar[str] = "vllm"
    backend: ClassVar[str] = "vllm"

    def python(self) -> Path:
        return vllm_environment.python()

    def environment(self) -> Mapping[str, str]:
        return {**environment(self.threads), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
