"""Prompt lookup: the draft is what followed the newest tokens when they stood in the text before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from suite.cost import MethodCost, Situation
from suite.methods.base import Card, MethodConfig, tunable
from suite.methods.decoding.base import DecodingMethod
from suite.methods.decoding.context import Context, Round
from suite.methods.decoding.tree import EMPTY, TokenTree
from suite.models.language_model import LanguageModel


class NgramConfig(MethodConfig):
    """The longest suffix looked up, and the most tokens copied."""

    ngram: int = tunable(2, low=1, high=8)
    length: int = tunable(8, low=1, high=32)


class Ngram(DecodingMethod):
    """Copies the continuation of the latest earlier place of the last n tokens, of prompt and output; else of n - 1."""

    card: ClassVar[Card] = Card(
        slug="ngram",
        family="control",
        title="Prompt lookup decoding",
        source="github.com/apoorvumang/prompt-lookup-decoding; LLMA, arXiv 2304.04487",
        lossless=True,
    )
    Config = NgramConfig

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        return MethodCost(drafted=config.length)

    def begin(self, model: LanguageModel, config: NgramConfig) -> None:
        self._config = config

    def start(self, contexts: Sequence[Context]) -> None:
        """Every request has an index of its own."""
        self._places: list[dict[tuple[int, ...], int]] = [{} for _ in contexts]
        self._known = [0 for _ in contexts]
        for context in contexts:
            self._learn(context)

    def draft(self, context: Context) -> TokenTree:
        tokens, places = context.tokens, self._places[context.row]
        for size in range(min(self._config.ngram, len(tokens)), 0, -1):
            place = places.get(tuple(tokens[-size:]))
            if place is not None:
                return TokenTree.chain(tokens[place : place + self._config.length])
        return EMPTY

    def update(self, context: Context, outcome: Round) -> None:
        self._learn(context)

    def _learn(self, context: Context) -> None:
        """Notes the place behind every n-gram with a token behind it: the newest tokens are not found themselves."""
        tokens, places = context.tokens, self._places[context.row]
        for place in range(max(1, self._known[context.row]), len(tokens)):
            for size in range(1, min(self._config.ngram, place) + 1):
                places[tuple(tokens[place - size : place])] = place
        self._known[context.row] = len(tokens)

    def held_bytes(self) -> int:
        return sum(sys.getsizeof(places) for places in self._places)
