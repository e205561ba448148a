"""`eagle` and `eagle-w4`: heads that go on from a model's own features (EAGLE, arXiv 2401.15077).

A feature is the state behind a model's final norm. The head reads the embedding of token t + 1 beside the feature of
token t, and predicts the feature of token t + 1: the model's own head makes a law of token t + 2 of it. `eagle` is
trained on the target's features; `eagle-w4` on those of its middle model `distilled-w4`, for specmquant.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from suite.models import adapters
from suite.models.checkpoints.manifest import TrainingPlan
from suite.models.decoder import Decoder, Linear, RMSNorm
from suite.models.language_model import LanguageModel
from suite.models.recipes.distilled import DraftLayers
from suite.models.recipes.drafts import PLAN, DraftRecipe, draft_vocab, soft_cross_entropy
from suite.models.twins import copied_layer, with_layers

FEATURE_WEIGHT, TOKEN_WEIGHT = 1.0, 0.1  # of smooth L1 and of cross-entropy
HEAD_PLAN = replace(PLAN, steps=100, warmup=10, eval_every=25)
"""Features say more than tokens: fewer steps suffice."""


class Fusion(nn.Module):
    """Stands where a decoder has its embedding: [embedding; feature] through one matrix.

    `features` [B, T, hidden] are those of the pass that comes next, one beside each token.
    """

    def __init__(self, embedding: nn.Embedding, matrix: Linear) -> None:
        super().__init__()
        self.embedding, self.matrix = embedding, matrix
        self.features = torch.empty(0)

    @property
    def weight(self) -> Tensor:
        """The embedding's: its dtype is the decoder's."""
        return self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.matrix(torch.cat((self.embedding(tokens), self.features), dim=-1)))


class TreeHead(nn.Module):
    """A matrix over [embedding; feature], one decoder layer, and a norm that begins as the owner's.

    The paper's head has no such norm. Here features are what is behind one, so without it the layer would first have
    to learn their scale. `owner` [32] uint8 is the sha256 of whose features these are.
    """

    owner: Tensor

    def __init__(self, owner: Decoder, digest: str) -> None:
        super().__init__()
        hidden = owner.config.hidden
        self.matrix = Linear(2 * hidden, hidden, bias=True)
        self.matrix.weight.data = torch.cat((torch.eye(hidden), torch.zeros(hidden, hidden)), dim=1)
        self.layer = copied_layer(owner, 0)
        self.norm = RMSNorm(hidden, owner.config.rms_eps)
        self.norm.weight.data = owner.norm.weight.detach().clone()
        self.register_buffer("owner", fingerprint(digest))

    def decoder(self, owner: Decoder) -> Decoder:
        """The head as a decoder of one layer over its owner's embedding and head; its `embedding` is a `Fusion`."""
        made = with_layers(owner, [self.layer], self.norm, draft_vocab(owner))
        made.embedding = cast(nn.Embedding, Fusion(owner.embedding, self.matrix))
        return made


def fingerprint(digest: str) -> Tensor:
    """A digest as `TreeHead.owner` has it."""
    return torch.frombuffer(bytearray(hashlib.sha256(digest.encode()).digest()), dtype=torch.uint8)


class EagleRecipe(DraftRecipe[TreeHead]):
    """Smooth L1 on features and a tenth of the soft cross-entropy of tokens, as in the paper."""

    name = "eagle"
    summary = "a tree drafter on the target's own features"

    def __init__(self, model: LanguageModel, data: Path | None = None, plan: TrainingPlan = HEAD_PLAN) -> None:
        super().__init__(model, data, plan)

    @property
    def owner(self) -> Decoder:
        """The target."""
        return self.model.decoder

    @property
    def owner_digest(self) -> str:
        """Of the model that `owner` is."""
        return self.model.digest

    def build(self) -> TreeHead:
        """Begins as the owner's first layer, blind to the features."""
        return TreeHead(self.owner, self.owner_digest)

    def _predicted(self, draft: TreeHead, ids: Tensor, states: Tensor) -> tuple[Decoder, Tensor]:
        """The head as a decoder, and its features of all tokens but the first."""
        decoder = draft.decoder(self.owner)
        cast(Fusion, decoder.embedding).features = states[:, :-1]
        return decoder, decoder.train_states(ids[:, 1:])

    def distance(self, draft: TreeHead, ids: Tensor, states: Tensor) -> Tensor:
        decoder, predicted = self._predicted(draft, ids, states)
        true = states[:, 1:]
        tokens = soft_cross_entropy(decoder.to_logits(predicted), decoder.to_logits(true))
        return FEATURE_WEIGHT * functional.smooth_l1_loss(predicted, true) + TOKEN_WEIGHT * tokens

    def choices(self, draft: TreeHead, ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        decoder, predicted = self._predicted(draft, ids, states)
        own, true = decoder.to_logits(predicted), self.owner.to_logits(states[:, 1:])
        return own.argmax(dim=-1), true.argmax(dim=-1)

    def describe(self, draft: TreeHead) -> dict[str, Any]:
        return {**super().describe(draft), "owner_digest": self.owner_digest}

    def save(self, draft: TreeHead, directory: Path) -> None:
        """Matrices in bf16, norms in fp32."""
        state = {name: value.bfloat16() if value.dim() == 2 else value for name, value in draft.state_dict().items()}
        save_file(state, directory / "model.safetensors")


class EagleW4Recipe(EagleRecipe):
    """The same on the features of `distilled-w4`, which has to be there."""

    name = "eagle-w4"
    summary = "a tree drafter on the features of distilled-w4, the middle model of specmquant"

    @cached_property
    def _middle(self) -> DraftLayers:
        return cast(DraftLayers, adapters.load("distilled-w4", self.model))

    @cached_property
    def owner(self) -> Decoder:
        """The middle model; its matrices are what its codes stand for."""
        return self._middle.decoder(self.model.decoder)

    @property
    def owner_digest(self) -> str:
        return self._middle.digest
