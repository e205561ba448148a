"""Sparsity refinement of Qwen2.5-1M (arXiv 2501.15383; card qwen2_5_1m, section 4): more for heads that lose too much.

A calibration text of the full target length runs through the model with full attention. In every segment each head's
sparse attention is run beside it: recall = exp(lse_sparse - lse_full), averaged over the segment's queries, is the
share of softmax mass it holds. A head below THRESHOLD climbs the ladder of columns and diagonals until it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from suite.methods.attention.base import SelectedAttention
from suite.methods.attention.dual_chunk import Region, whole
from suite.methods.attention.head_sparsity import HeadSparsity
from suite.methods.attention.qwen2_5_1m import Qwen25OneM
from suite.methods.attention.selection import LIST_BLOCK, Plan, Site
from suite.models.attention import Step
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import written_by

THRESHOLD, MOST_STEPS = 0.95, 8
STEP_SHARE = 512
"""A step adds one column and one diagonal for so many tokens of the text: 2048 at 1M, as on the shipped ladders."""


@dataclass(frozen=True)
class Watched:
    """Full attention of one segment, beside which the sparse one is measured and, where it lacks, enlarged."""

    method: Refining
    layer: int
    row: int
    regions: list[Region]
    step: Step

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """The full result."""
        full = whole(self.regions, site.first, len(q)).attend(q, site)
        for _ in range(self.method.steps + 1):
            sparse = self.method.sparse(self.layer, q, self.row, site.first, self.regions, self.step).attend(q, site)
            recall = (sparse[1] - full[1]).exp().clamp(max=1).mean(dim=0)
            if not self.method.climb(self.layer, recall):
                break
        return full


class Refining(Qwen25OneM):
    """Reads everything, and measures what the sparse plan would have held; heads climb at most `steps` times."""

    def __init__(self, start: HeadSparsity | None, steps: int) -> None:
        self.start, self.steps = start, steps

    def begin_batch(self, model: Any, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        if self.start is not None:
            self.heads = self.start
        self.rung = torch.zeros_like(self.heads.verticals)
        self.heads.recall = torch.zeros(self.rung.shape)

    def segment(self, layer: int, q: Tensor, row: int, first: int, regions: list[Region], step: Step) -> Plan:
        return Watched(self, layer, row, regions, step)

    def climb(self, layer: int, recall: Tensor) -> bool:
        """Notes the heads' recall [H] and gives a step to those that may have one; whether any got it."""
        self.heads.recall[layer] = recall
        lacking = (recall < THRESHOLD) & (self.rung[layer] < self.steps)
        self.rung[layer] += lacking
        grow = lacking * max(LIST_BLOCK, self._config.calibration // STEP_SHARE)
        self.heads.verticals[layer] += grow
        self.heads.slashes[layer] += grow
        return bool(lacking.any())


def refine(model: LanguageModel, config: Any) -> HeadSparsity:
    """Refined figures for every head, from `config.calibration` tokens that the model writes itself."""
    with Console(stderr=True).status(f"refining the sparsity of {model.name}") as status:
        ids = written_by(model, 1, config.calibration, 0, status.update).windows
        return refine_on(model, config, ids)


def refine_on(
    model: LanguageModel, config: Any, ids: Tensor, start: HeadSparsity | None = None, steps: int = MOST_STEPS
) -> HeadSparsity:
    """Refined figures for every head, from token ids [1, T] and the config's figures or `start`, which is changed.

    With no steps the recall of `start` is measured.
    """
    method = Refining(start, steps)
    method.begin_batch(model.config, config, 1)
    attention = SelectedAttention(model.config, method)
    cache = model.decoder.new_cache(1, ids.shape[1])
    with torch.inference_mode():
        for first in range(0, ids.shape[1], config.pass_tokens):
            model.decoder(ids[:, first : first + config.pass_tokens], cache, attention)
    return method.heads
