"""The native engine gives torch its threads and hands the model over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from suite.engines import native
from suite.models import loaders
from suite.spec import ModelSpec


@pytest.fixture(autouse=True)
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_native_engine_loads_a_model_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(loaders, "load_model", lambda name, dtype: asked.append((name, dtype)) or "model")
    assert native.load(ModelSpec(name="m", dtype="fp32"), threads=1) == "model"
    assert asked == [("m", "fp32")]
    assert torch.get_num_threads() == 1
