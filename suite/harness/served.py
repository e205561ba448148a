"""Methods that run through an engine: the baseline, and those that need no more of a model than the tokens it draws."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar, cast

from suite.engines.base import Engine
from suite.engines.plain import PlainGenerator
from suite.engines.searching import EngineSampler
from suite.harness.contender import Contender
from suite.harness.options import method_config
from suite.harness.plan import BASELINE
from suite.methods.base import Generator, Method, MethodConfig
from suite.registry import METHODS
from suite.spec import MethodSpec

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel, TextModel


class ServedContender(Contender):
    """A method, and the engine that runs the model."""

    inside: ClassVar[bool] = False

    def __init__(self, method: Method, config: MethodConfig, model: TextModel, engine: Engine) -> None:
        super().__init__(method, config, cast("LanguageModel", model))  # weights are not asked for
        self._engine = engine

    @classmethod
    def of(cls, spec: MethodSpec, model: TextModel, engine: Engine) -> ServedContender:
        """The registered method with its validated options, not yet prepared."""
        return cls(METHODS.load(spec.name)(), method_config(spec), model, engine)

    def refusal(self) -> str | None:
        """What acts inside the model cannot do so here."""
        if self._generator() is None:
            return f"it acts inside the model, which engine {self._engine.name} does not show: use --engine native"
        return super().refusal()

    def other(self, config: MethodConfig) -> ServedContender:
        """This one, prepared, with other options."""
        return ServedContender(self.method, config, self.model, self._engine)

    def attached(self) -> AbstractContextManager[Generator]:
        """Nothing is installed."""
        return nullcontext(cast(Generator, self._generator()))

    def _generator(self) -> Generator | None:
        if self.method.card.slug == BASELINE:
            return PlainGenerator(self._engine, self.model)
        return self.method.through(self.model, self.config, lambda _: EngineSampler(self._engine, self.model))
