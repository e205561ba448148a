"""Pins the OpenMP threads before any test imports torch, and gives every test a results store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.harness import threads

threads.pin()

from suite.harness.store import STORE_VARIABLE, Store  # noqa: E402 - pinning comes before everything else


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the results of the person who runs it."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "suite.sqlite"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty results store."""
    with Store(tmp_path / "suite.sqlite") as opened:
        yield opened
