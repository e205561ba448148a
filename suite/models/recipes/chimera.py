"""`chimera`: the drafter of Chimera (arXiv 2402.15758; card `methods/chimera.md`), its ablations, and Medusa's heads.

Shapes: B windows of T tokens, R = T - 1 - HEADS rows, d hidden size, V tokens the heads choose among. Row j knows the
target's states up to h_j; its root is token j + 1, and head k (from 1) has to say token j + k + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from suite.models.attention import DenseAttention, Step
from suite.models.checkpoints import rows8
from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.chimera import HEADS, ChimeraDrafter, MedusaHeads
from suite.models.decoder import Layer, Layers
from suite.models.language_model import LanguageModel
from suite.models.recipes.answers import Text, source_of, texts_with_states
from suite.models.recipes.drafts import VOCAB
from suite.models.rope import rotate

BATCHES, LENGTH = 5, 448  # of answers, and the tokens of one at most
WINDOW = 160  # tokens of a text that are trained on at a time
HELD_OUT = 16  # every sixteenth text is for evaluation
MOST_RANK = 5

PLAN = TrainingPlan(
    steps=1200, batch=2, lr=1e-3, warmup=40, weight_decay=0.0, clip=1.0, seed=0, eval_every=200, beta2=0.99,
    lr_factors={"heads.gate": 30.0, "gate": 30.0},
)  # fmt: skip


class Level(NamedTuple):
    """What one level says: logits [B, R, V], and the feature [B, R, d] behind them where there is one."""

    logits: Tensor
    feature: Tensor | None


class ChainAttention(DenseAttention):
    """Row j at level k, position j + k, sees the states h_<=j, the features of its own chain, and itself.

    Without `diagonal` the chain is hidden: so does the published code, by a mask that says "very negative minus one".
    """

    def __init__(self, context: Layers, hidden: Tensor, diagonal: bool) -> None:
        super().__init__(context.config)
        self._layer, self._diagonal, self.level = cast(Layer, context.layers[0]), diagonal, 0
        self._prefix = self._keys_values(hidden)
        self._chain: list[tuple[Tensor, Tensor]] = []

    def extend(self, feature: Tensor) -> None:
        """Adds the features [B, R, d] of this level to the rows' chains."""
        if self._diagonal:
            self._chain.append(self._keys_values(feature))

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, k, v = self._layer.attention.project(self._layer.attention_norm(x))
        return self._turned(k), v

    def _turned(self, x: Tensor) -> Tensor:
        stop = self.level + x.shape[1]
        cos, sin = (table[self.level : stop, None] for table in self.tables(0, stop))
        return rotate(x, cos, sin)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step | None) -> Tensor:
        near = [*self._chain, (self._turned(k), v)]
        keys, values = self._prefix
        rows, q = q.shape[1], torch.unflatten(self._turned(q), 2, (self.config.kv_heads, -1))
        far = torch.einsum("brghd,bsgd->bghrs", q, keys)
        far = far.masked_fill(torch.ones(rows, rows, dtype=torch.bool).triu(1), -torch.inf)
        own = torch.stack([torch.einsum("brghd,brgd->bghr", q, key) for key, _ in near], dim=-1)
        logits = torch.cat((far, own), dim=-1) * self.config.scale
        if self.config.attention_softcap:
            logits = self.config.attention_softcap * torch.tanh(logits / self.config.attention_softcap)
        weights = logits.softmax(dim=-1)
        out = torch.einsum("bghrs,bsgd->brghd", weights[..., :rows], values)
        for place, (_, value) in enumerate(near):
            out = out + weights[..., rows + place].permute(0, 3, 1, 2)[..., None] * value[:, :, :, None]
        return out.flatten(2, 3)


