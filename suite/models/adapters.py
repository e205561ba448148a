"""Adapters: small modules a method needs beside a frozen model. Committed, or trained by the user into the cache."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from safetensors.torch import load_file
from torch import nn

from suite.errors import InputError
from suite.models import checkpoints
from suite.models.checkpoints import rows8
from suite.models.checkpoints.manifest import MANIFEST, load_manifest
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES

WEIGHTS = "model.safetensors"
COMMITTED = Path(checkpoints.__file__).parent


def load(recipe: str, model: LanguageModel) -> nn.Module:
    """The recipe's module with the weights trained for this model, without gradients."""
    directory = find(recipe, model)
    if directory is None:
        raise InputError(_untrained(recipe, model))
    return read(recipe, directory, model)


def read(recipe: str, directory: Path, model: LanguageModel) -> nn.Module:
    """The recipe's module with the weights of a directory, without gradients."""
    module: nn.Module = RECIPES.load(recipe)(model).build()
    module.load_state_dict(rows8.unpack(load_file(directory / WEIGHTS)))
    return module.requires_grad_(False).eval()


def find(recipe: str, model: LanguageModel) -> Path | None:
    """The directory of the weights for this model: committed, or in the cache."""
    places = (COMMITTED / f"{recipe}-{model.name}", place(recipe, model))
    return next((directory for directory in places if made_for(directory, model)), None)


def missing(recipe: str, model: LanguageModel) -> str | None:
    """One sentence if there are no adapters for this model, and what makes them."""
    return None if find(recipe, model) is not None else _untrained(recipe, model)


def _untrained(recipe: str, model: LanguageModel) -> str:
    return f"{recipe} has no adapters for {model.name} yet; train them with `suite train {recipe} --model {model.name}`"


def place(recipe: str, model: LanguageModel) -> Path:
    """Where `suite train` puts adapters, and `load` finds them."""
    return cache_root() / "adapters" / f"{recipe}-{model.digest[:16]}"


def cache_root() -> Path:
    """The user's cache, or `SUITE_CACHE`."""
    return Path(os.environ.get("SUITE_CACHE") or platformdirs.user_cache_dir("inference-suite"))


def made_for(directory: Path, model: LanguageModel) -> bool:
    """Whether a directory holds adapters of this very model."""
    return (directory / MANIFEST).exists() and load_manifest(directory).model.get("base_digest") == model.digest
