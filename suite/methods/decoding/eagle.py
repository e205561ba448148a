"""EAGLE-2 on the target itself: tree drafts from the target's own features, the baseline of specmquant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from suite.cost import Drafter, MethodCost, Situation
from suite.methods.base import Card, MethodConfig, tunable
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.tree_drafter import TreeDrafter, tree_head
from suite.models import adapters
from suite.models.language_model import LanguageModel
from suite.models.recipes.drafts import VOCAB


class EagleConfig(MethodConfig):
    """A tree of `nodes`, the root included, `depth` deep; of each level the `width` best nodes go on.

    The paper's trees have 60 nodes and depth 6, for GPUs; on a CPU a pass over many tokens is not free.
    """

    nodes: int = tunable(8, low=2, high=64, log=True)
    depth: int = tunable(3, low=1, high=8)
    width: int = tunable(10, low=1, high=16)


class Eagle(DecodingMethod):
    """A trained head predicts the target's next features; the likeliest tokens behind them are the draft."""

    card: ClassVar[Card] = Card(
        slug="eagle",
        family="control",
        title="EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees",
        source="arXiv 2406.16858, its head as in EAGLE, arXiv 2401.15077",
        lossless=True,
        needs=("adapter",),
    )
    Config = EagleConfig
    sees_hidden: ClassVar[bool] = True

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """The head, one layer, runs once for every level."""
        return MethodCost(drafted=config.nodes - 1, drafter=Drafter(config.depth, vocab=VOCAB))

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        return super().refusal(model, config) or adapters.missing("eagle", model)

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the head that was trained on this model."""
        self._head = tree_head("eagle", model, model.decoder, model.digest)

    def begin(self, model: LanguageModel, config: EagleConfig) -> None:
        self._config = config

    def start(self, contexts: Sequence[Context]) -> None:
        """Nothing is known of the prompts yet: `observe` brings their features."""
        self._drafters = [
            TreeDrafter(self._head, context.prompt_tokens + context.limit + self._config.width * self._config.depth)
            for context in contexts
        ]

    def observe(self, context: Context, hidden: Tensor) -> None:
        """The head reads the prompt along with the target."""
        drafter = self._drafters[context.row]
        drafter.learn(hidden)
        if len(context.tokens) == context.prompt_tokens:
            drafter.read(context.tokens[: drafter.known])

    def draft(self, context: Context) -> TokenTree:
        depth = min(self._config.depth, context.most_depth)
        return self._drafters[context.row].expand(context.tokens, depth, self._config.width, self._config.nodes - 1)

    def update(self, context: Context, outcome: Round) -> None:
        """The features of accepted tokens are the target's own from now on."""
        self._drafters[context.row].keep(len(context.tokens))

    def held_bytes(self) -> int:
        return sum(drafter.held_bytes() for drafter in self._drafters)
