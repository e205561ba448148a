"""A*-decoding: of all states seen so far the most promising one goes on, however old it is (2505.13672)."""

from __future__ import annotations

from statistics import fmean
from typing import ClassVar, Literal

from suite.methods.base import Card, Claim, tunable
from suite.methods.search.base import SearchMethod, VerifiedConfig
from suite.methods.search.frontier import Frontier, Node
from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.verifier import Verifier


class AStarConfig(VerifiedConfig):
    """`samples`: continuations of a state (k). f = g + 1 - r; `cost` is what a step adds to g.

    "worsening": how much it lowers r; "improving": how much it raises it; "zero": nothing, greedy best-first search;
    "step": `step_cost`. `reopen_delta`: a state that went on is put back, worse by so much for every time (None: never,
    as printed). `frontier`: open states kept. `width`: states that go on at once; above 1 it is batched A*. It ends
    with the first finished state that is the best of all, or when `expansions` or `tokens` are used up.
    """

    samples: int = tunable(4, low=1, high=256, log=True)
    cost: Literal["worsening", "improving", "zero", "step"] = tunable(
        "worsening", choices=("worsening", "improving", "zero", "step")
    )
    step_cost: float = tunable(0.05, low=0.0, high=1.0)
    reopen_delta: float | None = tunable(None, low=0.0, high=10.0)
    frontier: int | None = tunable(None, low=1, high=10_000, log=True)
    width: int = tunable(1, low=1, high=64, log=True)
    expansions: int = tunable(64, low=1, high=10_000, log=True)
    tokens: int | None = tunable(None, low=1, high=10_000_000, log=True)
    steps: int = tunable(40, low=1, high=200)


class AStarDecoding(SearchMethod):
    """A state is scored once, when it is made; keys and values of all states are kept, so going back costs nothing."""

    Config = AStarConfig
    card: ClassVar[Card] = Card(
        slug="astar_decoding",
        family="search",
        title="A*-Decoding: Token-Efficient Inference Scaling",
        source="arXiv 2505.13672",
        lossless=False,
        claims=(
            Claim("tokens", "it needs fewer generated tokens than particle filtering for the same accuracy",
                  "up to 3x fewer", "tokens of particle filtering per token", 3.0),
            Claim("printed", "it does so without re-opening states", "up to 3x fewer",
                  "tokens of particle filtering per token", 3.0),
            Claim("tokens-bon", "it needs fewer generated tokens than best of n for the same accuracy",
                  "up to 3x fewer", "tokens of best of n per token", 3.0),
            Claim("passes", "it needs fewer verifier passes than particle filtering for the same accuracy",
                  "30 % fewer", "passes of particle filtering per pass", 1.43),
            Claim("depth", "it takes more sequential steps than particle filtering for the same accuracy",
                  "not in the paper", "steps of particle filtering per step"),
            Claim("robust", "wrong scores harm it more than particle filtering", "not in the paper",
                  "accuracy points of particle filtering above it"),
        ),
    )  # fmt: skip

    async def search(self, policy: Policy, verifier: Verifier, config: AStarConfig) -> Answer:
        """Pop, go on, score, push."""
        frontier, walk = Frontier(config.reopen_delta or 0.0, config.frontier), Walk()
        frontier.push(Node(policy.root, 1.0, 0.0))
        dead: list[Node] = []
        while len(frontier) and walk.expansions < config.expansions and _affordable(policy, config):
            popped = frontier.pop(min(config.width, config.expansions - walk.expansions))
            if popped[0].goal:
                return walk.ended(policy, popped[0], frontier)
            walk.go(popped)
            for child in await _expanded(policy, verifier, popped, config):
                if child.goal or (not child.trace.finished and child.trace.depth < config.steps):
                    frontier.push(child)
                else:
                    dead.append(child)
            if config.reopen_delta is not None:
                for node in popped:
                    frontier.push(node)
        policy.ledger.extra["budget_exhausted"] = 1
        return await _completed(policy, walk, frontier, dead)


class Walk:
    """Which states went on, in order."""

    def __init__(self) -> None:
        self.expansions, self._jumps, self._reopened = 0, 0, 0
        self._depths: list[int] = []
        self._last: list[Node] = []

    def go(self, popped: list[Node]) -> None:
        """A jump goes to a state that is no child of those that went on just before."""
        self._jumps += sum(node.parent not in self._last for node in popped) if self._last else 0
        self._reopened += sum(node.expanded > 0 for node in popped)
        self._depths += [node.trace.depth for node in popped]
        self.expansions += len(popped)
        self._last = popped

    def ended(self, policy: Policy, best: Node, frontier: Frontier) -> Answer:
        """The answer, and the walk's figures in the ledger."""
        policy.ledger.extra |= {
            "expansions": self.expansions,
            "back_jump_rate": self._jumps / max(1, self.expansions - 1),
            "reopened": self._reopened,
            "mean_depth": fmean(self._depths or [0]),
        }
        goals = [best, *(node for node in frontier.best() if node.goal and node is not best)]
        return Answer(best.trace, tuple(node.trace for node in goals), tuple(node.r for node in goals))


def _affordable(policy: Policy, config: AStarConfig) -> bool:
    return config.tokens is None or policy.ledger.generated < config.tokens


async def _expanded(policy: Policy, verifier: Verifier, nodes: list[Node], config: AStarConfig) -> list[Node]:
    """The new children of each, all drawn side by side; what a state has said before is dropped."""
    drawn = await policy.step([node.trace for node in nodes for _ in range(config.samples)])
    made: list[tuple[Node, Trace]] = []
    for index, trace in enumerate(drawn):
        node = nodes[index // config.samples]
        if trace.ids not in node.children:
            node.children.add(trace.ids)
            made.append((node, trace))
    for node in nodes:
        node.expanded += 1
    scores = await verifier.scores([trace for _, trace in made])
    return [
        Node(trace, r, node.g + edge(node.r, r, config), node) for (node, trace), r in zip(made, scores, strict=True)
    ]


def edge(before: float, r: float, config: AStarConfig) -> float:
    """What the step from a state with figure `before` to one with figure `r` costs."""
    if config.cost == "worsening":
        return max(0.0, before - r)
    if config.cost == "improving":
        return max(0.0, r - before)
    return config.step_cost if config.cost == "step" else 0.0


async def _completed(policy: Policy, walk: Walk, frontier: Frontier, dead: list[Node]) -> Answer:
    """The best goal there is; else the best open state, greedily to its end; else the best of the dead ends."""
    states = frontier.best()
    goals = [node for node in states if node.goal]
    if goals or not states:
        return walk.ended(policy, goals[0] if goals else max(dead, key=lambda node: node.r), frontier)
    (whole,) = await policy.greedy().finish([states[0].trace])
    return walk.ended(policy, Node(whole, states[0].r, states[0].g, states[0]), frontier)