def unrolled(
    drafter: nn.Module, model: LanguageModel, ids: Tensor, states: Tensor, vocab: int, *, diagonal: bool = True
) -> Iterator[Level]:
    """All levels over windows ids [B, T] with states [B, T, d], fed with what they said themselves."""
    rows = ids.shape[1] - 1 - HEADS
    hidden, weight = states[:, :rows].float(), model.decoder.head.weight[:vocab]
    if isinstance(drafter, MedusaHeads):
        yield from (Level(functional.linear(drafter(k, hidden), weight), None) for k in range(HEADS))
        return
    assert isinstance(drafter, ChimeraDrafter)
    chain = ChainAttention(drafter.context, hidden, diagonal) if drafter.context is not None else None
    before, last, newest = ids[:, [0, *range(rows - 1)]], ids[:, :rows], ids[:, 1 : rows + 1]
    first = torch.cat((newest[:, :1], last[:, 1:]), dim=1)  # at the start of a text the trigram is 1 2 2
    trigram = torch.stack((before, first, newest), dim=-1)
    for k in range(HEADS):
        feature = drafter.encode(model.decoder.embed(trigram).float())
        if chain is not None:
            chain.level = k + 1
            feature = chain._layer(feature.detach() if k else feature, chain, None)
        logits = functional.linear(drafter.heads(k, hidden, feature), weight)
        yield Level(logits, feature)
        if chain is not None:
            chain.extend(feature.detach())
        last, newest, before = newest, logits.argmax(dim=-1), last
        trigram = torch.stack((before, last, newest), dim=-1)


def level_loss(level: Level, k: int, ids: Tensor, states: Tensor, learned: Tensor, distil: float) -> Tensor:
    """Cross-entropy of head k (from 1) on token j + k + 1, plus `distil` times the feature's square error to h_(j + k).

    Only rows whose token is `learned` [B, T] count; tokens the heads cannot say have no cross-entropy.
    """
    rows = level.logits.shape[1]
    labels, rows_learned = ids[:, k + 1 : k + 1 + rows], learned[:, k + 1 : k + 1 + rows]
    said = labels.masked_fill(~rows_learned | (labels >= level.logits.shape[-1]), -100)
    loss = functional.cross_entropy(level.logits.flatten(0, 1).float(), said.flatten(), ignore_index=-100)
    if level.feature is None or not distil:
        return loss
    error = (level.feature - states[:, k : k + rows].float()).square().mean(dim=-1)
    return loss + distil * (error * rows_learned).sum() / rows_learned.sum().clamp(min=1)


def right_at(level: Level, expected: Tensor, counted: Tensor) -> Tensor:
    """[MOST_RANK]: the share of the `counted` rows whose `expected` token [B, R] is among the first 1, 2, ... said."""
    ranks = min(MOST_RANK, level.logits.shape[-1])
    hits = level.logits.topk(ranks).indices == expected[..., None]
    return (hits.cumsum(dim=-1) > 0)[counted].float().mean(dim=0)


