"""Adapters: found where they were made for the model, and a plain sentence where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.models import adapters
from suite.models.recipes import run_recipe
from tests.methods.support import tiny_model


def silent(progress: object) -> None:
    """Nobody watches."""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    return tmp_path


def test_without_adapters_one_sentence_says_what_makes_them(cache: Path) -> None:
    with pytest.raises(InputError, match="suite train dhsa --model tiny"):
        adapters.load("dhsa", tiny_model())
    assert "no adapters for tiny" in (adapters.missing("dhsa", tiny_model()) or "")


def test_adapters_of_another_model_are_not_taken(cache: Path) -> None:
    """The committed ones belong to the default model's digest, whatever a user calls his model."""
    impostor = tiny_model()
    impostor.name = "smollm2-135m"
    assert adapters.find("dhsa", impostor) is None


def test_the_cache_is_keyed_by_the_models_digest(cache: Path) -> None:
    first, second = tiny_model(), tiny_model()
    second.digest = "another"
    assert adapters.place("dhsa", first) != adapters.place("dhsa", second)
    assert cache in adapters.place("dhsa", first).parents


def test_recipes_take_a_model_or_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --model"):
        run_recipe("dhsa", tmp_path / "a", silent)
    with pytest.raises(InputError, match="takes neither"):
        run_recipe("lab-recall", tmp_path / "b", silent, tiny_model())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", ["chunkllm", "dhsa"])
def test_the_committed_adapters_are_the_default_models(recipe: str) -> None:
    folder = adapters.COMMITTED / f"{recipe}-smollm2-135m"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"] == recipe
    assert len(manifest["model"]["base_digest"]) == 64
    assert sum(path.stat().st_size for path in folder.iterdir()) < 15 << 20
