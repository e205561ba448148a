"""How close a choice between two tokens was: what tells a rounding tie from a wrong answer."""

from __future__ import annotations

from collections.abc import Sequence

from suite.engines.backends.native import Silent
from suite.models.attention import DenseAttention
from suite.models.generation import PREFILL_CHUNK, Slot, steps
from suite.models.language_model import EncodedPrompt, LanguageModel
from workloads.schema import Request


def logit_gap(model: LanguageModel, ids: Sequence[int], tokens: tuple[int, int]) -> float:
    """The logit of the first token after `ids` less that of the second (log-probabilities differ by the same)."""
    request = Request(id="gap", task="", prompt="", metric="", max_new_tokens=1)
    slots = [Slot(request, EncodedPrompt(tuple(ids), (token,), ()), ()) for token in tokens]
    for _ in steps(model, DenseAttention(model.config), slots, Silent(), PREFILL_CHUNK):
        pass
    return slots[0].logprobs[0] - slots[1].logprobs[0]
