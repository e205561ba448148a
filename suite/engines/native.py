"""The suite's own decoder: in this process, where methods can be attached, or as an engine beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from suite.engines.worker_engine import WorkerEngine
from suite.spec import ModelSpec

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel


class NativeEngine(WorkerEngine):
    """The native decoder in a process of its own, measured as the other engines are."""

    name: ClassVar[str] = "native"
    backend: ClassVar[str] = "native"


def load(model: ModelSpec, threads: int) -> LanguageModel:
    """The model in this process; torch's and the kernels' common OpenMP pool gets `threads` threads."""
    import torch

    from suite.models.loaders import load_model

    torch.set_num_threads(threads)
    return load_model(model.name, model.dtype)
