"""How Chimera's drafter grows a tree: level after level, all nodes of a level in one pass, for all running requests.

Shapes: n running requests, m nodes of a level whose children are wanted (its queries), d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import gemv
from suite.methods.decoding.context import Context
from suite.methods.decoding.tree import TokenTree
from suite.methods.decoding.tree_shape import TreeShape
from suite.methods.decoding.trigrams import TrigramTable
from suite.methods.decoding.verification import TreeAttention
from suite.models.attention import Attention, DenseAttention
from suite.models.cache import KVCache
from suite.models.chimera import HEADS, ChimeraDrafter, MedusaHeads, last_three
from suite.models.decoder import Decoder, Layers
from suite.models.generation import PREFILL_CHUNK


class ContextStates:
    """The context encoder with its cache, which holds the target's states of all verified tokens and nothing else."""

    def __init__(self, layers: Layers, contexts: Sequence[Context]) -> None:
        self._layers, self._tree, self._causal = layers, TreeAttention(layers.config), DenseAttention(layers.config)
        longest = max(context.prompt_tokens + context.limit for context in contexts)
        self.cache: KVCache = layers.new_cache(len(contexts), longest + 2 * HEADS)

    def extend(self, rows: Sequence[int], states: Sequence[Tensor], roots: Tensor) -> Tensor:
        """New states [t, d] of each row, then its root's encoding [n, d] -> features [n, d] of the roots."""
        pieces = [
            torch.split(torch.cat((new, root[None])), PREFILL_CHUNK) for new, root in zip(states, roots, strict=True)
        ]
        features = torch.empty_like(roots)
        for turn in range(max(map(len, pieces))):
            taking = [i for i, piece in enumerate(pieces) if turn < len(piece)]
            out = self._pass([rows[i] for i in taking], [pieces[i][turn] for i in taking], self._causal)
            for i in taking:
                features[i] = out[rows[i], len(pieces[i][turn]) - 1]
        for row in rows:
            self.cache.truncate(row, self.cache.lengths[row] - 1)
        return features

    def level(self, rows: Sequence[int], known: Tensor, fresh: Tensor, tree: TokenTree) -> Tensor:
        """Features [n, i, d] of earlier queries and encodings [n, m, d] of this level's -> its features [n, m, d].

        Earlier queries go through the layer again: their keys and values now come from their features.
        """
        held = list(self.cache.lengths)
        planted = [tree if row in rows else None for row in range(len(held))]
        self._tree.plant(self.cache, planted)
        out = self._pass(rows, list(torch.cat((known, fresh), dim=1)), self._tree)
        for row in rows:
            self.cache.truncate(row, held[row])
        return out[list(rows), known.shape[1] :]

    def _pass(self, rows: Sequence[int], pieces: Sequence[Tensor], attention: Attention) -> Tensor:
        """The layer's output [B, T, d] for a piece [t, d] of each row; the others have no part in it."""
        batch, width = self.cache.batch, max(map(len, pieces))
        counts, x = [0] * batch, pieces[0].new_zeros(batch, width, pieces[0].shape[1])
        for row, piece in zip(rows, pieces, strict=True):
            counts[row] = len(piece)
            x[row, : len(piece)] = piece
        return self._layers.advance(x, self.cache, attention, counts)


