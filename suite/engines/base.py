"""What every engine is: a name, and a way to load a model that the methods can be attached to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from suite.spec import ModelSpec

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel


class Engine(ABC):
    """Executes models. An engine is chosen once per run and loads one model."""

    name: ClassVar[str]

    @abstractmethod
    def load(self, model: ModelSpec, threads: int) -> LanguageModel:
        """The model, ready to run on `threads` threads; `InputError` says in one sentence why it cannot be loaded."""
