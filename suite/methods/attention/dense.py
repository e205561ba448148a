"""Dense attention: the baseline every method of every family is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from suite.methods.attention.base import AttentionGenerator, MeteredAttention
from suite.methods.base import Card, Generator, Method, MethodConfig
from suite.models.language_model import LanguageModel


class Dense(Method):
    """Exact causal attention over the whole KV cache, on the fastest path this machine has."""

    card: ClassVar[Card] = Card(
        slug="dense",
        family="attention",
        title="Exact causal attention over the whole cache",
        source="Attention Is All You Need, arXiv 1706.03762",
        lossless=True,
    )

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing to install: this is the decoder as it is."""
        yield AttentionGenerator(model, lambda _, meter: MeteredAttention(model.config, meter))
