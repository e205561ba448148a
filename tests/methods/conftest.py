"""Adapters for the tiny random model: freshly built ones, the same in every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from suite.methods.weights import packed
from suite.models import adapters
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES


@pytest.fixture(autouse=True)
def _untrained_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody trains adapters for a model that exists in a test only."""

    def fresh(recipe: str, model: LanguageModel) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module: nn.Module = RECIPES.load(recipe)(model).build()
        return module.requires_grad_(False).eval()

    monkeypatch.setattr(adapters, "load", fresh)


@pytest.fixture(autouse=True)
def _packed_weights_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random models have no digest: what one test quantised is not for the next."""
    place = packed.place
    monkeypatch.setattr(packed, "place", lambda slug, depends_on: tmp_path / place(slug, depends_on).name)
