"""`chunkllm`: the boundary head and QK adapters of ChunkLLM (arXiv 2510.02361; card `methods/chunkllm.md`).

Shapes: L selecting layers, T tokens, H query heads, G KV heads, D head dim, R adapter dim (d' of the paper), n chunks.
A chunk is named by its end, the slot behind its last token; that last token is its boundary token.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pysbd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from kernels.segment_reduce import segment_mass
from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel, Tokenizer
from suite.models.recipes.activations import Corpus, from_windows, record, training_text

WINDOWS, LENGTH = 60, 1024  # of text in all, and tokens in each: farther apart than that nothing is learned
HELD_OUT = 5  # every fifth window is for evaluation
LONGEST = 128  # tokens after which a chunk is ended by force
SMALL_HIDDEN = 1024  # models below it get adapters of 64 dimensions, others of 128
MOST_WEIGHT = 10.0  # of a boundary beside other tokens in the loss
RECALL_SHARE = 0.25  # of the chunks a query can choose among
INITIAL = 0.4  # of the scale that keeps variance: the student then starts near uniform, at a KL of 0.9 and not of 1.9
LARGE = -1e9

PLAN = TrainingPlan(
    steps=400, batch=2, lr=5e-4, warmup=20, weight_decay=0.01, clip=1.0, seed=0, eval_every=50, threads=2,
    lr_factors={"boundary": 2.0},
)  # fmt: skip


def adapter_dim(hidden: int) -> int:
    """R for a model of this hidden size."""
    return 64 if hidden < SMALL_HIDDEN else 128


class ChunkAdapters(nn.Module):
    """The chunk adapter (a linear boundary head on the first layer's output) and a linear Q and K adapter per layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers, dim = len(selecting_layers(config)), adapter_dim(config.hidden)
        H, G, D = config.heads, config.kv_heads, config.head_dim
        self.boundary = nn.Linear(config.hidden, 1)
        self.queries = nn.Parameter(torch.randn(layers, H * D, dim) * INITIAL / math.sqrt(H * D))
        self.keys = nn.Parameter(torch.randn(layers, G * D, dim) * INITIAL / math.sqrt(G * D))

    def logits(self, hidden: Tensor) -> Tensor:
        """First layer's output [..., hidden] -> log-odds [...] that a token is the last one of its chunk."""
        return self.boundary(hidden)[..., 0]  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Rotated q [L, T, H D] of tokens and k [L, n, G D] of boundary tokens -> logits [L, T, n] of chunks."""
        student, chunks = torch.bmm(q, self.queries), torch.bmm(k, self.keys)
        return torch.bmm(student, chunks.transpose(1, 2)) / math.sqrt(chunks.shape[2])


def selecting_layers(config: ModelConfig) -> list[int]:
    """Layers with full attention; those with a sliding window read little already."""
    return [layer for layer in range(config.layers) if config.sliding(layer) is None]


def chunk_ends(predicted: Sequence[int], start: int, stop: int, longest: int) -> list[int]:
    """Ends of the chunks that tokens [start, stop) finish: those `predicted`, and one wherever `longest` is reached."""
    ends = [start]
    for end in predicted:
        ends += [*range(ends[-1] + longest, end, longest), end]
    return [*ends, *range(ends[-1] + longest, stop + 1, longest)][1:]


def sentence_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Slots behind the tokens that hold a sentence's last character; the text's own end is none.

    Sentences are those of pySBD: abbreviations, decimals and quotes do not end one, a line break does.
    """
    reached = [len(tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
    splitter = pysbd.Segmenter(language="en", clean=False, char_span=True)
    spans = splitter.segment(tokenizer.decode(ids))
    lasts = (span.start + len(span.sent.rstrip()) for span in spans[:-1])
    return sorted({bisect.bisect_left(reached, last) + 1 for last in lasts})


def teacher(q: Tensor, keys: Tensor, ends: Sequence[int], config: ModelConfig) -> Tensor:
    """q [T, H, D], keys [G, T, D] -> [T, n]: true attention to each finished chunk, renormalised over these.

    Probabilities of the full softmax are summed over a chunk and averaged over heads; a row that has no finished chunk
    before it is 0.
    """
    tokens = torch.arange(len(q), dtype=torch.int32)
    edges, softcap = torch.tensor([0, *ends], dtype=torch.int32), config.attention_softcap
    mass = segment_mass(q, keys, edges, tokens, scale=config.scale, softcap=softcap).mean(dim=1)
    mass = mass * finished(ends, len(q))
    return mass / mass.sum(dim=1, keepdim=True).clamp(min=1e-20)


def finished(ends: Sequence[int], tokens: int) -> Tensor:
    """[T, n]: which chunks were complete before a token."""
    return torch.tensor(ends)[None] <= torch.arange(tokens)[:, None]


@dataclass(frozen=True)
class Example:
    """One window as the adapters see it; activations in bf16, the teacher [L, T, n] in fp32."""

    hidden: Tensor
    labels: Tensor
    q: Tensor
    k: Tensor
    teacher: Tensor
    finished: Tensor

    @property
    def choosing(self) -> Tensor:
        """[T]: tokens that have a choice, two finished chunks at least."""
        return self.finished.sum(dim=1) >= 2


def example(model: LanguageModel, ids: Tensor) -> Example:
    """Runs one window through the frozen model; sentences are the chunks, cut at LONGEST tokens."""
    layers, T = selecting_layers(model.config), len(ids)
    sentences = sentence_ends(model.tokenizer, ids.tolist())
    ends, seen = chunk_ends(sentences, 0, T, LONGEST), record(model, ids, layers)
    labels = torch.zeros(T)
    labels[torch.tensor(sentences, dtype=torch.long) - 1] = 1.0
    last = torch.tensor(ends, dtype=torch.long) - 1
    return Example(
        hidden=seen.hidden.bfloat16(),
        labels=labels,
        q=torch.stack([seen.queries[layer].flatten(1).bfloat16() for layer in layers]),
        k=torch.stack([seen.keys[layer][:, last].transpose(0, 1).flatten(1).bfloat16() for layer in layers]),
        teacher=torch.stack([teacher(seen.queries[n], seen.keys[n], ends, model.config) for n in layers]),
        finished=finished(ends, T),
    )


def boundary_loss(adapters: ChunkAdapters, window: Example) -> Tensor:
    """Binary cross-entropy of the boundary head; the rarer class weighs more."""
    positive = window.labels.sum()
    weight = ((len(window.labels) - positive) / positive.clamp(min=1)).clamp(max=MOST_WEIGHT)
    logits = adapters.logits(window.hidden.float())
    return functional.binary_cross_entropy_with_logits(logits, window.labels, pos_weight=weight)


def divergence(scores: Tensor, window: Example) -> Tensor:
    """KL(teacher || student) in nats, [L, T]: scores [L, T, n] are normalised over each token's finished chunks."""
    student = scores.masked_fill(~window.finished, LARGE).log_softmax(dim=-1)
    return (torch.xlogy(window.teacher, window.teacher) - window.teacher * student).sum(dim=-1)


def recall(scores: Tensor, window: Example, share: float) -> Tensor:
    """Part of the teacher's best chunks among the scores' best, [L, rows]; rows with fewer than 1 / share have none."""
    counts = (window.finished.sum(dim=1) * share).int()
    ours, theirs = (best(s, window.finished, counts) for s in (scores, window.teacher))
    return ((ours & theirs).sum(dim=-1) / counts)[:, counts > 0]


def best(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """scores [L, T, n] -> bool: the `counts` [T] largest of each row among `among` [T, n]; ties to the earlier."""
    order = scores.masked_fill(~among, LARGE).argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1) < counts[:, None]


class ChunkLLMRecipe:
    """The recipe: boundary cross-entropy, plus KL from the true attention mass of chunks, mean over layers.

    Nothing is read or run before the first loss; the model itself is only run forward, without gradients. A model's own
    prose has few abbreviations and decimals: on text dense in them the boundary head is no better than a split at . ! ?
    (F1 0.75 both on the page of the tests). Give text of that kind as `data` where it matters.
    """

    name = "chunkllm"
    version = "2"
    summary = "boundary head on layer 1 and one linear Q and K adapter per layer, distilled from full attention"
    selection = (
        "the initial scale was settled by KL on the held-out fifth of windows of 512 tokens over four runs; the "
        "weights are those of the best evaluation by chunk recall there"
    )
    dev_figure = "recall_25"

    def __init__(self, model: LanguageModel, data: Path | None = None, plan: TrainingPlan = PLAN) -> None:
        self.model, self.path, self.plan = model, data, plan

    @cached_property
    def corpus(self) -> Corpus:
        """The windows of text."""
        return training_text(self.model, self.path, WINDOWS, LENGTH, self.plan.seed)

    @property
    def data(self) -> DataSource:
        """Where the text came from."""
        return self.corpus.source

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """For training, and held out; about 45 MB each for a model of 30 layers."""
        made = from_windows(self.corpus, partial(example, self.model))
        return [e for i, e in enumerate(made) if (i + 1) % HELD_OUT], made[HELD_OUT - 1 :: HELD_OUT] or made[-1:]

    def build(self) -> ChunkAdapters:
        """Random adapters for this model's shapes."""
        return ChunkAdapters(self.model.config)

    def loss(self, adapters: ChunkAdapters, rng: np.random.Generator) -> Tensor:
        """Mean over `batch` windows."""
        windows = self.examples[0]
        drawn = [windows[i] for i in rng.choice(len(windows), self.plan.batch)]
        losses = [boundary_loss(adapters, w) + self._distance(adapters, w).mean() for w in drawn]
        return torch.stack(losses).mean()

    def _distance(self, adapters: ChunkAdapters, window: Example) -> Tensor:
        return divergence(adapters.scores(window.q.float(), window.k.float()), window)[:, window.choosing]

    def evaluate(self, adapters: ChunkAdapters) -> dict[str, float]:
        """On held-out windows: F1 of boundaries, recall of the teacher's best quarter of chunks, KL in nats."""
        windows = self.examples[1]
        scores = [adapters.scores(w.q.float(), w.k.float()) for w in windows]
        distances = [divergence(s, w)[:, w.choosing] for s, w in zip(scores, windows, strict=True)]
        recalls = [recall(s, w, RECALL_SHARE) for s, w in zip(scores, windows, strict=True)]
        predicted = torch.cat([adapters.logits(w.hidden.float()) > 0 for w in windows])
        labels = torch.cat([w.labels for w in windows]).bool()
        return {
            "boundary_f1": f1(predicted, labels),
            "recall_25": float(torch.cat(recalls, dim=1).mean()),
            "kl": float(torch.cat(distances, dim=1).mean()),
        }

    def describe(self, adapters: ChunkAdapters) -> dict[str, Any]:
        """The model these adapters belong to, and their size."""
        layers, _, dim = adapters.queries.shape
        parameters = sum(p.numel() for p in adapters.parameters())
        base = {"base_model": self.model.name, "base_digest": self.model.digest}
        return {**base, "layers": layers, "adapter_dim": dim, "parameters": parameters}

    def save(self, adapters: ChunkAdapters, directory: Path) -> None:
        """One file in fp16."""
        weights = {name: value.half().contiguous() for name, value in adapters.state_dict().items()}
        save_file(weights, directory / "model.safetensors")


def f1(predicted: Tensor, labels: Tensor) -> float:
    """Harmonic mean of precision and recall; 0 when nothing is right."""
    right = int((predicted & labels).sum())
    return 2 * right / max(1, int(predicted.sum()) + int(labels.sum()))
