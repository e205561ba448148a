"""The trained reward models of the reasoning lab (`_verifiers.md`, section 6 (b))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from suite.methods.search.judges.reading import ReadingJudge, sigmoid
from suite.methods.search.verifier import Steps
from suite.models.language_model import TextModel
from suite.models.loaders import lab
from suite.models.rewards import TokenReward, right_or_wrong


class ProcessJudge(ReadingJudge):
    """`chain-prm`: how likely each step is right, read where it ends."""

    behind: ClassVar[bool] = False
    checkpoint: ClassVar[str] = "chain-prm"

    def prepare(self, policy: TextModel) -> None:
        model = lab.reward(self.checkpoint)
        assert isinstance(model, TokenReward)
        self._decoder = model.decoder

    def _values(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        return right_or_wrong(logits)

    def _steps(self, values: Sequence[float], ends: Sequence[int]) -> Steps:
        return tuple(sigmoid(values[end]) for end in ends)


class OutcomeJudge(ProcessJudge):
    """`chain-orm`: how likely the whole is right, read at its last token."""

    checkpoint: ClassVar[str] = "chain-orm"

    def _steps(self, values: Sequence[float], ends: Sequence[int]) -> Steps:
        return super()._steps(values, ends[-1:])
