"""Draft trees of a fixed shape, which a drafter fills with tokens level by level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from suite.methods.decoding.tree import ROOT, TokenTree


@dataclass(frozen=True)
class TreeShape:
    """A draft tree without tokens. `paths` are its nodes: the rank of each choice on the way from the root, as digits.

    Nodes are numbered level by level; a query is a node with children, `ROOT` included.
    """

    paths: tuple[str, ...]

    @classmethod
    def of(cls, listed: str, deepest: int) -> TreeShape:
        """From paths between spaces; those deeper than `deepest` are dropped."""
        kept = [path for path in listed.split() if len(path) <= deepest]
        return cls(tuple(sorted(kept, key=lambda path: (len(path), path))))

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """As `TokenTree.parents`."""
        return tuple(self.paths.index(path[:-1]) if len(path) > 1 else ROOT for path in self.paths)

    @cached_property
    def nodes(self) -> list[list[int]]:
        """The nodes of each level."""
        deepest = len(self.paths[-1])
        return [[i for i, path in enumerate(self.paths) if len(path) == depth + 1] for depth in range(deepest)]

    @cached_property
    def queries(self) -> list[list[int]]:
        """For each level the nodes of the one before it that have children there."""
        return [sorted({self.parents[node] for node in level}) for level in self.nodes]

    @cached_property
    def picks(self) -> list[list[tuple[int, int]]]:
        """For each node of each level: the place of its parent among the queries, and which of its choices it is."""
        levels = zip(self.nodes, self.queries, strict=True)
        return [
            [(queries.index(self.parents[node]), int(self.paths[node][-1])) for node in nodes]
            for nodes, queries in levels
        ]

    @cached_property
    def widths(self) -> list[int]:
        """The most choices that are wanted of a query of each level."""
        return [1 + max(rank for _, rank in picks) for picks in self.picks]

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root's child down to `node`; none for `ROOT`."""
        return () if node == ROOT else (*self.path(self.parents[node]), node)

    @cached_property
    def passes(self) -> list[TokenTree]:
        """The context encoder's pass at each level: all queries so far, the root as root."""
        trees = []
        for level in range(len(self.queries)):
            known = [query for queries in self.queries[: level + 1] for query in queries][1:]
            place = {ROOT: ROOT} | {query: i for i, query in enumerate(known)}
            trees.append(TokenTree((0,) * len(known), tuple(place[self.parents[query]] for query in known)))
        return trees
