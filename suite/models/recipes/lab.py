"""What the recipes of the lab models share: initialisation, loss, dev accuracy and files of a small decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional

from suite.models.checkpoints.export import save_llama
from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.tokenizer import HFTokenizer
from workloads.lab import SPECIALS, BoolArray, IntArray, LabWorkload

NEXT_TOKEN_WEIGHT = 0.3  # of every next token's loss beside the answers'
DEV_SEED, DEV_ITEMS = 1_000_003, 256  # held out: training draws from seeds [plan.seed, step]


class LabRecipe(ABC):
    """A decoder made in minutes. Its loss is the answers' cross-entropy plus a share of that of every next token."""

    name: str
    version: str
    summary: str
    selection: str
    dev_figure: str
    workload: ClassVar[type[LabWorkload]]
    config: ClassVar[ModelConfig]

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        revision = self.workload().revision(plan.seed)
        self.data = DataSource(name=self.workload.name, version=self.workload.version, revision=revision)

    @abstractmethod
    def batch(self, rng: np.random.Generator) -> tuple[IntArray, BoolArray]:
        """Training sequences [B, T] and which of their tokens are answers."""

    @abstractmethod
    def evaluate(self, model: Decoder) -> dict[str, float]:
        """Teacher-forced accuracies, 0-1, on fresh items."""

    @abstractmethod
    def words(self) -> Sequence[str]:
        """The vocabulary, in the order of the ids."""

    def build(self) -> Decoder:
        """A decoder whose embeddings have unit variance and whose layers start by adding little to them."""
        model = Decoder(self.config)
        nn.init.normal_(model.embedding.weight)
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
                nn.init.normal_(weight, std=0.02)
        return model

    def loss(self, model: Decoder, rng: np.random.Generator) -> Tensor:
        """Of one batch of sequences of one length."""
        ids, mask = (torch.from_numpy(array) for array in self.batch(rng))
        logits, targets, answers = model.train_logits(ids)[:, :-1], ids[:, 1:], mask[:, 1:]
        every = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return NEXT_TOKEN_WEIGHT * every + functional.cross_entropy(logits[answers], targets[answers])

    def describe(self, model: Decoder) -> dict[str, Any]:
        """Shape and size of the decoder."""
        return {**asdict(model.config), "parameters": sum(p.numel() for p in model.parameters())}

    def save(self, model: Decoder, directory: Path) -> None:
        """A Hugging Face directory in fp32."""
        save_llama(model, word_tokenizer(self.words()), directory)


def answer_accuracy(model: Decoder, batch: tuple[IntArray, BoolArray]) -> float:
    """Share of answer tokens that are the most likely token after the true text before them; chance is 1/16."""
    ids, mask = (torch.from_numpy(array) for array in batch)
    predicted = model.train_logits(ids)[:, :-1].argmax(dim=-1)
    right = (predicted == ids[:, 1:])[mask[:, 1:]]
    return float(right.float().mean())


def word_tokenizer(words: Sequence[str]) -> HFTokenizer:
    """One id per whitespace-separated word; a prompt begins with `<bos>`."""
    pad, bos, eos, unknown = SPECIALS
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(WordLevel(ids, unk_token=unknown))
    backend.add_special_tokens(list(SPECIALS))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "pad_token": pad}
    return HFTokenizer(backend, None, special)
