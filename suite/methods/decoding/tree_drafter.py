"""EAGLE-2's dynamic trees (arXiv 2406.16858): a head goes on from a model's features and keeps what is most likely.

Entry i of the head's cache is the pair of token i + 1 and the feature of token i; a law of token i + 2 comes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from suite.errors import UnitError
from suite.methods.decoding.tree import ROOT, TokenTree
from suite.models import adapters
from suite.models.attention import DenseAttention, Step
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.generation import PREFILL_CHUNK
from suite.models.language_model import LanguageModel
from suite.models.recipes.eagle import Fusion, TreeHead, fingerprint


def tree_head(recipe: str, model: LanguageModel, owner: Decoder, digest: str) -> Decoder:
    """The trained head over its owner, as a decoder of the owner's dtype; `UnitError` if it is another model's."""
    head = cast(TreeHead, adapters.load(recipe, model))
    check_owner(head, owner.config, digest)
    return head.decoder(owner).cast_weights(owner.dtype)


def check_owner(head: TreeHead, owner: ModelConfig, digest: str) -> None:
    """A head drafts for the model whose features it was trained on, and for no other."""
    size = head.norm.weight.shape[0]
    if size != owner.hidden:
        raise UnitError(f"the tree drafter reads features of {size} numbers, the model makes {owner.hidden}.")
    if not torch.equal(head.owner, fingerprint(digest)):
        raise UnitError("the tree drafter was trained on another model's features; train it again for this one.")


class LevelAttention(DenseAttention):
    """Dense attention, or for a planted pass: every token at a place of its own sees the given slots only.

    `hidden` [B, T, hidden] is the last layer's output of the newest pass, before the final norm.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._visible: Tensor | None = None
        self._position = 0
        self.hidden = torch.empty(0)

    def plant(self, position: int, visible: Tensor | None) -> None:
        """The next pass's tokens, one row, all stand at `position` and see spans int32 [T, n, 3]; None: dense."""
        self._position, self._visible = position, visible

    def plain(self, step: Step) -> None:
        """Every layer is to be seen."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        if self._visible is not None:
            step.positions = torch.full((1, step.width), self._position, dtype=torch.int32)
        return super().__call__(layer, q, k, v, step)

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        return super().attend(layer, q, step) if self._visible is None else self._decode(layer, q, step)

    def spans(self, layer: int, step: Step) -> Tensor:
        return super().spans(layer, step) if self._visible is None else self._visible[:, None]

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        self.hidden = hidden


@dataclass
class Tried:
    """All nodes of a growing tree, in the order of their levels."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def grow(self, parents: Sequence[int], scores: Tensor, logits: Tensor, width: int) -> list[int]:
        """The `width` best children of each parent are tried; returns the `width` best of them all, by node.

        logits [n, vocab] and summed log probabilities `scores` [n] are those of the parents.
        """
        best = logits.log_softmax(dim=-1).topk(min(width, logits.shape[1]))
        first = len(self.tokens)
        self.tokens += best.indices.flatten().tolist()
        self.parents += [parent for parent in parents for _ in range(best.indices.shape[1])]
        level = (scores[:, None] + best.values).flatten()
        self.scores += level.tolist()
        kept = level.argsort(descending=True, stable=True)[:width]
        return [first + place for place in sorted(kept.tolist())]

    def best(self, nodes: int, steps: int) -> TokenTree:
        """The tree of the best nodes. A parent is never worse than its child, and stands before it."""
        order = torch.tensor(self.scores).argsort(descending=True, stable=True)[:nodes]
        kept = sorted(order.tolist())
        place = {ROOT: ROOT} | {node: index for index, node in enumerate(kept)}
        tokens = tuple(self.tokens[node] for node in kept)
        return TokenTree(tokens, tuple(place[self.parents[node]] for node in kept), steps=steps)


class TreeDrafter:
    """One request's tree drafter: the features it has been shown, and the head's cache over them."""

    def __init__(self, head: Decoder, capacity: int) -> None:
        self._head = head
        self._attention = LevelAttention(head.config)
        self._cache = head.new_cache(1, capacity)
        self._features = torch.empty(capacity, head.config.hidden, dtype=head.dtype)
        self._known = 0

    @property
    def known(self) -> int:
        """Tokens whose features it has been shown."""
        return self._known

    def learn(self, features: Tensor) -> None:
        """The owner's features [n, hidden] of the next n tokens."""
        self._features[self._known : self._known + len(features)] = features
        self._known += len(features)

    def keep(self, tokens: int) -> None:
        """Only the first `tokens` of the text stand, and the last of them no pass has seen: the rest is forgotten."""
        self._known = min(self._known, tokens - 1)
        self._cache.truncate(0, max(0, tokens - 2))

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Goes up to the last token, whose forerunner's feature is known; logits [1, vocab] of what follows it."""
        logits = torch.empty(0)
        while (first := self._cache.lengths[0]) < len(tokens) - 1:
            stop = min(first + PREFILL_CHUNK, len(tokens) - 1)
            self._attention.plant(0, None)
            logits = self._pass(tokens[first + 1 : stop + 1], self._features[first:stop], "last")
        return logits

    def expand(self, tokens: Sequence[int], depth: int, width: int, nodes: int) -> TokenTree:
        """What may follow a text: `depth` levels, of each the `width` best go on; of all tried the `nodes` best."""
        tried, logits, base = Tried(), self.read(tokens), len(tokens) - 1
        level = tried.grow([ROOT], torch.zeros(1), logits, width)
        features = self._states(slice(-1, None)).expand(len(level), -1)
        slots: dict[int, list[int]] = {ROOT: []}
        for step in range(1, depth):
            start = self._cache.lengths[0]
            for place, node in enumerate(level):
                slots[node] = [*slots[tried.parents[node]], start + place]
            self._attention.plant(base + step - 1, _visible(base, [slots[node] for node in level]))
            logits = self._pass([tried.tokens[node] for node in level], features, "all")
            states, scores = self._states(slice(None)), torch.tensor([tried.scores[node] for node in level])
            parents = {node: place for place, node in enumerate(level)}
            level = tried.grow(level, scores, logits, width)
            features = states[[parents[tried.parents[node]] for node in level]]
        self._cache.truncate(0, base)
        return tried.best(nodes, depth)

    def held_bytes(self) -> int:
        """Bytes of features and cache that are in use."""
        return self._cache.live_bytes() + self._features[: self._known].nbytes

    def _pass(self, tokens: Sequence[int], features: Tensor, which: Literal["last", "all"]) -> Tensor:
        """Logits [n, vocab] of all pairs or [1, vocab] of the last; the pairs join the cache."""
        cast(Fusion, self._head.embedding).features = features[None]
        logits: Tensor = self._head(torch.tensor([tokens]), self._cache, self._attention, logits=which)
        return logits.flatten(0, -2)

    def _states(self, pairs: slice) -> Tensor:
        """Predicted features [n, hidden] of these pairs of the newest pass."""
        states: Tensor = self._head.norm(self._attention.hidden[0, pairs])
        return states


def _visible(base: int, slots: Sequence[Sequence[int]]) -> Tensor:
    """Spans int32 [n, spans, 3]: the text's `base` entries, then single slots; all nodes have equally many."""
    return torch.tensor([[(0, base, 0), *((slot, slot + 1, 0) for slot in row)] for row in slots], dtype=torch.int32)
