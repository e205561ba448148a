"""The committed lab models: trained by `suite train`, small enough for the repository, checked by their manifest."""

from __future__ import annotations

from pathlib import Path

from suite.models import checkpoints
from suite.models.checkpoints.manifest import load_manifest
from suite.models.language_model import LanguageModel
from suite.models.loaders import hf
from suite.spec import Dtype

CHECKPOINTS = Path(checkpoints.__file__).parent


def lab_recall(dtype: Dtype) -> LanguageModel:
    """`lab-recall`: 0.17M parameters, context 128, key-value recall (recipe `suite.models.recipes.lab_recall`)."""
    return _committed("lab-recall", dtype)


def lab_long(dtype: Dtype) -> LanguageModel:
    """`lab-long`: 0.17M parameters, context 512, `lab-longbench` (recipe `suite.models.recipes.lab_long`)."""
    return _committed("lab-long", dtype)


def _committed(name: str, dtype: Dtype) -> LanguageModel:
    directory = CHECKPOINTS / name
    manifest = load_manifest(directory)
    origin = f"committed checkpoint of recipe {manifest.recipe} {manifest.recipe_version}, seed {manifest.plan.seed}"
    return hf.load(directory, dtype, name, origin)
