"""Training recipes: what `suite train NAME` can make. Listing them imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.errors import InputError
from suite.registry import Entry, Registry

if TYPE_CHECKING:
    from suite.models.language_model import LanguageModel
    from suite.models.trainer import Callback

RECIPES = Registry(
    "recipe",
    (
        Entry(
            "chunkllm", "suite.models.recipes.chunkllm:ChunkLLMRecipe", "adapter", "ChunkLLM's boundary and QK adapters"
        ),
        Entry("chimera", "suite.models.recipes.chimera:ChimeraRecipe", "adapter", "Chimera's drafter"),
        Entry(
            "chimera-no-context",
            "suite.models.recipes.chimera:NoContextRecipe",
            "adapter",
            "its ablation without the full-context encoder",
        ),
        Entry(
            "chimera-no-trigram",
            "suite.models.recipes.chimera:NoTrigramRecipe",
            "adapter",
            "its ablation without the trigram encoder",
        ),
        Entry(
            "chain-early",
            "suite.models.recipes.chain:ChainEarly",
            "lab",
            "arithmetic chains, right 15-25 % of the time",
        ),
        Entry("chain-mid", "suite.models.recipes.chain:ChainMid", "lab", "the same training later, right 30-50 %"),
        Entry("chain-strong", "suite.models.recipes.chain:ChainStrong", "lab", "the same training at its end"),
        Entry("chain-large", "suite.models.recipes.chain:ChainLarge", "lab", "a strong policy of 29 times the weights"),
        Entry(
            "chain-long",
            "suite.models.recipes.chain:ChainLong",
            "lab",
            "long thoughts, from chain-strong (train that one first)",
        ),
        Entry(
            "chain-long-control",
            "suite.models.recipes.chain:ChainLongControl",
            "lab",
            "its control, whose length says nothing",
        ),
        Entry(
            "chain-hasty",
            "suite.models.recipes.chain:ChainHasty",
            "lab",
            "thoughts that end when their candidates differ: the short ones are wrong",
        ),
        Entry(
            "chain-overthinking",
            "suite.models.recipes.chain:ChainOverthinking",
            "lab",
            "thoughts that go on though their candidates agree",
        ),
        Entry(
            "chain-string", "suite.models.recipes.chain:ChainString", "lab", "reorderings of six letters, right 30-50 %"
        ),
        Entry(
            "chain-likelihood",
            "suite.models.recipes.chain_rewards:LikelihoodRecipe",
            "lab",
            "process reward from chain-strong's likelihood",
        ),
        Entry(
            "chain-prm",
            "suite.models.recipes.chain_rewards:ProcessRecipe",
            "lab",
            "process reward trained on traces of the policies",
        ),
        Entry(
            "chain-orm",
            "suite.models.recipes.chain_rewards:OutcomeRecipe",
            "lab",
            "outcome reward trained on traces of the policies, from chain-prm (train that one first)",
        ),
        Entry("dhsa", "suite.models.recipes.dhsa:BoundaryRecipe", "adapter", "boundary predictor for DHSA"),
        Entry("distilled", "suite.models.recipes.distilled:DistilledRecipe", "adapter", "one-layer draft model"),
        Entry(
            "distilled-w4",
            "suite.models.recipes.distilled:DistilledW4Recipe",
            "adapter",
            "four-layer int4 draft model, the middle one of specmquant",
        ),
        Entry("eagle", "suite.models.recipes.eagle:EagleRecipe", "adapter", "EAGLE tree head of the model itself"),
        Entry(
            "eagle-w4",
            "suite.models.recipes.eagle:EagleW4Recipe",
            "adapter",
            "EAGLE tree head of distilled-w4, for specmquant (train that one first)",
        ),
        Entry(
            "lab-long", "suite.models.recipes.lab_long:LabLong", "lab", "small decoder on lab-longbench, context 512"
        ),
        Entry("lab-recall", "suite.models.recipes.lab_recall:LabRecall", "lab", "tiny decoder on key-value recall"),
        Entry("medusa", "suite.models.recipes.chimera:MedusaRecipe", "adapter", "Medusa-1 heads, Chimera's control"),
    ),
)
"""Family "lab": models made from nothing, or from another lab model. Family "adapter": modules beside a frozen model,
which they are made with."""


def run_recipe(
    name: str, output: Path, progress: Callback, model: LanguageModel | None = None, data: Path | None = None
) -> Path:
    """Trains a registered recipe and returns the directory with its checkpoint and `manifest.json`.

    Recipes of the family "adapter" are made for `model`, on the user's text `data` or on what the model writes itself.
    An unknown name or an output that cannot be written is an `InputError` before training starts. Ctrl-C saves the best
    weights so far; the last report to `progress` says how the run ended.
    """
    adapter, kind = RECIPES[name].family == "adapter", RECIPES.load(name)
    if adapter and model is None:
        raise InputError(f"{name} trains adapters for a model: give --model.")
    if not adapter and (model is not None or data is not None):
        raise InputError(f"{name} makes a model of its own from generated data: it takes neither --model nor --data.")
    recipe = kind(model, data) if adapter else kind()
    from suite.models.trainer import train  # imports torch

    train(recipe, output, progress)
    return output
