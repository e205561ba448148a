"""Votes of finished traces by what they answer (`_verifiers.md`, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Literal
from zlib import crc32

import numpy as np

from suite.methods.search.trace import Trace
from workloads.answers import NO_CLASS, classes, extract

Tie = Literal["first", "random", "shortest"]
"""Of classes with equally many votes: the one whose first member came first, any, or the one with the shortest member.
"""


@dataclass(frozen=True)
class Ballot:
    """A vote: the indices of the traces that answer as the winner, in order; all of them where nobody answers."""

    members: tuple[int, ...]
    tied: bool

    @property
    def winner(self) -> int:
        """The first of them stands for all."""
        return self.members[0]


def answers(trace: Trace) -> bool:
    """Whether it answers anything."""
    return extract(trace.problem.answer, trace.text) is not None


def vote(
    traces: Sequence[Trace],
    weights: Sequence[float] | None = None,
    tie: Tie = "first",
    lengths: Sequence[int] | None = None,
) -> Ballot:
    """The class of answers with most votes, or with the largest sum of `weights`. A trace without answer has no vote.

    `lengths` are what "shortest" goes by, if it is not all that was written.
    """
    kind = traces[0].problem.answer
    parties: dict[int, list[int]] = {}
    for index, party in enumerate(classes(kind, [extract(kind, trace.text) for trace in traces])):
        if party != NO_CLASS:
            parties.setdefault(party, []).append(index)
    if not parties:
        return Ballot(tuple(range(len(traces))), tied=False)
    sums = {party: float(sum(_weight(weights, i) for i in members)) for party, members in parties.items()}
    most = max(sums.values())
    best = [parties[party] for party, votes in sums.items() if isclose(votes, most, rel_tol=1e-9)]
    if tie == "shortest":
        sizes = [trace.length for trace in traces] if lengths is None else lengths
        best.sort(key=lambda each: min(sizes[i] for i in each))
    chosen = _drawn(traces, len(best)) if tie == "random" else 0
    return Ballot(tuple(best[chosen]), tied=len(best) > 1)


def min_max(scores: Sequence[float]) -> list[float]:
    """The scores stretched to [0, 1]; all 1 where they are equal (`bag_of_tricks`)."""
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) if high > low else 1.0 for score in scores]


def _drawn(traces: Sequence[Trace], count: int) -> int:
    """A number below `count`, fixed by what is voted on."""
    said = crc32(repr([(trace.problem.id, trace.all_ids) for trace in traces]).encode())
    return int(np.random.default_rng([traces[0].problem.seed, said]).integers(count))


def _weight(weights: Sequence[float] | None, index: int) -> float:
    return 1.0 if weights is None else weights[index]
