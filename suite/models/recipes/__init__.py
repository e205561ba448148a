"""Training recipes: what `suite train NAME` can make. Listing them imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.registry import Entry, Registry

if TYPE_CHECKING:
    from suite.models.trainer import Callback

RECIPES = Registry(
    "recipe",
    (Entry("lab-recall", "suite.models.recipes.lab_recall:LabRecall", "lab", "tiny decoder on key-value recall"),),
)


def run_recipe(name: str, output: Path, progress: Callback) -> Path:
    """Trains a registered recipe and returns the directory with its checkpoint and `manifest.json`.

    An unknown name or an output that cannot be written is an `InputError` before training starts. Ctrl-C saves the best
    weights so far; the last report to `progress` says how the run ended.
    """
    recipe = RECIPES.load(name)()
    from suite.models.trainer import train  # imports torch

    train(recipe, output, progress)
    return output
