"""`dhsa`: the boundary predictor of DHSA (arXiv 2510.24606, first version; card `methods/dhsa.md`).

A gap between two tokens is a boundary where later queries treat the tokens before it and after it differently. The
predictor learns that from attention maps of short windows and later sees keys only. Shapes: L tokens of a window,
C = G D features of a token (the rotated keys of all KV heads), w = REACH tokens on either side of a gap, W gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import Corpus, from_windows, record, training_text

REACH = 4
HEADS = 4  # the release trains with 4 and infers with 8, which loads without an error; one value here
HIDDEN = 256
UNKNOWN = -100.0  # logit of a gap whose window would reach past the text
PIECE = 256  # gaps per slice: what is computed for every window and not for every token stays in the cache

MIN_RATIO, EPSILON = 2.0, 1e-6
GAMMA, POSITIVE_WEIGHT = 2.0, 1.3
WINDOWS, LENGTH, HELD_OUT, LAYERS = 48, 512, 8, 6

PLAN = TrainingPlan(
    steps=240, batch=1, lr=1e-3, warmup=20, weight_decay=0.01, clip=1.0, seed=0, eval_every=40, threads=2
)  # fmt: skip


class BoundaryPredictor(nn.Module):
    """Keys [N, L, C] -> logits [N, L]: whether a chunk ends after each token.

    Multi-head self-attention inside the window of 2w tokens around a gap, LayerNorm without a residual, and a small
    network on the means l and r of both halves. A token lies in 2w windows, but is projected once (twice at the
    seams of pieces): what differs between windows are the attention weights alone. The output projection is applied to
    the values before they are mixed.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(features, 3 * features)
        self.out = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)
        self.fuse = nn.Sequential(nn.Linear(4 * features + 1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, keys: Tensor) -> Tensor:
        windows = keys.shape[1] - 2 * REACH + 1
        if windows < 1:
            return keys.new_full(keys.shape[:2], UNKNOWN)
        parts = []
        for start in range(0, windows, PIECE):
            tokens = slice(start, min(start + PIECE, windows) + 2 * REACH - 1)
            parts.append(self._judge(*self._project(keys[:, tokens])))  # a long prompt's q, k, v never lie there whole
        return functional.pad(torch.cat(parts, dim=1), (REACH - 1, REACH), value=UNKNOWN)

    def _project(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Once per token: q and k [N, L, h, C / h], and each head's share of the output [N, L, h, C]."""
        q, k, v = self.qkv(keys).unflatten(-1, (3, HEADS, -1)).unbind(dim=2)
        weight = self.out.weight.view(-1, HEADS, v.shape[-1])
        return q * v.shape[-1] ** -0.5, k, torch.einsum("nlhd,chd->nlhc", v, weight)

    def _judge(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Logits [N, W] of the gaps whose whole windows are given."""
        weights = (_windows(q).transpose(2, 3) @ _windows(k).permute(0, 1, 3, 4, 2)).softmax(dim=-1)
        mixing = weights.permute(0, 1, 3, 4, 2).flatten(3)  # [N, W, 2w, 2w h]
        encoded = self.norm(mixing @ _windows(v).flatten(2, 3) + self.out.bias)
        left, right = encoded[:, :, :REACH].mean(dim=2), encoded[:, :, REACH:].mean(dim=2)
        alike = functional.cosine_similarity(left, right, dim=-1, eps=EPSILON)[..., None]
        fused = torch.cat((left, right, (left - right).abs(), left * right, alike), dim=-1)
        logits: Tensor = self.fuse(fused)[..., 0]
        return logits


def _windows(x: Tensor) -> Tensor:
    """[N, L, h, d] -> [N, W, 2w, h, d], a view: every 2w tokens in a row."""
    return x.unfold(1, 2 * REACH, 1).movedim(-1, 2)


@dataclass(frozen=True)
class Document:
    """One window of text: keys [layers, L, C] and labels bool [layers, L]; only those of `judged` gaps count."""

    keys: Tensor
    labels: Tensor


class BoundaryRecipe:
    """The recipe: one predictor for all layers, the backbone frozen."""

    name = "dhsa"
    version = "2"
    summary = f"boundary predictor for DHSA, on {WINDOWS} windows of {LENGTH} tokens, {LAYERS} layers each"
    selection = (
        "settings of the paper but for learning rate and number of epochs, set once for so little text (one trial run, "
        "nothing compared); the weights are those of the best evaluation by dev F1"
    )
    dev_figure = "f1"

    def __init__(self, model: LanguageModel, data: Path | None = None, plan: TrainingPlan = PLAN) -> None:
        self.plan = plan
        self._model, self._path = model, data

    @cached_property
    def data(self) -> DataSource:
        """The text, known once it is there."""
        return self._corpus.source

    @cached_property
    def _corpus(self) -> Corpus:
        return training_text(self._model, self._path, WINDOWS, LENGTH, self.plan.seed)

    @cached_property
    def _documents(self) -> list[Document]:
        return from_windows(self._corpus, partial(document, self._model))

    @property
    def _held_out(self) -> int:
        """The last windows of the corpus, and at most half of it."""
        return min(HELD_OUT, len(self._documents) // 2)

    def build(self) -> BoundaryPredictor:
        """A predictor for this model's keys."""
        return BoundaryPredictor(self._model.config.kv_heads * self._model.config.head_dim)

    def loss(self, model: BoundaryPredictor, rng: np.random.Generator) -> Tensor:
        """The mean over the layers of `batch` training windows."""
        training = self._documents[: -self._held_out]
        losses = [self._loss_of(model, training[i]) for i in rng.integers(len(training), size=self.plan.batch)]
        return torch.stack(losses).mean()

    def _loss_of(self, model: BoundaryPredictor, example: Document) -> Tensor:
        inside = judged(example.keys.shape[1])
        return focal_loss(model(example.keys)[:, inside], example.labels[:, inside])

    def evaluate(self, model: BoundaryPredictor) -> dict[str, float]:
        """Precision, recall and F1 of p > 0.5, and the share of boundaries, over the held-out windows."""
        predicted, true = [], []
        for example in self._documents[-self._held_out :]:
            inside = judged(example.keys.shape[1])
            predicted.append(model(example.keys)[:, inside] > 0)
            true.append(example.labels[:, inside])
        return scores(torch.stack(predicted), torch.stack(true))

    def describe(self, model: BoundaryPredictor) -> dict[str, Any]:
        """Shape and size of the predictor, and the backbone it was made for."""
        return {
            "base_model": self._model.name,
            "base_digest": self._model.digest,
            "features": model.norm.normalized_shape[0],
            "parameters": sum(p.numel() for p in model.parameters()),
        }

    def save(self, model: BoundaryPredictor, directory: Path) -> None:
        """The weights in fp32."""
        save_file(model.state_dict(), directory / "model.safetensors")


def document(model: LanguageModel, ids: Tensor) -> Document:
    """What the predictor learns from one window ids [L]: keys and labels of LAYERS full layers, evenly spread."""
    layers = training_layers(model.config)
    seen = record(model, ids, layers)
    keys = torch.stack([features(seen.keys[layer]) for layer in layers])
    maps = (attention_map(seen.queries[layer], seen.keys[layer], model.config) for layer in layers)
    return Document(keys, torch.stack([mass_ratio(one) >= MIN_RATIO for one in maps]))


def training_layers(config: ModelConfig) -> list[int]:
    """Up to LAYERS of the layers without a sliding window: the first, the last, and others in between."""
    full = [layer for layer in range(config.layers) if config.sliding(layer) is None]
    return sorted({full[round(i * (len(full) - 1) / (LAYERS - 1))] for i in range(LAYERS)})


def features(keys: Tensor) -> Tensor:
    """Rotated keys [G, L, D] -> [L, C] in fp32, the heads of a token side by side."""
    return keys.transpose(0, 1).flatten(1).float()


def attention_map(q: Tensor, keys: Tensor, config: ModelConfig) -> Tensor:
    """Causal attention [L, L] of one training window, averaged over heads; q [L, H, D], keys [G, L, D]."""
    length, heads, _ = q.shape
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    total = torch.zeros(length, length)
    for head in range(heads):
        logits = q[:, head].float() @ keys[head // config.group].float().T * config.scale
        if config.attention_softcap:
            logits = config.attention_softcap * torch.tanh(logits / config.attention_softcap)
        total += logits.masked_fill(future, float("-inf")).softmax(dim=-1)
    return total / heads


def mass_ratio(attention: Tensor) -> Tensor:
    """[L, L] -> fp64 [L]: how unevenly the rows after c + w look at the w keys up to c and the w keys after it.

    The larger mass over the smaller one, by a two-dimensional prefix sum; 0 at gaps that are not `judged`.
    """
    length = len(attention)
    prefix = functional.pad(attention.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    gaps = torch.arange(length)[judged(length)]

    def mass(first: Tensor, stop: Tensor) -> Tensor:
        rows = gaps + REACH + 1
        return prefix[length, stop] - prefix[length, first] - prefix[rows, stop] + prefix[rows, first]

    past, future = mass(gaps + 1 - REACH, gaps + 1), mass(gaps + 1, gaps + 1 + REACH)
    ratio = torch.zeros(length, dtype=torch.float64)
    ratio[gaps] = (torch.maximum(past, future) + EPSILON) / (torch.minimum(past, future) + EPSILON)
    return ratio


def judged(length: int) -> slice:
    """Gaps with a label: the 2w tokens at both ends have none."""
    return slice(2 * REACH - 1, max(length - 2 * REACH, 2 * REACH - 1))


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal binary cross-entropy (1708.02002), mean over all entries."""
    targets = labels.to(logits.dtype)
    weight = logits.new_tensor(POSITIVE_WEIGHT)
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="none")
    p = logits.sigmoid()
    right = torch.where(labels, p, 1 - p)
    return ((1 - right) ** GAMMA * entropy).mean()


def scores(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Precision, recall and F1 of bool tensors (0 where nothing is there), and the share of true entries."""
    hits, said, there = (int(x.sum()) for x in (predicted & true, predicted, true))
    return {
        "precision": hits / max(1, said),
        "recall": hits / max(1, there),
        "f1": 2 * hits / max(1, said + there),
        "boundaries": there / true.numel(),
    }
