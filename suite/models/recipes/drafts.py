"""What recipes for draft models share: text that the model wrote, and the states its owner had over it.

Shapes: n windows of T tokens; a state is what a head reads, behind the final norm. A draft model speaks the VOCAB first
tokens of the tokenizer only: merges come in the order of their frequency, so these are nearly all of any text, and a
full head would cost a small model's draft as much as its layers do (FR-Spec, arXiv 2502.14856, ranks tokens for this).
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import Corpus, from_windows, training_text

VOCAB = 16384
WINDOWS, LENGTH, HELD_OUT = 80, 512, 8

PLAN = TrainingPlan(
    steps=200, batch=2, lr=1e-3, warmup=20, weight_decay=0.01, clip=1.0, seed=0, eval_every=50, beta2=0.99
)  # fmt: skip

Draft = TypeVar("Draft", bound=nn.Module)


class DraftRecipe(Generic[Draft]):
    """The recipe but for what is built and what it loses. The owner is the model whose states are learned from."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    summary: ClassVar[str]
    selection: ClassVar[str] = (
        "settings were set once (nothing compared); the weights are those of the best evaluation by agreement on the "
        "last windows of the text, which are not trained on"
    )
    dev_figure = "agreement"

    def __init__(self, model: LanguageModel, data: Path | None = None, plan: TrainingPlan = PLAN) -> None:
        self.model, self.path, self.plan = model, data, plan

    @property
    @abstractmethod
    def owner(self) -> Decoder:
        """The decoder whose states are learned from."""

    @abstractmethod
    def build(self) -> Draft:
        """A new draft model; reads no text."""

    @abstractmethod
    def distance(self, draft: Draft, ids: Tensor, states: Tensor) -> Tensor:
        """The scalar loss on windows ids [b, T] with the owner's states fp32 [b, T, hidden]."""

    @abstractmethod
    def choices(self, draft: Draft, ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely tokens of the draft and of the owner at the same places, both [b, places]."""

    @cached_property
    def corpus(self) -> Corpus:
        """The windows of text."""
        return training_text(self.model, self.path, WINDOWS, LENGTH, self.plan.seed)

    @property
    def data(self) -> DataSource:
        """Where the text came from."""
        return self.corpus.source

    @cached_property
    def states(self) -> Tensor:
        """The owner's over all windows, bf16 [n, T, hidden]."""
        return torch.stack(from_windows(self.corpus, self._states_of))

    @torch.no_grad()
    def _states_of(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.owner.train_states(ids[None])[0].bfloat16()

    @property
    def _held_out(self) -> int:
        """The last windows of the corpus, and at most half of it."""
        return min(HELD_OUT, len(self.corpus.windows) // 2)

    def loss(self, draft: Draft, rng: np.random.Generator) -> Tensor:
        """On `batch` training windows; matrix products in bf16."""
        drawn = torch.from_numpy(rng.integers(len(self.corpus.windows) - self._held_out, size=self.plan.batch))
        with torch.autocast("cpu", torch.bfloat16):
            return self.distance(draft, self.corpus.windows[drawn], self.states[drawn].float())

    def evaluate(self, draft: Draft) -> dict[str, float]:
        """The share of held-out places where draft and owner think the same token the most likely one."""
        ids, states = self.corpus.windows[-self._held_out :], self.states[-self._held_out :].float()
        same = [torch.eq(*self.choices(draft, ids[i, None], states[i, None])) for i in range(len(ids))]
        return {"agreement": float(torch.cat(same).float().mean())}

    def describe(self, draft: Draft) -> dict[str, Any]:
        """The model this was made for, and its size."""
        return {
            "base_model": self.model.name,
            "base_digest": self.model.digest,
            "vocab": draft_vocab(self.model.decoder),
            "parameters": sum(p.numel() for p in draft.parameters()),
        }


def draft_vocab(decoder: Decoder) -> int:
    """Tokens a draft model of this decoder speaks."""
    return min(VOCAB, decoder.config.vocab)


def soft_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of the student's law under the teacher's, mean over all rows [..., vocab]; the teacher gets no gradient."""
    law = teacher.detach().float().softmax(dim=-1)
    return -(law * logits.float().log_softmax(dim=-1)).sum(dim=-1).mean()
