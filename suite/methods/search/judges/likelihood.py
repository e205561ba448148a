"""The likelihood PRM of the reasoning lab (`_verifiers.md`, section 6 (a))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from suite.methods.search.judges.reading import ReadingJudge, sigmoid
from suite.methods.search.verifier import Steps
from suite.models.language_model import TextModel
from suite.models.loaders import lab
from suite.models.rewards import CLIP, LikelihoodPRM


class LikelihoodJudge(ReadingJudge):
    """sigmoid(a + b x) of every step, x its log-likelihood under `chain-strong`, not below CLIP nats."""

    behind: ClassVar[bool] = True

    def prepare(self, policy: TextModel) -> None:
        model = lab.reward("chain-likelihood")
        assert isinstance(model, LikelihoodPRM)
        self._decoder, self._a, self._b = model.decoder, model.a.item(), model.b.item()

    def _values(self, logits: Tensor, ids: Sequence[int]) -> Tensor:
        return logits.log_softmax(dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]

    def _steps(self, values: Sequence[float], ends: Sequence[int]) -> Steps:
        starts = [0, *(end + 1 for end in ends[:-1])]
        sums = (max(CLIP, sum(values[a : b + 1])) for a, b in zip(starts, ends, strict=True))
        return tuple(sigmoid(self._a + self._b * x) for x in sums)
