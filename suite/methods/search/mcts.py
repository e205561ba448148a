"""Monte Carlo tree search over steps, with a verifier in place of rollouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log, sqrt
from typing import ClassVar

from suite.methods.base import Card, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace, distinct
from suite.methods.search.verifier import Verifier

C_INIT, C_BASE = 1.25, 19652.0


class MCTSConfig(VerifiedConfig):
    """`samples`: children of a node. Before each step of the answer `simulations` walks go down from where it is."""

    samples: int = tunable(4, low=1, high=256, log=True)
    simulations: int = tunable(5, low=1, high=1000, log=True)
    steps: int = tunable(40, low=1, high=200)


@dataclass(eq=False)
class Node:
    """A prefix, the verifier's figure of it, and the walks that came through it."""

    trace: Trace
    value: float
    visits: int = 0
    total: float = 0.0
    children: list[Node] = field(default_factory=list)

    @property
    def q(self) -> float:
        """The mean of what walks brought back; its own figure before there were any."""
        return self.total / self.visits if self.visits else self.value

    def puct(self) -> Node:
        """The child to go to: a high mean, or few visits; the first of equals."""
        c = C_INIT + log((self.visits + C_BASE + 1) / C_BASE)
        return max(self.children, key=lambda child: child.q + c * sqrt(self.visits) / (1 + child.visits))

    def below(self) -> Iterator[Node]:
        """This node and all under it."""
        yield self
        for child in self.children:
            yield from child.below()


class MCTS(SearchMethod):
    """As in AlphaZero, without a prior: select, expand, back up, go to the child with most visits.

    `bag_of_tricks`, section 3, method 5.
    """

    Config = MCTSConfig
    card: ClassVar[Card] = Card(
        slug="mcts",
        family="control",
        title="Bag of Tricks for Inference-time Computation of LLM Reasoning: MCTS",
        source="arXiv 2502.07191",
        lossless=False,
    )

    async def search(self, policy: Policy, verifier: Verifier, config: MCTSConfig) -> Answer:
        """A step of the answer at a time; what lies below it is kept."""
        node = root = Node(policy.root, 0.5)
        await _expand(policy, verifier, root, config.samples)
        while not node.trace.finished and node.trace.depth < config.steps:
            for _ in range(config.simulations):
                await _simulate(policy, verifier, node, config)
            node = max(node.children, key=lambda child: (child.visits, child.q))
        policy.ledger.extra["most_visits"] = max(child.visits for child in root.children)
        ends = [node, *(found for found in root.below() if found.trace.finished and found is not node)]
        return Answer(node.trace, tuple(end.trace for end in ends), tuple(end.value for end in ends))


async def _simulate(policy: Policy, verifier: Verifier, start: Node, config: MCTSConfig) -> None:
    """Down to a leaf, which gets children unless nothing can follow; its figure goes up to where the walk began."""
    path = [start]
    while path[-1].children:
        path.append(path[-1].puct())
    leaf = path[-1]
    if not leaf.trace.finished:
        await _expand(policy, verifier, leaf, config.samples)
    for node in path:
        node.visits += 1
        node.total += leaf.value


async def _expand(policy: Policy, verifier: Verifier, node: Node, count: int) -> None:
    steps = distinct(await policy.step([node.trace] * count))
    node.children = [Node(step, r) for step, r in zip(steps, await verifier.scores(steps), strict=True)]
