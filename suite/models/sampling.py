"""Greedy, temperature, top-k and top-p sampling with a generator of its own for every request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.sample import sample
from workloads.schema import Request


class Sampler:
    """Draws one token per row. A request's tokens depend on its own seed only, never on the batch it runs in."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._temperature = torch.tensor([request.temperature for request in requests], dtype=torch.float32)
        self._top_k = torch.tensor([request.top_k for request in requests], dtype=torch.int32)
        self._top_p = torch.tensor([request.top_p for request in requests], dtype=torch.float32)
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        self._unused = torch.zeros(len(requests))
        self._greedy = all(request.temperature == 0 for request in requests)

    def __call__(self, logits: Tensor) -> list[int]:
        """logits [B, vocab] -> B token ids; ties go to the lower id. See `kernels.sample.sample`."""
        if self._greedy:
            tokens = sample(logits, self._unused, temperature=0.0)
        else:
            uniforms = torch.cat([torch.rand(1, generator=generator) for generator in self._generators])
            tokens = sample(logits, uniforms, temperature=self._temperature, top_k=self._top_k, top_p=self._top_p)
        ids: list[int] = tokens.tolist()
        return ids
