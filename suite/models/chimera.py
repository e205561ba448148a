"""Chimera's drafter on a frozen target (arXiv 2402.15758): trigram encoder, full-context encoder and residual heads.

Shapes: d hidden size, V vocabulary, h the target's final-norm state of its last token [..., d], f a draft feature of a
token the target has not seen [..., d]. Every head ends in the target's own output matrix W_lm, which like the embedding
is never a parameter here: four matrices V x 2d would outweigh a small target. A head is W_lm (A h + B f), with A and B
the identity at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.models.config import ModelConfig
from suite.models.decoder import Layers, Linear

HEADS = 4

T = TypeVar("T")


class Trigram(nn.Module):
    """Embeddings of three tokens in a row [..., 3d] -> W2 R [..., d], with R(z) = z + SiLU(W1 z + b1).

    W1 begins as zero. The card gives no start for W2: here it hands on the newest of the three.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = Linear(3 * hidden, 3 * hidden, bias=True)
        self.outer = Linear(3 * hidden, hidden)
        nn.init.zeros_(self.inner.weight)
        with torch.no_grad():
            self.outer.weight.copy_(torch.eye(3 * hidden)[-hidden:])

    def forward(self, embedded: Tensor) -> Tensor:
        return cast(Tensor, self.outer(embedded + functional.silu(self.inner(embedded))))


class ResidualHeads(nn.Module):
    """A h + B f for each level: what W_lm makes logits of. A and B are diagonals `gate`, one, and the rest `mix`, zero.

    h says the token before the one that is wanted: the gates, which learn fast, let the heads get away from it soon.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(HEADS, 2, hidden))
        self.mix = nn.ModuleList(Linear(2 * hidden, hidden) for _ in range(HEADS))
        for part in self.mix:
            nn.init.zeros_(cast(Linear, part).weight)

    def forward(self, level: int, hidden: Tensor, feature: Tensor) -> Tensor:
        hidden, (own, drafted) = hidden.expand_as(feature), self.gate[level].to(feature.dtype)
        return cast(Tensor, self.mix[level](torch.cat((hidden, feature), dim=-1), own * hidden + drafted * feature))


class ChimeraDrafter(nn.Module):
    """All that is trained. Without `trigram` g is the token's embedding; without `context` f is g."""

    def __init__(self, config: ModelConfig, *, trigram: bool = True, context: bool = True) -> None:
        super().__init__()
        self.trigram = Trigram(config.hidden) if trigram else None
        self.context = Layers(replace(config, layers=1, windows=())) if context else None
        self.heads = ResidualHeads(config.hidden)

    def encode(self, embedded: Tensor) -> Tensor:
        """Embeddings [..., 3, d] of the last three tokens -> g [..., d]."""
        return embedded[..., 2, :] if self.trigram is None else self.trigram(embedded.flatten(-2))


class MedusaHeads(nn.Module):
    """The control, Medusa-1 (arXiv 2401.10774): a residual block on h for each level, blind to what was drafted.

    Its heads are tied as Chimera's are: W_lm A (h + SiLU(W h + b)), W zero, A the identity at the start, with a gate.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden
        self.blocks = nn.ModuleList(Linear(d, d, bias=True) for _ in range(HEADS))
        self.mix = nn.ModuleList(Linear(d, d) for _ in range(HEADS))
        self.gate = nn.Parameter(torch.ones(HEADS, d))
        for part in (*self.blocks, *self.mix):
            nn.init.zeros_(cast(Linear, part).weight)

    def forward(self, level: int, hidden: Tensor) -> Tensor:
        block = hidden + functional.silu(self.blocks[level](hidden))
        return cast(Tensor, self.mix[level](block, self.gate[level].to(block.dtype) * block))


def last_three(tokens: Sequence[T]) -> tuple[T, T, T]:
    """The trigram that ends in the newest token. At the start of a text: 1 1 1, then 1 2 2."""
    first, *others = tokens[-3:]
    return (first, *others) if len(others) == 2 else (first, (tokens)[-1], tokens[-1])  # type: ignore[return-value]
