"""The tries of lookahead: what followed each token, in running prompts and in what was ever generated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count

CLEAN_UP = 1024  # tries touched between two prunings


class Node:
    """A token behind the tokens on its path. `prompts`: its frequency in the prompt of each running request.

    `answers` is its frequency in generated text. Neither is ever larger than that of the node before it.
    """

    __slots__ = ("answers", "children", "prompts")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.prompts: dict[int, float] | None = None
        self.answers = 0.0

    def below(self) -> Iterator[Node]:
        """All descendants."""
        for child in self.children.values():
            yield child
            yield from child.below()


Score = Callable[[Node], float]
"""How much a node is worth to a request; 0 leaves it out. It must not grow with depth."""


class Tree:
    """What followed one first token. `nodes` in all, `answers` of them were generated."""

    __slots__ = ("answers", "nodes", "root")

    def __init__(self) -> None:
        self.root = Node()
        self.nodes = self.answers = 0


class Trie:
    """Tries by their first token. All operations cost what they visit.

    A trie of more than `max_nodes`, or `max_answer_nodes` generated ones, is pruned at the next clean-up.
    """

    def __init__(self, max_nodes: int, max_answer_nodes: int) -> None:
        self.trees: dict[int, Tree] = {}
        self._most = max_nodes, max_answer_nodes
        self._touched: set[int] = set()
        self._sown: dict[int, list[tuple[Tree, Node, int, Node]]] = {}

    @property
    def nodes(self) -> int:
        """Of all tries."""
        return sum(tree.nodes for tree in self.trees.values())

    def insert_prompt(self, source: int, first: int, tail: Sequence[int]) -> None:
        """`tail` follows `first` in the prompt of request `source`."""
        sown = self._sown.setdefault(source, [])
        tree = self._tree(first)
        node = tree.root
        for token in tail:
            parent, node = node, self._child(tree, node, token)
            if node.prompts is None:
                node.prompts = {}
            if source not in node.prompts:
                sown.append((tree, parent, token, node))
            node.prompts[source] = node.prompts.get(source, 0.0) + 1.0

    def insert_answer(self, first: int, tail: Sequence[int]) -> None:
        """`tail` follows `first` in something generated."""
        tree = self._tree(first)
        node = tree.root
        for token in tail:
            node = self._child(tree, node, token)
            tree.answers += node.answers == 0.0
            node.answers += 1.0

    def _tree(self, first: int) -> Tree:
        self._touched.add(first)
        tree = self.trees.get(first)
        if tree is None:
            tree = self.trees[first] = Tree()
        return tree

    @staticmethod
    def _child(tree: Tree, node: Node, token: int) -> Node:
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = Node()
            tree.nodes += 1
        return child

    def find(self, tokens: Sequence[int]) -> Node | None:
        """The node behind these tokens: the first one names the trie."""
        tree = self.trees.get(tokens[0])
        node = None if tree is None else tree.root
        for token in tokens[1:]:
            node = None if node is None else node.children.get(token)
        return node

    def forget_prompt(self, source: int) -> None:
        """A request is over: its prompt counts no more, and what stood there alone is gone (branch elimination)."""
        for tree, parent, token, node in reversed(self._sown.pop(source, [])):
            if node.prompts is None:  # pruned meanwhile
                continue
            del node.prompts[source]
            if not node.prompts:
                node.prompts = None
                if node.answers == 0.0:  # then its descendants, which came later into the list, are gone already
                    del parent.children[token]
                    tree.nodes -= 1

    def clean_up(self) -> None:
        """When many tries have been touched: prunes those of them that are too large."""
        if len(self._touched) < CLEAN_UP:
            return
        for first in self._touched:
            tree = self.trees[first]
            if tree.nodes > self._most[0] or tree.answers > self._most[1]:
                self._prune(tree, tree.root)
            if not tree.root.children:
                del self.trees[first]
        self._touched.clear()

    def _prune(self, tree: Tree, node: Node) -> None:
        """Children generated more than once are halved and visited; the others are dropped with what is below them."""
        for token, child in list(node.children.items()):
            if child.answers > 1.0:
                child.answers *= 0.5
                self._prune(tree, child)
                continue
            del node.children[token]
            for dropped in (child, *child.below()):
                dropped.prompts = None
                tree.nodes -= 1
                tree.answers -= dropped.answers > 0.0

    def held_bytes(self) -> int:
        """Bytes of all nodes and their dictionaries."""
        nodes = (node for tree in self.trees.values() for node in (tree.root, *tree.root.below()))
        return sum(sys.getsizeof(node) + sys.getsizeof(node.children) + sys.getsizeof(node.prompts) for node in nodes)


class Branches:
    """Paths chosen from tries, merged where they begin alike. Node 0 is where they all start."""

    def __init__(self, budget: int) -> None:
        self.tokens: list[int] = [0]
        self.parents: list[int] = [0]
        self._children: list[dict[int, int]] = [{}]
        self.budget = budget

    def __len__(self) -> int:
        """Chosen nodes."""
        return len(self.tokens) - 1

    def add_best(self, start: Node, score: Score, depth: int) -> None:
        """Adds the best descendants of `start`, not deeper than `depth`, until the budget is used up.

        By falling score, of equal ones the shallower first. As scores do not grow with depth, only children of what was
        taken need looking at. What has been chosen already stays, and costs nothing again.
        """
        order = count()
        heap: list[tuple[float, int, int, int, Node, int]] = []

        def offer(node: Node, place: int, level: int) -> None:
            for token, child in node.children.items():
                worth = score(child)
                if worth > 0.0:
                    heappush(heap, (-worth, level, next(order), token, child, place))

        offer(start, 0, 1)
        while heap and len(self) < self.budget:
            _, level, _, token, node, parent = heappop(heap)
            place = self._place(parent, token)
            if level < depth:
                offer(node, place, level + 1)

    def add_one(self, start: Node, score: Score, depth: int) -> None:
        """Adds a single branch: the best child at each level."""
        node, place = start, 0
        for _ in range(min(depth, self.budget)):
            token, node = max(node.children.items(), key=lambda item: score(item[1]), default=(0, Node()))
            if score(node) == 0.0:
                return
            place = self._place(place, token)

    def _place(self, parent: int, token: int) -> int:
        children = self._children[parent]
        if token not in children:
            children[token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self._children.append({})
        return children[token]

    def depth_first(self) -> tuple[list[int], list[int]]:
        """Tokens and parents (-1: the start) in depth-first order, siblings as they were chosen: by falling score."""
        tokens, parents = list[int](), list[int]()
        stack = [(child, -1) for child in reversed(self._children[0].values())]
        while stack:
            node, parent = stack.pop()
            stack += [(child, len(tokens)) for child in reversed(self._children[node].values())]
            tokens.append(self.tokens[node])
            parents.append(parent)
        return tokens, parents

    def side_by_side(self) -> tuple[list[int], list[int]]:
        """The same branches, each for itself: beginnings they share are repeated, as far as the budget goes."""
        tokens, parents = self.depth_first()
        inner = set(parents)
        flat, before = list[int](), list[int]()
        for leaf in range(len(tokens)):
            if leaf in inner:
                continue
            branch, node = list[int](), leaf
            while node >= 0:
                branch.append(tokens[node])
                node = parents[node]
            branch = branch[::-1][: self.budget - len(flat)]
            before += [-1, *range(len(flat), len(flat) + len(branch) - 1)][: len(branch)]
            flat += branch
        return flat, before
