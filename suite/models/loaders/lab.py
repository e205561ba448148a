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


def chain_early(dtype: Dtype) -> LanguageModel:
    """`chain-early`: arithmetic chains with 24 multipliers, right 15-25 % of the time (`suite.models.recipes.chain`)."""
    return _committed("chain-early", dtype)


def chain_mid(dtype: Dtype) -> LanguageModel:
    """`chain-mid`: the same training later, right 30-50 % of the time."""
    return _committed("chain-mid", dtype)


def chain_strong(dtype: Dtype) -> LanguageModel:
    """`chain-strong`: the same training at its end."""
    return _committed("chain-strong", dtype)


def chain_long(dtype: Dtype) -> LanguageModel:
    """`chain-long`: long thoughts in rounds, whose length goes with their errors."""
    return _committed("chain-long", dtype)


def chain_long_control(dtype: Dtype) -> LanguageModel:
    """`chain-long-control`: long thoughts whose length says nothing."""
    return _committed("chain-long-control", dtype)


def chain_overthinking(dtype: Dtype) -> LanguageModel:
    """`chain-overthinking`: thoughts that go on though their candidates agree."""
    return _committed("chain-overthinking", dtype)


def chain_string(dtype: Dtype) -> LanguageModel:
    """`chain-string`: reorderings of six letters."""
    return _committed("chain-string", dtype)


def _committed(name: str, dtype: Dtype) -> LanguageModel:
    directory = CHECKPOINTS / name
    manifest = load_manifest(directory)
    origin = f"committed checkpoint of recipe {manifest.recipe} {manifest.recipe_version}, seed {manifest.plan.seed}"
    return hf.load(directory, dtype, name, origin)
