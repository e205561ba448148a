"""The suite's own decoder, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from suite.engines.base import Engine
from suite.spec import ModelSpec

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel


class NativeEngine(Engine):
    """Loads a model into the native decoder; torch's and the kernels' common OpenMP pool gets `threads` threads."""

    name: ClassVar[str] = "native"

    def load(self, model: ModelSpec, threads: int) -> LanguageModel:
        import torch

        from suite.models.loaders import load_model

        torch.set_num_threads(threads)
        return load_model(model.name, model.dtype)
