"""One method made ready on one model: what the harness runs, whatever the method does inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from suite.errors import UnitError
from suite.harness.meter import RequestMeter
from suite.harness.options import method_config
from suite.methods.base import Method, MethodConfig
from suite.registry import METHODS
from suite.spec import MethodSpec
from workloads.schema import Completion, Request

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel


class Contender:
    """A method, its config and the model. Made once per run; `complete` attaches it anew each time."""

    def __init__(self, method: Method, config: MethodConfig, model: LanguageModel) -> None:
        self.method = method
        self.config = config
        self.model = model
        self._prepared = False

    @classmethod
    def load(cls, spec: MethodSpec, model: LanguageModel) -> Contender:
        """The registered method with its validated options, not yet prepared."""
        return cls(METHODS.load(spec.name)(), method_config(spec), model)

    def refusal(self) -> str | None:
        """Why the method cannot run on this model; `None` when it can."""
        return self.method.refusal(self.model, self.config)

    def prepare(self) -> None:
        """What the method needs once per model; untimed. Later calls do nothing."""
        if not self._prepared:
            self.method.prepare(self.model, self.config)
            self._prepared = True

    def undrafted(self) -> Contender | None:
        """This one, prepared, without its exact drafts, where only those are exact."""
        found = self.method.undrafted(self.config)
        return None if found is None else Contender(*found, self.model)

    def gated(self) -> Contender:
        """This one, prepared, as the gates ask it."""
        config = self.method.gated(self.config)
        return self if config == self.config else Contender(self.method, config, self.model)

    def model_bytes(self) -> int:
        """Bytes of the weights that a forward pass of this method reads."""
        return self.method.model_bytes(self.model, self.config)

    def complete(self, requests: Sequence[Request], meter: RequestMeter) -> list[Completion]:
        """Attaches the method, completes the requests as one batch, detaches it, and checks what came back."""
        with self.method.attach(self.model, self.config) as generator:
            completions = list(generator.generate(requests, meter))
        self._check(requests, completions, meter)
        return completions

    def _check(self, requests: Sequence[Request], completions: Sequence[Completion], meter: RequestMeter) -> None:
        name = self.method.card.slug
        if [c.request_id for c in completions] != [r.id for r in requests]:
            raise UnitError(
                f"{name} returned {len(completions)} completions for {len(requests)} requests, or out of order."
            )
        for completion in completions:
            reported = meter.token_ids(completion.request_id)
            if not completion.token_ids:
                raise UnitError(f"{name} returned no token for request {completion.request_id}.")
            if reported != completion.token_ids:
                raise UnitError(
                    f"{name} reported {len(reported)} tokens of request {completion.request_id} to the meter and "
                    f"returned {len(completion.token_ids)}; every token counts once, when it is known."
                )