class ChimeraDrafts:
    """Drafts of one batch."""

    def __init__(
        self,
        drafter: ChimeraDrafter,
        target: Decoder,
        table: TrigramTable,
        shape: TreeShape,
        vocab: int,
        contexts: Sequence[Context],
    ) -> None:
        self._drafter, self._table, self._shape = drafter, table, shape
        self._weight = target.head.weight[:vocab]
        self._states: list[list[Tensor]] = [[] for _ in contexts]
        self._newest: list[Tensor] = [torch.empty(0)] * len(contexts)
        self.context = ContextStates(drafter.context, contexts) if drafter.context is not None else None

    def observe(self, row: int, hidden: Tensor) -> None:
        """States [t, d] of tokens that are verified now."""
        self._newest[row] = hidden[-1]
        if self.context is not None:
            self._states[row].append(hidden)

    def trees(self, contexts: Sequence[Context]) -> list[TokenTree]:
        """A tree for each running request."""
        levels = min(len(self._shape.nodes), max(context.most_depth for context in contexts))
        hidden = torch.stack([self._newest[context.row] for context in contexts])[:, None]
        drafted: list[list[int]] = [[] for _ in contexts]
        known = hidden[:, :0]
        for level in range(levels):
            features = self._features(contexts, drafted, known, level)
            merged = self._drafter.heads(level, hidden, features)
            best = ranked(merged, self._weight, self._shape.widths[level])
            for tokens, choices in zip(drafted, best, strict=True):
                tokens += [choices[query][rank] for query, rank in self._shape.picks[level]]
            known = torch.cat((known, features), dim=1)
        return [grown(self._shape, tokens, levels) for tokens in drafted]

    def _features(
        self, contexts: Sequence[Context], drafted: Sequence[Sequence[int]], known: Tensor, level: int
    ) -> Tensor:
        """f [n, m, d] of a level's queries."""
        paths = [self._shape.path(query) for query in self._shape.queries[level]]
        encoded = self._table(
            [
                last_three([*context.tokens[-3:], *(tokens[node] for node in path)])
                for context, tokens in zip(contexts, drafted, strict=True)
                for path in paths
            ]
        ).view(len(contexts), len(paths), -1)
        if self.context is None:
            return encoded
        rows = [context.row for context in contexts]
        if level:
            return self.context.level(rows, known, encoded, self._shape.passes[level])
        states = [torch.cat(self._states[row]) for row in rows]
        for row in rows:
            self._states[row] = []
        return self.context.extend(rows, states, encoded[:, 0])[:, None]

    def held_bytes(self) -> int:
        """Of the context encoder's cache, and of states it has not read yet."""
        waiting = sum(states.nbytes for row in self._states for states in row)
        return waiting + (self.context.cache.live_bytes() if self.context is not None else 0)


class MedusaDrafts:
    """Drafts of one batch by heads on the target's last state alone: all levels at once."""

    def __init__(self, heads: MedusaHeads, target: Decoder, shape: TreeShape, vocab: int, batch: int) -> None:
        self._heads, self._shape, self._weight = heads, shape, target.head.weight[:vocab]
        self._newest: list[Tensor] = [torch.empty(0)] * batch

    def observe(self, row: int, hidden: Tensor) -> None:
        """States [t, d] of tokens that are verified now."""
        self._newest[row] = hidden[-1]

    def trees(self, contexts: Sequence[Context]) -> list[TokenTree]:
        """A tree for each running request; all nodes of a level have the same choices."""
        levels = min(len(self._shape.nodes), max(context.most_depth for context in contexts))
        hidden = torch.stack([self._newest[context.row] for context in contexts])
        merged = torch.stack([self._heads(level, hidden) for level in range(levels)], dim=1)
        best = ranked(merged, self._weight, max(self._shape.widths))
        drafts = [[choices[k][rank] for k in range(levels) for _, rank in self._shape.picks[k]] for choices in best]
        return [grown(self._shape, tokens, 1) for tokens in drafts]

    def held_bytes(self) -> int:
        """The heads remember nothing."""
        return 0


def ranked(merged: Tensor, weight: Tensor, most: int) -> list[list[list[int]]]:
    """What heads say [n, m, d] -> their `most` best tokens [n, m, most]."""
    logits = gemv.linear(merged, weight, out_dtype=torch.float32)
    best: list[list[list[int]]] = logits.topk(min(most, logits.shape[-1])).indices.tolist()
    return best


def grown(shape: TreeShape, tokens: Sequence[int], steps: int) -> TokenTree:
    """The first levels of a shape with tokens."""
    return TokenTree(tuple(tokens), shape.parents[: len(tokens)], steps=steps)
