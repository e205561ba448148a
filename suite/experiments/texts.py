"""Long prompts for measurements: prose of the suite's own world, in a model's tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.models.language_model import LanguageModel
from workloads.generators.seeding import item_rng
from workloads.generators.world import World


def prose(model: LanguageModel, tokens: int, seed: int = 0) -> Tensor:
    """Token ids [1, tokens] of seeded sentences."""
    world = World(item_rng("prose", seed), "en")
    ids: list[int] = []
    while len(ids) < tokens:
        ids += model.tokenizer.encode(" " + " ".join(world.paragraph(50)))
    return torch.tensor(ids[:tokens])[None]
