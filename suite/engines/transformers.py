"""transformers as an engine.

Its `text-generation` pipeline is no second way: it takes text and tokenises it itself, so prompts given as ids could
not be handed on unchanged, and it then calls the same `generate` with the same left-padded batch.
"""

from __future__ import annotations

from typing import ClassVar

from suite.engines.worker_engine import WorkerEngine


class TransformersEngine(WorkerEngine):
    """transformers' `generate`, batched, with its KV cache."""

    name: ClassVar[str] = "transformers"
    backend: ClassVar[str] = "transformers"
    draws: ClassVar[bool] = False
