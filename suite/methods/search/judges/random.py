"""The floor of every table: a judge that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from suite.methods.search.asks import Scoring
from suite.methods.search.trace import Trace
from suite.methods.search.verifier import Judge, Steps


class RandomJudge(Judge):
    """A uniform score, fixed by the tokens and the seed: no trace has two scores."""

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        return [[_drawn(trace) for trace in ask.traces] for ask in asked]


def _drawn(trace: Trace) -> Steps:
    said = crc32(repr((trace.problem.id, trace.all_ids)).encode())
    return (float(np.random.default_rng([trace.problem.seed, said]).random()),)
