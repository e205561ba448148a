"""Fixtures of the harness tests."""

from __future__ import annotations

import pytest

from tests.harness import support


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registries hold the fakes only."""
    support.register(monkeypatch)
