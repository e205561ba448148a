"""Greedy, temperature, top-k and top-p sampling with a generator of its own for every request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workloads.schema import Request


class Sampler:
    """Draws one token per row. A request's tokens depend on its own seed only, never on the batch it runs in."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = list(requests)
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        self._greedy = all(request.temperature == 0 for request in requests)

    def __call__(self, logits: Tensor) -> list[int]:
        """logits [B, vocab] fp32 -> B token ids; ties go to the lower id."""
        greedy: list[int] = logits.argmax(dim=-1).tolist()
        if self._greedy:
            return greedy
        return [
            greedy[row] if request.temperature == 0 else self._draw(row, logits[row], request)
            for row, request in enumerate(self._requests)
        ]

    def _draw(self, row: int, logits: Tensor, request: Request) -> int:
        # Relative to the largest logit, so that a tiny temperature gives -inf and never inf.
        scaled = (logits - logits.max()) / request.temperature
        probabilities = restrict(scaled, request.top_k, request.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generators[row]))


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities [vocab] after top-k, then top-p (nucleus, 1904.09751): the smallest set of mass >= top_p."""
    if top_k:
        kept = torch.topk(logits, min(top_k, logits.numel())).indices
        logits = torch.full_like(logits, float("-inf")).index_put((kept,), logits[kept])
    probabilities = logits.softmax(dim=-1)
    if top_p < 1.0:
        ranked, order = probabilities.sort(descending=True, stable=True)
        before = ranked.cumsum(dim=-1) - ranked
        probabilities = torch.zeros_like(ranked).index_put((order,), ranked.where(before < top_p, 0.0))
    return probabilities / probabilities.sum()
