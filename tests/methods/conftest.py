"""Adapters for the tiny random model: freshly built ones, the same in every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from suite.methods.weights import packed
from suite.models import adapters
from tests.methods.support import fresh_adapter


@pytest.fixture(autouse=True)
def _untrained_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody trains adapters for a model that exists in a test only."""
    monkeypatch.setattr(adapters, "load", fresh_adapter)


@pytest.fixture(autouse=True)
def _packed_weights_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random models have no digest: what one test quantised is not for the next."""
    place = packed.place
    monkeypatch.setattr(packed, "place", lambda slug, depends_on: tmp_path / place(slug, depends_on).name)
