"""Long prompts for measurements: prose of the suite's own world in a model's tokens, and pass keys hidden in filler."""

from __future__ import annotations

import torch
from torch import Tensor

from suite.harness.options import make_workload
from suite.models.language_model import LanguageModel
from suite.spec import WorkloadSpec
from workloads.generators.seeding import item_rng
from workloads.generators.world import World
from workloads.schema import Request, Workload


def prose(model: LanguageModel, tokens: int, seed: int = 0) -> Tensor:
    """Token ids [1, tokens] of seeded sentences."""
    world = World(item_rng("prose", seed), "en")
    ids: list[int] = []
    while len(ids) < tokens:
        ids += model.tokenizer.encode(" " + " ".join(world.paragraph(50)))
    return torch.tensor(ids[:tokens])[None]


def passkeys(length: int, count: int) -> tuple[Workload, list[Request]]:
    """Prompts of about `length` tokens with a pass key at a random depth, and the workload that judges the answers."""
    spec = WorkloadSpec(name="passkey", task=str(length), limit=count, options={"lengths": (length,)})
    workload = make_workload(spec)
    return workload, list(workload.requests(str(length), count, 0))
