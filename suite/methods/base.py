"""What every method is: a card of facts, a validated config, and a context manager that yields a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from suite.cost import DENSE, MethodCost, Situation
from suite.place import Place
from workloads.schema import Completion, Request

if TYPE_CHECKING:
    from suite.models.generation import Meter
    from suite.models.language_model import LanguageModel


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that can be measured: `paper` is its figure with its setting.

    `id` is stable. `target` is what a measurement in `unit` must reach, `None` where the paper gives only a direction.
    """

    id: str
    text: str
    paper: str
    unit: str
    target: float | None = None


@dataclass(frozen=True)
class Card:
    """The facts of a method that other rooms need: where it belongs, what it promises, what it needs.

    `place` is a plug-in's place among the others; the built-in methods have theirs in `analysis/taxonomy.toml`.
    """

    slug: str
    family: str
    title: str
    source: str
    lossless: bool
    needs: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    place: Place | None = None


class MethodConfig(BaseModel):
    """A method's options; frozen, and an unknown or out-of-range option is an error before any model is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def tunable(
    default: Any, *, low: float | None = None, high: float | None = None, log: bool = False, choices: Sequence[Any] = ()
) -> Any:
    """A config field that carries its own search range: a number in [low, high], or one of `choices`."""
    search: JsonDict = {"low": low, "high": high, "log": log, "choices": list(choices)}
    return Field(default, ge=low, le=high, json_schema_extra={"tunable": search})


class Generator(Protocol):
    """What `attach` yields. Completions come in the order of the requests."""

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]: ...


class Method(ABC):
    """A method is made once per run. `prepare` does what is expensive, `attach` is cheap and always undoes itself.

    The harness attaches a method anew for each turn of the interleaved order (A B A B), so two methods never act on
    a model at the same time.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    quality_nats: ClassVar[float | None] = None
    """None: short requests are answered as dense does. Else the model is another one for every request, and may lose
    this many nats per token of plain text before it gets no speed."""

    def refusal(self, model: LanguageModel, config: MethodConfig) -> str | None:
        """Why this method cannot run on this model, as one sentence; `None` when it can."""
        return None

    def prepare(self, model: LanguageModel, config: MethodConfig) -> None:  # noqa: B027 - most methods need nothing
        """Loads or fits what the method needs (adapters, calibration). Untimed; called once per model."""

    def undrafted(self, config: MethodConfig) -> tuple[Method, MethodConfig] | None:
        """Of a lossy method with exact drafts: the method without them, whose greedy tokens it must give."""
        return None

    def gated(self, config: Any) -> MethodConfig:
        """The options under which the gates run; a method that draws tokens by its own options draws none there."""
        return cast(MethodConfig, config)

    def classes(self) -> tuple[type[Method], ...]:
        """Whose code the results depend on."""
        return (type(self),)

    def model_bytes(self, model: LanguageModel, config: MethodConfig) -> int:
        """Bytes of the weights that a forward pass reads; asked after `prepare`, while nothing is attached."""
        return model.model_bytes

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """What the analytic roofline counts in place of dense decoding, from the options alone; the least there is."""
        return DENSE

    @abstractmethod
    def attach(self, model: LanguageModel, config: MethodConfig) -> AbstractContextManager[Generator]:
        """Installs the method on the model and yields its generator; the model is as before when the block ends."""
