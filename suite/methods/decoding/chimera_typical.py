"""Chimera with Medusa's typical acceptance, as its published test script runs it: lossy, so a method of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from suite.methods.base import Card
from suite.methods.decoding.acceptance import DELTA, EPSILON, Verdict, accept_typical
from suite.methods.decoding.chimera import Chimera, ChimeraConfig
from suite.methods.decoding.tree import TokenTree
from suite.models.sampling import RequestSampler


class ChimeraTypicalConfig(ChimeraConfig):
    """A draft is accepted whose probability exceeds min(`epsilon`, `delta` exp(-entropy))."""

    epsilon: float = EPSILON
    delta: float = DELTA


class ChimeraTypical(Chimera):
    """Accepts what is likely enough. Greedy text stays the target's; drawn text does not have the target's law."""

    card: ClassVar[Card] = replace(Chimera.card, slug="chimera_typical", lossless=False, claims=())
    Config = ChimeraTypicalConfig

    def accept(self, tree: TokenTree, logits: Tensor, sampler: RequestSampler) -> Verdict:
        laws, config = sampler.probabilities(logits), self._config
        assert isinstance(config, ChimeraTypicalConfig)
        return accept_typical(tree, lambda node: laws[node + 1], sampler.uniform, config.epsilon, config.delta)
