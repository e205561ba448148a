"""Adapters: small modules that a method needs beside a frozen model. Committed, cached, or trained on first use."""

from __future__ import annotations

import os
from pathlib import Path

import filelock
import platformdirs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from safetensors.torch import load_file
from torch import nn

from suite.models import checkpoints
from suite.models.checkpoints.manifest import MANIFEST, load_manifest
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES, run_recipe
from suite.models.trainer import Progress as Moment

WEIGHTS = "model.safetensors"
COMMITTED = Path(checkpoints.__file__).parent


def load(recipe: str, model: LanguageModel) -> nn.Module:
    """The recipe's module with the weights trained for this model, without gradients."""
    module: nn.Module = RECIPES.load(recipe)(model).build()
    module.load_state_dict(load_file(ensure(recipe, model) / WEIGHTS))
    return module.requires_grad_(False).eval()


def ensure(recipe: str, model: LanguageModel) -> Path:
    """The directory of the weights for this model; trained now, with a progress bar, if there is none."""
    for directory in (COMMITTED / f"{recipe}-{model.name}", _cache(recipe, model)):
        if _made_for(directory, model):
            return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(directory.with_suffix(".lock")):
        if not _made_for(directory, model):
            _train(recipe, model, directory)
    return directory


def _cache(recipe: str, model: LanguageModel) -> Path:
    root = os.environ.get("SUITE_CACHE") or platformdirs.user_cache_dir("inference-suite")
    return Path(root) / "adapters" / f"{recipe}-{model.digest[:16]}"


def _made_for(directory: Path, model: LanguageModel) -> bool:
    return (directory / MANIFEST).exists() and load_manifest(directory).model.get("base_digest") == model.digest


def _train(recipe: str, model: LanguageModel, directory: Path) -> None:
    """Minutes on two cores."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}")
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"training {recipe} for {model.name} (once)", total=None, state="recording activations")

        def show(moment: Moment) -> None:
            state = moment.outcome or f"loss {moment.loss:.3f}, about {moment.eta_s:.0f} s left"
            bar.update(task, completed=moment.step, total=moment.steps, state=state)

        run_recipe(recipe, directory, show, model)
