"""Another judge that is wrong at times: what a search does when its verifier gets worse (`_verifiers.md`, 6 (c))."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from pydantic import Field

from suite.methods.base import MethodConfig
from suite.methods.search.asks import Sampler, Scoring
from suite.methods.search.trace import Trace
from suite.methods.search.verifier import Judge, JudgeName, Steps, make_judge
from suite.models.language_model import TextModel


class FlippedOptions(MethodConfig):
    """`share` of the step scores of judge `of` are turned into their complements."""

    share: float = Field(default=0.2, ge=0, le=1)
    of: JudgeName = "likelihood"


class FlippedJudge(Judge):
    """Which scores are flipped is fixed by the text up to the step's end: a step that is judged again is so again."""

    Options = FlippedOptions
    options: FlippedOptions

    def __init__(self, options: FlippedOptions | None = None) -> None:
        super().__init__(options)
        self._judge = make_judge(self.options.of)

    def refusal(self, policy: TextModel) -> str | None:
        return self._judge.refusal(policy)

    def prepare(self, policy: TextModel) -> None:
        self._judge.prepare(policy)

    def begin(self, policy: TextModel) -> None:
        self._judge.begin(policy)

    def lend(self, sampler: Sampler) -> None:
        self._judge.lend(sampler)

    def score(self, asked: Sequence[Scoring]) -> list[list[Steps]]:
        scored = self._judge.score(asked)
        return [
            [self._flipped(trace, steps) for trace, steps in zip(ask.traces, rows, strict=True)]
            for ask, rows in zip(asked, scored, strict=True)
        ]

    def _flipped(self, trace: Trace, steps: Steps) -> Steps:
        problem = trace.problem
        whole = trace.text.strip().removesuffix(problem.step)
        parts = whole.split(problem.step) if len(steps) > 1 else [whole]
        ends = [problem.step.join(parts[: place + 1]).strip() for place in range(len(steps))]
        return tuple(1 - s if self._hit(problem.id, end) else s for s, end in zip(steps, ends, strict=True))

    def _hit(self, identity: str, text: str) -> bool:
        return crc32(repr((identity, text)).encode()) < self.options.share * 2**32
