"""The suite's own decoder, for a worker process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from suite.models.attention import DenseAttention
from suite.models.generation import PREFILL_CHUNK, Slot, steps
from suite.models.language_model import EncodedPrompt
from suite.models.loaders import load_model
from workloads.schema import Request


class NativeBackend:
    """Dense attention over the whole cache, all prompts as one batch."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        self._model = load_model(settings["model"], settings["dtype"])

        self._slots: list[Slot] = []

    def stream(self, prompts: list[dict[str, Any]]) -> Iterator[tuple[int, list[int], int, list[float]]]:
        """One event per token."""
        self._slots = slots = [_slot(number, prompt) for number, prompt in enumerate(prompts)]
        attention = DenseAttention(self._model.config)
        done = [0] * len(slots)
        for _ in steps(self._model, attention, slots, Silent(), PREFILL_CHUNK):
            now = time.perf_counter_ns()
            for number, slot in enumerate(slots):
                if len(slot.tokens) > done[number]:
                    yield number, slot.tokens[done[number] :], now, slot.logprobs[done[number] :]
                    done[number] = len(slot.tokens)

    def cancel(self, number: int) -> None:
        """Ends one prompt of the batch that runs."""
        self._slots[number].stop_reason = self._slots[number].stop_reason or "length"

    def metrics(self) -> dict[str, float]:
        """None: the harness's own meter has these figures."""
        return {}


class Silent:
    """A meter that takes nothing down: the stream itself is stamped."""

    counting = False

    def start(self, request_id: str, prompt_tokens: int) -> None: ...

    def token(self, request_id: str, token_id: int) -> None: ...

    def times(self, request_id: str) -> tuple[int, tuple[int, ...]]:
        """Never asked for."""
        return 0, ()

    def phase(self, name: str) -> None: ...

    def step(self, tokens: int, context_tokens: int) -> None: ...

    def attention(self, read: object) -> None: ...

    def planned(self, index_bytes: int) -> None: ...

    def resident(self, kv_bytes: int, index_bytes: int, host_bytes: int = 0) -> None: ...


def _slot(number: int, prompt: dict[str, Any]) -> Slot:
    sampling = {name: prompt[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")}
    request = Request(id=str(number), task="", prompt="", metric="", **sampling)
    encoded = EncodedPrompt(tuple(prompt["ids"]), (), ())
    return Slot(request, encoded, tuple(prompt["eos_ids"]), told=prompt["logprobs"])


def make(settings: dict[str, Any]) -> NativeBackend:
    """The model, loaded."""
    return NativeBackend(settings)
