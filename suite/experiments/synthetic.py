"""Passes over caches that are filled with random keys and values: prefilling 120K tokens would take hours here.

Shapes and sizes are the real ones, so times are; what is selected means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from suite.models.attention import Attention, Step
from suite.models.cache import KVCache
from suite.models.language_model import LanguageModel

FILL = 4096  # tokens per piece
SEED = 0

Learn = Callable[[Step, int, torch.Generator], None]
"""Is told of each piece of each layer once it is stored, to build an index over it."""


def filled_cache(model: LanguageModel, tokens: int, room: int, learn: Learn) -> KVCache:
    """A cache of `tokens` random tokens with room for more."""
    generator = torch.Generator().manual_seed(SEED)
    cache = model.decoder.new_cache(1, tokens + room)
    for start in range(0, tokens, FILL):
        count = min(FILL, tokens - start)
        step = Step(cache, [count], count)
        for layer in range(model.config.layers):
            for storage in (cache.keys, cache.values):
                storage[layer][:, :, start : start + count].normal_(generator=generator)
            learn(step, layer, generator)
        cache.advance([count])
    return cache


def race_steps(
    model: LanguageModel,
    cache: KVCache,
    attentions: Mapping[str, Attention],
    rounds: int,
    *,
    new: int = 1,
    grow: bool = False,
) -> dict[str, list[float]]:
    """Milliseconds of passes of `new` tokens, all attentions in turn at one place; the first round warms up.

    With `grow` every round stands one token further than the last, as in generation.
    """
    times: dict[str, list[float]] = {name: [] for name in attentions}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, attention in attentions.items():
                elapsed = _step_ms(model, cache, attention, new)
                if turn:
                    times[name].append(elapsed)
            if grow:
                cache.advance([1])
    return times


def _step_ms(model: LanguageModel, cache: KVCache, attention: Attention, new: int) -> float:
    """One pass of `new` tokens; the cache is put back to what it was."""
    length = cache.lengths[0]
    tokens = torch.ones(1, new, dtype=torch.long)
    start = time.perf_counter()
    model.decoder(tokens, cache, attention)
    elapsed = (time.perf_counter() - start) * 1e3
    cache.truncate(0, length)
    return elapsed
