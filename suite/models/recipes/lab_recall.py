"""`lab-recall`: a tiny RoPE decoder trained on multi-needle recall (card `methods/longheads.md`, "At small scale")."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional

from suite.models.checkpoints.export import save_llama
from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.tokenizer import HFTokenizer
from workloads.recall import SPECIALS, Recall, training_batch, vocabulary

CONTEXT = 128  # tokens: the longest training sequence
SHORTEST = 32
QUERIES = 4  # per training sequence, so that the signal is dense; an evaluation item has one
DEV_SEED, DEV_ITEMS = 1_000_003, 256  # held out: training draws from seeds [plan.seed, step]

PLAN = TrainingPlan(
    steps=4500, batch=32, lr=2e-3, warmup=100, weight_decay=0.01, clip=1.0, seed=0, eval_every=250
)  # fmt: skip


def model_config() -> ModelConfig:
    """3 layers, hidden 64, 4 heads of 16; tied, so that what reads a key and what writes it are one vector."""
    words = vocabulary()
    return ModelConfig(
        "llama", layers=3, hidden=64, intermediate=192, heads=4, kv_heads=4, head_dim=16,
        vocab=len(words), window=CONTEXT, tied=True, eos_ids=(words.index("<eos>"),),
    )  # fmt: skip


def tokenizer() -> HFTokenizer:
    """One id per whitespace-separated word of `workloads.recall.vocabulary()`; a prompt begins with `<bos>`."""
    pad, bos, eos, unknown = SPECIALS
    ids = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(WordLevel(ids, unk_token=unknown))
    backend.add_special_tokens(list(SPECIALS))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unknown, "pad_token": pad}
    return HFTokenizer(backend, None, special)


class LabRecall:
    """The recipe. Its loss is the answers' cross-entropy plus that of every next token.

    With the answers alone the model stalls at a third of the first digits: keys are then never predicted, so nothing
    keeps their embeddings apart, and it learns to copy some digit that follows some key.
    """

    name = "lab-recall"
    version = "1"
    summary = "3-layer RoPE decoder, hidden 64, 4 heads of 16, context 128, on multi-needle key-value recall"
    selection = ""
    dev_figure = f"digit_accuracy_{CONTEXT}"

    def __init__(self, plan: TrainingPlan = PLAN) -> None:
        self.plan = plan
        self.data = DataSource(name=Recall.name, version=Recall.version, revision=Recall().revision(plan.seed))

    def build(self) -> Decoder:
        """A decoder with the normal initialisation of its modules."""
        return Decoder(model_config())

    def loss(self, model: Decoder, rng: np.random.Generator) -> Tensor:
        """One batch of sequences of one random length, SHORTEST to CONTEXT tokens."""
        length = int(rng.integers(SHORTEST, CONTEXT, endpoint=True))
        ids, mask = (torch.from_numpy(array) for array in training_batch(rng, self.plan.batch, length, QUERIES))
        logits, targets, answers = model.train_logits(ids)[:, :-1], ids[:, 1:], mask[:, 1:]
        every = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return every + functional.cross_entropy(logits[answers], targets[answers])

    def evaluate(self, model: Decoder) -> dict[str, float]:
        """Teacher-forced digit accuracy, 0-1, on fresh items of the shortest and the longest trained length."""
        return {f"digit_accuracy_{length}": digit_accuracy(model, length) for length in (SHORTEST, CONTEXT)}

    def describe(self, model: Decoder) -> dict[str, Any]:
        """Shape and size of the decoder."""
        return {**asdict(model.config), "parameters": sum(p.numel() for p in model.parameters())}

    def save(self, model: Decoder, directory: Path) -> None:
        """A Hugging Face directory in fp32."""
        save_llama(model, tokenizer(), directory)


def digit_accuracy(model: Decoder, length: int) -> float:
    """Share of answer digits that are the most likely token after the true text before them; chance is 1/16."""
    rng = np.random.default_rng([DEV_SEED, length])
    ids, mask = (torch.from_numpy(array) for array in training_batch(rng, DEV_ITEMS, length, 1))
    predicted = model.train_logits(ids)[:, :-1].argmax(dim=-1)
    right = (predicted == ids[:, 1:])[mask[:, 1:]]
    return float(right.float().mean())
