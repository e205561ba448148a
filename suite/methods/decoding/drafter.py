"""A model that drafts chains: its decoder with a cache of its own, kept in step with the running requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.methods.decoding.context import Context
from suite.methods.decoding.tree import TokenTree
from suite.methods.weights.base import Site
from suite.methods.weights.linear import projections
from suite.methods.weights.w4g128 import W4G128
from suite.models import adapters
from suite.models.attention import DenseAttention
from suite.models.cache import KVCache
from suite.models.decoder import Decoder, Layer
from suite.models.generation import padded, prefill
from suite.models.language_model import LanguageModel
from suite.models.recipes.distilled import DraftLayers
from suite.models.twins import shallow


class DraftModel:
    """Drafts for all running requests in common passes.

    The cache holds, of each request, its first tokens as they were read. After a round `keep` cuts off what was
    refused; the tokens that are missing then (one, or two after a full acceptance) open the next draft.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Its embedding knows all of the target's tokens; its head may speak the first of them only."""
        self._decoder = decoder
        self._vocab = decoder.embedding.num_embeddings
        self._attention = DenseAttention(decoder.config)
        self._cache = KVCache(decoder.config, 0, decoder.dtype)

    def start(self, contexts: Sequence[Context]) -> None:
        """Reads the prompts of a new batch."""
        longest = max(context.prompt_tokens + context.limit for context in contexts)
        self._cache = self._decoder.new_cache(len(contexts), longest)
        prefill(self._decoder, self._attention, self._cache, [context.tokens for context in contexts], None)

    def chains(self, contexts: Sequence[Context], length: int) -> list[TokenTree]:
        """A chain of `length` tokens for each request, or as many as it has room for: greedy ones, or drawn ones."""
        lengths = [min(length, context.most_depth) for context in contexts]
        chains = [_Chain(context, self._vocab) for context in contexts]
        pieces = [context.tokens[self._cache.lengths[context.row] :] for context in contexts]
        steps = max(lengths)
        for step in range(steps):
            logits = self._pass(contexts, pieces)
            for index, (context, chain) in enumerate(zip(contexts, chains, strict=True)):
                if step < lengths[index]:
                    chain.extend(logits[context.row, None])
                pieces[index] = chain.tokens[-1:] if step + 1 < lengths[index] else []
        return [chain.tree(steps) for chain in chains]

    def keep(self, context: Context) -> None:
        """A round is over: of the drafted tokens in the cache those that were refused are forgotten."""
        self._cache.truncate(context.row, len(context.tokens) - 1)

    def held_bytes(self) -> int:
        """Bytes of its cache that hold tokens."""
        return self._cache.live_bytes()

    def _pass(self, contexts: Sequence[Context], pieces: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, vocab] behind the last token of each piece; rows without a piece have no part in it."""
        ragged: list[Sequence[int]] = [[] for _ in self._cache.lengths]
        for context, piece in zip(contexts, pieces, strict=True):
            ragged[context.row] = piece
        counts = [len(piece) for piece in ragged]
        return cast(Tensor, self._decoder(padded(ragged), self._cache, self._attention, counts))


class _Chain:
    """One request's draft while it grows."""

    def __init__(self, context: Context, vocab: int) -> None:
        self._sampler, self._vocab = context.sampler, vocab
        self.tokens: list[int] = []
        self._laws: list[Tensor] = []

    def extend(self, logits: Tensor) -> None:
        """The next token, from logits [1, vocab]."""
        if self._sampler.greedy:
            self.tokens += self._sampler.choose(logits, [0])
            return
        law = self._sampler.probabilities(logits)[0]
        self._laws.append(widened(law, self._vocab))
        self.tokens.append(self._sampler.draw(law))

    def tree(self, steps: int) -> TokenTree:
        return TokenTree.chain(self.tokens, torch.stack(self._laws) if self._laws else None, steps)


def widened(laws: Tensor, vocab: int) -> Tensor:
    """Laws [..., n] of a head that speaks the first n tokens, as laws [..., vocab]."""
    return functional.pad(laws, (0, vocab - laws.shape[-1]))


def distilled(recipe: str, model: LanguageModel) -> tuple[Decoder, str]:
    """A draft model trained for this target, in its dtype or in int4 as its recipe has it; and its digest."""
    layers = cast(DraftLayers, adapters.load(recipe, model))
    digest, decoder = layers.digest, layers.decoder(model.decoder)
    if recipe == "distilled-w4":
        for name, owner, attribute in projections(decoder):
            matrix = getattr(owner, attribute)
            setattr(owner, attribute, W4G128().quantize(name, matrix.weight, Site((), matrix.bias), None))
    return decoder.cast_weights(model.decoder.dtype), digest


def layer_subset(decoder: Decoder, kept: Sequence[int]) -> Decoder:
    """A decoder of some of another's layers. Modules are shared, weights of any kind with them; nothing is copied."""
    twin = shallow(decoder)
    twin.layers = nn.ModuleList(_relabelled(cast(Layer, decoder.layers[old]), new) for new, old in enumerate(kept))
    windows = tuple(decoder.config.windows[layer] for layer in kept) if decoder.config.windows else ()
    twin.config = replace(decoder.config, layers=len(kept), windows=windows)
    return twin


def _relabelled(layer: Layer, index: int) -> Layer:
    """The same layer with another place in the cache."""
    twin = shallow(layer)
    twin.attention = shallow(layer.attention)
    twin.attention.layer = index
    return twin
