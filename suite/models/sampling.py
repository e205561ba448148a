"""Greedy, temperature, top-k and top-p sampling with a generator of its own for every request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.sample import sample
from kernels.sample.reference import draw, restrict
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


class RequestSampler:
    """One request's rules and its stream of uniform numbers, of which `Sampler` uses one for each token, in order.

    Drafting methods read ahead in it, so that a drafted token is judged with the number its place would have had.
    """

    def __init__(self, request: Request) -> None:
        self.temperature, self.top_k, self.top_p = request.temperature, request.top_k, request.top_p
        self._generator = torch.Generator().manual_seed(request.seed)
        self._ahead: list[float] = []

    @property
    def greedy(self) -> bool:
        """The most likely token is always taken."""
        return self.temperature == 0

    def choose(self, logits: Tensor, places: Sequence[int]) -> list[int]:
        """logits [N, vocab] -> a token of each row, with number `places[i]` of those not used yet; uses up none.

        Rows of one place are alternatives: only one of them will stand in the text.
        """
        uniforms = torch.zeros(len(places)) if self.greedy else torch.tensor(self._read(max(places) + 1))[list(places)]
        tokens = sample(logits, uniforms, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        ids: list[int] = tokens.tolist()
        return ids

    def use(self, count: int) -> None:
        """The next `count` numbers are used up."""
        self._read(count)
        del self._ahead[:count]

    def uniform(self) -> float:
        """The next number, in [0, 1), used up."""
        number = self._read(1)[0]
        self.use(1)
        return number

    def draw(self, law: Tensor) -> int:
        """A token of a law [vocab], with the next number."""
        return draw(law, self.uniform())

    def probabilities(self, logits: Tensor) -> Tensor:
        """logits [N, vocab] -> the laws tokens are drawn from, fp64 [N, vocab]."""
        if self.greedy or self.top_k or self.top_p < 1:
            return torch.stack([restrict(row, self.temperature, self.top_k, self.top_p) for row in logits])
        return (logits.double() / self.temperature).softmax(dim=-1)

    def _read(self, count: int) -> list[float]:
        while len(self._ahead) < count:
            self._ahead.append(float(torch.rand(1, generator=self._generator)))
        return self._ahead
