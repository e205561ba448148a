"""Tests of methods run on tiny random models, for which no adapters were trained: they get fresh ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from suite.models import adapters
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES


@pytest.fixture(autouse=True)
def _untrained_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adapters.load` gives the recipe's freshly built module, always the same for a model's shapes."""

    def build(recipe: str, model: LanguageModel) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: nn.Module = RECIPES.load(recipe)(model).build()
        return module.requires_grad_(False).eval()

    monkeypatch.setattr(adapters, "load", build)
