"""Dense attention: the baseline every method of every family is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from suite.methods.attention.base import AttentionGenerator, MeteredAttention
from suite.methods.base import Card, Claim, Generator, Method, MethodConfig
from suite.models.language_model import LanguageModel


class Dense(Method):
    """Exact causal attention over the whole KV cache, on the fastest path this machine has."""

    card: ClassVar[Card] = Card(
        slug="dense",
        family="attention",
        title="Exact causal attention over the whole cache",
        source="Attention Is All You Need, arXiv 1706.03762",
        lossless=True,
        claims=(
            Claim("no-straw-man", "the baseline decodes at least twice as fast as the common library",
                  "this suite's own bar, against transformers' generate", "speed-up over its better dtype", 2.0),
            Claim("long-prompt", "the baseline reads a long prompt at least as fast as the common library",
                  "this suite's own bar, against transformers' generate", "speed-up over its better dtype", 1.0),
        ),
    )  # fmt: skip

    @contextmanager
    def attach(self, model: LanguageModel, config: MethodConfig) -> Iterator[Generator]:
        """Nothing to install: this is the decoder as it is."""
        yield AttentionGenerator(model, lambda _, meter: MeteredAttention(model.config, meter))