class ChimeraRecipe:
    """The recipe: cross-entropy of four heads and distillation, all levels free-running, the target frozen."""

    name = "chimera"
    version = "1"
    summary = "trigram encoder, one decoder layer and four heads on a frozen model's own answers"
    selection = "one setting, nothing compared; the weights are those of the best evaluation by mean top-1 accuracy"
    dev_figure = "top1"
    parts: ClassVar[dict[str, bool]] = {}

    def __init__(
        self,
        model: LanguageModel,
        data: Path | None = None,
        plan: TrainingPlan = PLAN,
        *,
        distil: float = 1.0,
        diagonal: bool = True,
    ) -> None:
        self.model, self.path, self.plan, self.distil, self.diagonal = model, data, plan, distil, diagonal

    @cached_property
    def texts(self) -> list[Text]:
        """Those that are long enough."""
        made = texts_with_states(self.model, self.path, BATCHES, LENGTH, self.plan.seed)
        return [text for text in made if len(text.ids) >= WINDOW]

    @property
    def data(self) -> DataSource:
        """Where the text came from."""
        return source_of(self.texts, self.path, self.model, self.plan.seed)

    def build(self) -> nn.Module:
        """Fresh modules for this model's shapes."""
        return ChimeraDrafter(self.model.config, **self.parts)

    def loss(self, drafter: nn.Module, rng: np.random.Generator) -> Tensor:
        """Summed over levels, mean over rows of `batch` windows."""
        texts = [text for i, text in enumerate(self.texts) if (i + 1) % HELD_OUT]
        drawn = [texts[i] for i in rng.choice(len(texts), self.plan.batch)]
        ids, states, learned = windows(drawn, [int(rng.integers(len(text.ids) - WINDOW + 1)) for text in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            levels = self._levels(drafter, ids, states)
            losses = [level_loss(level, k, ids, states, learned, self.distil) for k, level in enumerate(levels, 1)]
        return torch.stack(losses).sum()

    def _levels(self, drafter: nn.Module, ids: Tensor, states: Tensor) -> Iterator[Level]:
        return unrolled(drafter, self.model, ids, states, VOCAB, diagonal=self.diagonal)

    def evaluate(self, drafter: nn.Module) -> dict[str, float]:
        """Top-1 accuracy of every head, free-running: on what the held-out texts say, and on what the target would."""
        data, target = (table[:, 0].tolist() for table in self.accuracies(drafter, self.held_out))
        figures = {f"head{k}_text": value for k, value in enumerate(data, 1)}
        figures |= {f"head{k}_target": value for k, value in enumerate(target, 1)}
        return {"top1": sum(data) / HEADS, **figures}

    @property
    def held_out(self) -> list[Text]:
        """Texts that are not trained on."""
        return self.texts[HELD_OUT - 1 :: HELD_OUT] or self.texts[-1:]

    @torch.no_grad()
    def accuracies(self, drafter: nn.Module, texts: list[Text]) -> tuple[Tensor, Tensor]:
        """[HEADS, MOST_RANK] against the text's token, and against the target's greedy token at that place."""
        ids, states, learned = windows(texts, [min(text.prompt, len(text.ids) - WINDOW) for text in texts])
        spoken = self.model.decoder.head.weight.float().T
        said = torch.stack([(state.float() @ spoken).argmax(dim=-1) for state in states])
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for k, level in enumerate(self._levels(drafter, ids, states), 1):
            rows = level.logits.shape[1]
            counted = learned[:, k + 1 : k + 1 + rows]
            found[0].append(right_at(level, ids[:, k + 1 : k + 1 + rows], counted))
            found[1].append(right_at(level, said[:, k : k + rows], counted))
        return torch.stack(found[0]), torch.stack(found[1])

    def describe(self, drafter: nn.Module) -> dict[str, Any]:
        """The model it was made for, and its size."""
        parameters = sum(p.numel() for p in drafter.parameters())
        base = {"base_model": self.model.name, "base_digest": self.model.digest}
        return {**base, "heads": HEADS, "vocab": VOCAB, "parameters": parameters}

    def save(self, drafter: nn.Module, directory: Path) -> None:
        """One file, its matrices in int8."""
        save_file(rows8.pack(drafter.state_dict()), directory / "model.safetensors")


class NoTrigramRecipe(ChimeraRecipe):
    """The ablation g = e: a token's embedding is all that is known of it before the context encoder."""

    name = "chimera-no-trigram"
    summary = "Chimera without its trigram encoder"
    parts: ClassVar[dict[str, bool]] = {"trigram": False}


class NoContextRecipe(ChimeraRecipe):
    """The ablation f = g: heads see the target's last state and three tokens."""

    name = "chimera-no-context"
    summary = "Chimera without its full-context encoder"
    parts: ClassVar[dict[str, bool]] = {"context": False}


class MedusaRecipe(ChimeraRecipe):
    """The control: Medusa-1's heads on the same texts."""

    name = "medusa"
    summary = "four Medusa-1 heads, tied to the model's output matrix, on its own answers"

    def build(self) -> nn.Module:
        return MedusaHeads(self.model.config)


def windows(texts: list[Text], starts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """WINDOW tokens of each text: ids [B, T], states [B, T, d], and which tokens are the answer's [B, T]."""
    cuts = [slice(start, start + WINDOW) for start in starts]
    ids = torch.stack([text.ids[cut] for text, cut in zip(texts, cuts, strict=True)])
    states = torch.stack([text.states[cut] for text, cut in zip(texts, cuts, strict=True)])
    prompts = torch.tensor([text.prompt - start for text, start in zip(texts, starts, strict=True)])
    return ids, states, torch.arange(WINDOW)[None] >= prompts[:, None]
