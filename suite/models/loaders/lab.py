"""The committed lab models: trained by `suite train`, small enough for the repository, checked by their manifest."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from suite.models import checkpoints
from suite.models.checkpoints.manifest import load_manifest
from suite.models.language_model import LanguageModel
from suite.models.loaders import hf
from suite.models.rewards import LikelihoodPRM, TokenReward
from suite.spec import Dtype

CHECKPOINTS = Path(checkpoints.__file__).parent


def lab_recall(dtype: Dtype) -> LanguageModel:
    """`lab-recall`: 0.17M parameters, context 128, key-value recall (recipe `suite.models.recipes.lab_recall`)."""
    return _committed("lab-recall", dtype)


def lab_long(dtype: Dtype) -> LanguageModel:
    """`lab-long`: 0.17M parameters, context 512, `lab-longbench` (recipe `suite.models.recipes.lab_long`)."""
    return _committed("lab-long", dtype)


def reward(name: str) -> LikelihoodPRM | TokenReward:
    """A committed reward model of the reasoning lab: `chain-likelihood`, `chain-prm` or `chain-orm`, in fp32."""
    directory = CHECKPOINTS / name
    load_manifest(directory)
    if (directory / "config.json").is_file():
        return TokenReward(hf.load_decoder(directory, "fp32"))
    model = LikelihoodPRM(chain_strong("fp32").decoder)
    model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)  # the decoder is chain-strong's own
    return model


def _committed(name: str, dtype: Dtype) -> LanguageModel:
    directory = CHECKPOINTS / name
    manifest = load_manifest(directory)
    origin = f"committed checkpoint of recipe {manifest.recipe} {manifest.recipe_version}, seed {manifest.plan.seed}"
    return hf.load(directory, dtype, name, origin)


# The policies of the reasoning lab (recipes in `suite.models.recipes.chain`), for workload `chain`.
chain_early = partial(_committed, "chain-early")
chain_mid = partial(_committed, "chain-mid")
chain_strong = partial(_committed, "chain-strong")
chain_large = partial(_committed, "chain-large")
chain_string = partial(_committed, "chain-string")
chain_long = partial(_committed, "chain-long")
chain_long_control = partial(_committed, "chain-long-control")
chain_hasty = partial(_committed, "chain-hasty")
