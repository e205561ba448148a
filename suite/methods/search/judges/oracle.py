"""The exact oracle of the lab's chains: the ceiling of every table, and no verifier that anybody has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from suite.methods.search.asks import Scoring
from suite.methods.search.trace import Trace
from suite.methods.search.verifier import TINY, Judge, Steps
from suite.models.language_model import TextModel
from workloads.generators.chain import judge, lines, parse, vocabulary
from workloads.schema import DataError


class OracleJudge(Judge):
    """Checks every line against the line before it. It reads the prompt and the trace; a reference it does not know."""

    exact: ClassVar[bool] = True

    def refusal(self, policy: TextModel) -> str | None:
        """Only the models of workload chain write lines that it can check."""
        return None if speaks_chain(policy) else f"it checks workload chain only, which {policy.name} cannot do"

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        return [[_checked(trace) for trace in ask.traces] for ask in asked]


def speaks_chain(model: TextModel) -> bool:
    """Whether the model's tokens are those of the lab's chains."""
    words = vocabulary()
    return model.config.vocab == len(words) and model.tokenizer.encode(words[-1]) == [len(words) - 1]


def _checked(trace: Trace) -> Steps:
    """Of a text that is no problem, such as the cut prompts of the gates, it knows nothing."""
    try:
        problem = parse(trace.problem.prompt)
    except DataError:
        return ()
    return tuple(1 - TINY if right else TINY for right in judge(problem, lines(trace.text)))
