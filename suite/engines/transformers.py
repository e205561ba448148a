"""transformers as an engine."""

from __future__ import annotations

from typing import ClassVar

from suite.engines.worker_engine import WorkerEngine


class TransformersEngine(WorkerEngine):
    """transformers' `generate`, batched, with its KV cache."""

    name: ClassVar[str] = "transformers"
    backend: ClassVar[str] = "transformers"
