"""The states of a best-first search, and which of them is the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nsmallest

from suite.methods.search.trace import Trace
from workloads.answers import extract


@dataclass(eq=False)
class Node:
    """A state: its trace, the verifier's figure r, the cost g of the way to it, and what came of it."""

    trace: Trace
    r: float
    g: float
    parent: Node | None = None
    expanded: int = 0
    children: set[tuple[int, ...]] = field(default_factory=set)

    def f(self, delta: float) -> float:
        """What is expected of it: the least is the best."""
        return self.g + 1 - self.r + delta * self.expanded

    @property
    def goal(self) -> bool:
        """It ended by itself, or the tokens ran out behind an answer."""
        end, problem = self.trace.end, self.trace.problem
        return end in ("eos", "stop") or (end == "length" and extract(problem.answer, self.trace.text) is not None)


class Frontier:
    """All open states; the least f first, of equal ones the larger r, then the deeper, then the older."""

    def __init__(self, delta: float, most: int | None) -> None:
        self._delta, self._most = delta, most
        self._heap: list[tuple[float, float, int, int, Node]] = []
        self._pushed = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, node: Node) -> None:
        """A new state, or one that is open again."""
        heappush(self._heap, (node.f(self._delta), -node.r, -node.trace.depth, self._pushed, node))
        self._pushed += 1
        if self._most is not None and len(self._heap) > self._most:
            self._heap = nsmallest(self._most, self._heap)
            heapify(self._heap)

    def pop(self, width: int) -> list[Node]:
        """The best states, `width` at most. A goal comes alone, and only as the best of all."""
        popped: list[Node] = []
        while self._heap and len(popped) < width and not (popped and self._heap[0][-1].goal):
            popped.append(heappop(self._heap)[-1])
            if popped[0].goal:
                break
        return popped

    def best(self) -> list[Node]:
        """All of them, the best first."""
        return [entry[-1] for entry in sorted(self._heap)]
