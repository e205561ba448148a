"""The pieces of the Chimera experiment at a size that runs in seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from analysis.claims import reproduce_document
from suite.experiments import chimera, drafting
from suite.experiments.base import Workbench
from suite.experiments.chimera import ChimeraExperiment
from suite.methods.decoding.chimera import Chimera, ChimeraConfig
from suite.models import adapters
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES
from suite.models.recipes import chimera as recipes
from tests.methods.support import tiny_model

BENCH = Workbench(1, lambda text: None)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The ledger of a random model."""

    def fresh(recipe: str, model: LanguageModel) -> Any:
        torch.manual_seed(0)
        return RECIPES.load(recipe)(model).build().requires_grad_(False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(chimera, "load_model", lambda name, dtype: tiny_model())
        patch.setattr(adapters, "load", fresh)
        patch.setattr(chimera, "PLAN", replace(recipes.PLAN, steps=8, warmup=2))
        for name, value in {"TESTS": 3, "EXACT": 6}.items():
            patch.setattr(chimera, name, value)
        for name, value in {"WINDOW": 40, "LENGTH": 60, "BATCHES": 1}.items():
            patch.setattr(recipes, name, value)
        patch.setattr(drafting, "ROUNDS", 2)
        cut = chimera.requests
        patch.setattr(
            chimera, "requests",
            lambda *what: [one.model_copy(update={"max_new_tokens": 24, "prompt": one.prompt[-100:]})
                           for one in cut(*what)],
        )  # fmt: skip
        found = list(ChimeraExperiment().findings(BENCH))
        patch.setattr(chimera, "train", lambda *args: pytest.fail("trained again"))
        chimera.train_all(tiny_model(), BENCH)
        return found


def test_the_ledger_has_a_row_per_claim(rows):
    assert sorted(row.claim.split(":")[0] for row in rows) == sorted(claim.id for claim in Chimera.card.claims)
    json.dumps(reproduce_document(rows), allow_nan=False)


def test_losslessness_is_counted_over_all_tokens(rows):
    assert (rows[0].measured, rows[0].verdict) == (1.0, "reproduced")
    assert "6 questions of chat-open, 144 greedy tokens" in rows[0].conditions


def test_speed_stands_beside_the_cost_models_terms(rows):
    assert set(rows[1].details["contenders"]) == {"dense", "card", "small", "chain"}
    assert "over drafting" in rows[1].reason
    assert "MB of drafter" in rows[1].conditions


def test_all_drafters_are_compared_after_equal_training(rows):
    assert "2 steps each" in rows[2].conditions
    assert set(rows[2].details) == {*chimera.NAMES, "in the repository"}
    for row, other in zip(rows[3:], ("medusa", "chimera-no-trigram", "chimera-no-context"), strict=True):
        assert row.conditions.endswith(f"against {other}")
        assert set(row.details["figures"]) == set(chimera.NAMES)


def test_the_bytes_of_a_round_are_those_of_the_weights_it_reads():
    model, method = tiny_model(), Chimera()
    torch.manual_seed(0)
    method.drafter = RECIPES.load("chimera")(model).build()
    layer = sum(p.numel() for p in model.decoder.layers[0].parameters())
    heads = 4 * 2 * model.config.hidden * (model.config.hidden + 1)
    expected = 4 * (4 * (layer + model.config.vocab * model.config.hidden) + heads)
    assert chimera.drafter_bytes(method, model) == expected
    assert ChimeraConfig().vocab > model.config.vocab
