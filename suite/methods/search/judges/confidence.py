"""Self-evaluation by the policy's own probabilities; it finds the mode of the policy, no more (`_verifiers.md`, 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from suite.methods.search.asks import Scoring
from suite.methods.search.trace import Trace
from suite.methods.search.verifier import Judge, Steps


class SelfJudge(Judge):
    """Of each piece the geometric mean of its tokens' probabilities. They are known from sampling: it feeds nothing."""

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        return [[_confidence(trace) for trace in ask.traces] for ask in asked]


def _confidence(trace: Trace) -> Steps:
    return tuple(math.exp(fmean(piece.logprobs)) for piece in trace.lineage if piece.logprobs)
