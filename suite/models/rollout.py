"""Plain batch sampling: many prompts at once on one decoder, for training and evaluating the lab's models.

No clock and no meter: what is measured goes through the harness.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suite.models.attention import DenseAttention
from suite.models.decoder import Decoder
from suite.models.generation import prefill


@torch.no_grad()
def rollout(
    decoder: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int, temperature: float, seed: int
) -> list[list[int]]:
    """Up to `new_tokens` ids behind each prompt, the end token included; temperature 0 is greedy.

    The whole batch draws from one generator: a row depends on its place in the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    attention = DenseAttention(decoder.config)
    cache = decoder.new_cache(len(prompts), max(map(len, prompts)) + new_tokens)
    logits = prefill(decoder, attention, cache, prompts, None)
    ends = torch.tensor(decoder.config.eos_ids)
    drawn: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    while True:
        drawn.append(_draw(logits, temperature, generator))
        ended |= torch.isin(drawn[-1], ends)
        if len(drawn) == new_tokens or bool(ended.all()):
            break
        logits = decoder(drawn[-1][:, None], cache, attention)
    return [_up_to_the_end(row, decoder.config.eos_ids) for row in torch.stack(drawn, dim=1).tolist()]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _up_to_the_end(row: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row, start=1) if token in ends), len(row))
    return row[:stop]
