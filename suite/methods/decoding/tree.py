"""A draft: tokens that may follow the last emitted one, as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from kernels.tree_attention import MOST_NODES, ancestor_masks

MOST_DRAFTED = MOST_NODES - 1
"""Drafted tokens of one round: the root is a node of the verification pass too."""

ROOT = -1
"""The last emitted token, as a parent: it is not in the cache yet, and no part of the draft."""


@dataclass(frozen=True)
class TokenTree:
    """N drafted tokens; `parents[i]` < i is the node before node i, `ROOT` for what may follow the last emitted token.

    Without `laws` the tokens were picked by a rule, and equal siblings are alternatives of the same token. With `laws`
    fp64 [N, vocab] node i was *drawn* from `laws[i]`, after its elder siblings (those with a smaller index). For
    draws with replacement siblings share one law, and an equal pair stays two nodes: the younger one is never taken,
    but its refusal changes what is left of the target's law. Without replacement: `acceptance.without`.
    `steps` sequential passes of a model made the draft.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    laws: Tensor | None = None
    steps: int = 0

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or len(self.tokens) > MOST_DRAFTED:
            sizes = f"{len(self.tokens)} tokens and {len(self.parents)} parents"
            raise ValueError(f"{sizes} are no draft: it has as many of both, and at most {MOST_DRAFTED}")
        if any(not ROOT <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError(f"in {self.parents} a parent does not stand before its child")
        if self.laws is not None and len(self.laws) != len(self.tokens):
            raise ValueError(f"{len(self.laws)} laws do not fit {len(self.tokens)} tokens")

    @classmethod
    def chain(cls, tokens: Sequence[int], laws: Tensor | None = None, steps: int = 0) -> TokenTree:
        """Each token follows the one before it."""
        return cls(tuple(tokens), tuple(range(ROOT, len(tokens) - 1)), laws, steps)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Of each node, 1 for those that may come next."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> dict[int, list[int]]:
        """Nodes that follow a node or `ROOT`, by rising index; nodes without any are left out."""
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        return children

    @property
    def is_chain(self) -> bool:
        """Ordinary causal attention verifies it: every node stands behind the one before it."""
        return self.parents == tuple(range(ROOT, len(self) - 1))

    def masks(self) -> Tensor:
        """int64 [1 + N], the root first: bit j of mask i says that the pass's token i sees its token j."""
        return ancestor_masks([-1, *(parent + 1 for parent in self.parents)])

    @cached_property
    def runs(self) -> list[list[tuple[int, int]]]:
        """What `masks` says, as ranges [start, stop) of the pass's tokens; the first range begins with the root."""
        runs = [[(0, 1)]]
        for node, parent in enumerate(self.parents):
            *before, (start, stop) = runs[parent + 1]
            own = node + 1
            runs.append([*before, (start, own + 1)] if stop == own else [*before, (start, stop), (own, own + 1)])
        return runs

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to `node`; none for `ROOT`."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.parents[node]
        return tuple(reversed(path))

    def within(self, depth: int) -> TokenTree:
        """The draft without the nodes that lie deeper."""
        if max(self.depths, default=0) <= depth:
            return self
        kept = [node for node, own in enumerate(self.depths) if own <= depth]
        new = {ROOT: ROOT} | {node: index for index, node in enumerate(kept)}
        laws = None if self.laws is None else self.laws[kept]
        parents = tuple(new[self.parents[node]] for node in kept)
        return TokenTree(tuple(self.tokens[node] for node in kept), parents, laws, self.steps)


EMPTY = TokenTree()
"""No draft: the round is an ordinary decode step."""
