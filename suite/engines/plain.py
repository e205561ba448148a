"""Requests answered by an engine as they are: what searches through it are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

from suite.engines.base import Engine, Prompt
from suite.errors import UnitError
from suite.models.generation import Meter
from suite.models.language_model import EncodedPrompt, TextModel
from suite.models.stops import cut_at_stop
from workloads.schema import Completion, CostLedger, Request, StopReason


class PlainGenerator:
    """One text for each request, all of a batch at once; a token counts when it has come."""

    def __init__(self, engine: Engine, model: TextModel) -> None:
        self._engine, self._model, self._salt = engine, model, uuid4().hex

    def generate(self, requests: Sequence[Request], meter: Meter) -> Iterator[Completion]:
        """Completions in the order of the requests."""
        if any(request.target is not None for request in requests):
            raise UnitError(f"engine {self._engine.name} scores no given texts: use --engine native.")
        encoded = [self._model.encode(request) for request in requests]
        prompts = [self._prompt(request, prompt) for request, prompt in zip(requests, encoded, strict=True)]
        tokens: list[list[int]] = [[] for _ in requests]
        for request, prompt in zip(requests, encoded, strict=True):
            meter.start(request.id, len(prompt.ids))
        for chunk in self._engine.stream(prompts):
            for token in chunk.token_ids:
                meter.token(requests[chunk.index].id, token)
                tokens[chunk.index].append(token)
        for request, prompt, ids in zip(requests, encoded, tokens, strict=True):
            yield self._completion(request, prompt, ids, meter)

    def _prompt(self, request: Request, prompt: EncodedPrompt) -> Prompt:
        return Prompt(
            prompt.ids, request.max_new_tokens, self._model.config.eos_ids, request.temperature, request.top_k,
            request.top_p, request.seed, stop=request.stop, salt=self._salt,
        )  # fmt: skip

    def _completion(self, request: Request, prompt: EncodedPrompt, ids: list[int], meter: Meter) -> Completion:
        start_ns, token_ns = meter.times(request.id)
        eos = self._model.config.eos_ids
        whole = self._model.tokenizer.decode([token for token in ids if token not in eos])
        text = cut_at_stop(whole, request.stop)
        ended: StopReason = "eos" if ids and ids[-1] in eos else "stop" if text != whole else "length"
        cost = CostLedger(len(prompt.ids), len(ids), sequential_depth=len(ids))
        return Completion(request.id, tuple(ids), text, start_ns, token_ns, ended, cost, notes=prompt.notes)
