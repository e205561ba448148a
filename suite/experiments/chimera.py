"""Chimera's claims on the default model: the card's small experiment.

The drafter in the repository is raced with plain decoding. Its ablations and Medusa's heads are trained here at first,
and a short Chimera with them, all with the same steps on the same texts; they take minutes and stay in the cache. They
are compared by tokens per pass on the card's tree, which do not depend on the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from analysis.statistics import Estimate, mean_estimate, paired_ratio
from suite.experiments.base import Experiment, Workbench
from suite.experiments.drafting import (
    Record,
    VerifyCost,
    agreement,
    decode_speedup,
    figure_table,
    further,
    race,
    verify_cost,
    with_interval,
)
from suite.experiments.lookahead import requests
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.methods.attention.dense import Dense
from suite.methods.base import Claim
from suite.methods.decoding.chimera import SHAPES, Chimera, ChimeraConfig
from suite.models import adapters
from suite.models.chimera import HEADS, ChimeraDrafter
from suite.models.decoder import cast_weights
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.recipes import RECIPES
from suite.models.recipes.chimera import PLAN, ChimeraRecipe
from suite.models.trainer import Progress, train

TESTS = 20  # questions of `chat-open`, of 128 tokens each
EXACT = 18  # questions of at most 128 tokens in fp32: 2,000 tokens and more
SHORTER = 4  # ablations are trained for so many times fewer steps
NAMES = ("chimera", "chimera-no-trigram", "chimera-no-context", "medusa")
GAP = 0.15  # between predicted and measured speed, which needs no explanation


class Short(Chimera):
    """A drafter that was trained for the comparison."""

    def __init__(self, recipe: str, directory: Path) -> None:
        self._recipe, self._directory = recipe, directory

    def prepare(self, model: LanguageModel, config: Any) -> None:
        self.drafter = cast_weights(adapters.read(self._recipe, self._directory, model), model.decoder.dtype)


class ChimeraExperiment(Experiment):
    """Losslessness and speed of the drafter in the repository, then all drafters on one tree."""

    slug: ClassVar[str] = "chimera"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        lossless, speed, medusa, later, trigram, context = Chimera.card.claims
        exact = load_model("smollm2-135m", "fp32")
        yield self._lossless(bench, exact, lossless)
        model = load_model("smollm2-135m", "bf16")
        yield self._speed(bench, model, speed)
        trained = train_all(exact, bench)
        yield self._heads(exact, trained, later)
        yield from self._trees(bench, model, trained, {"medusa": medusa, NAMES[1]: trigram, NAMES[2]: context})

    def _lossless(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        ours = [Contender(Chimera(), ChimeraConfig(tree=tree), model) for tree in ("card", "small", "chain")]
        found = agreement(model, ours, requests("chat-open", EXACT, 0), bench)
        conditions = (
            f"smollm2-135m fp32, {len(found.shares)} questions of chat-open, {found.tokens} greedy tokens, all trees; "
            f"{found.told}"
        )
        estimate, details = mean_estimate(found.shares), {"gaps": found.gaps}
        return self.finding(claim, estimate, conditions, null=0.0, reason=found.reason, details=details)

    def _speed(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """The figure is the small tree's, without prefill, as in the paper; the other trees stand beside it."""
        cost = verify_cost(model, bench)
        methods = {tree: (Chimera(), ChimeraConfig(tree=tree)) for tree in SHAPES}
        records = race(model, {"dense": (Dense(), Dense.Config()), **methods}, requests("chat-open", TESTS, 0), bench)
        measured = decode_speedup(records, "small")
        told = ", ".join(
            f"{name} {with_interval(decode_speedup(records, name))} (tau {records[name].tau:.2f})" for name in SHAPES
        )
        drafter = methods["small"][0]
        conditions = (
            f"smollm2-135m bf16, batch 1, {bench.threads} threads, chat-open, {TESTS} questions, greedy, prefill "
            f"excluded, the small tree of {len(SHAPES['small'].split())} nodes; {told}; a round reads "
            f"{drafter_bytes(drafter, model) / 1e6:.0f} MB of drafter, {model.model_bytes / 1e6:.0f} MB of model; "
            f"trigram cache hits {drafter.table.hits / max(1, drafter.table.asked):.0%}"
        )
        details = {"contenders": figure_table(records, cost), "r": {w: cost.ratio(w) for w in cost.pass_s}}
        reason = explanation(records["small"], cost, measured)
        return self.finding(claim, measured, conditions, null=1.0, reason=reason, details=details)

    def _heads(self, model: LanguageModel, trained: dict[str, Path], claim: Claim) -> Finding:
        """Free-running on held-out answers; the figure is that of heads 2 to 4 against the target's own choice."""
        recipe = ChimeraRecipe(model)
        drafters = {name: adapters.read(name, place, model) for name, place in trained.items()}
        drafters["in the repository"] = adapters.load("chimera", model)
        found = {name: recipe.accuracies(drafter, recipe.held_out) for name, drafter in drafters.items()}
        later = {
            name: {("text", i): top_later(recipe.accuracies(drafters[name], [text])[1])
                   for i, text in enumerate(recipe.held_out)}
            for name in ("chimera", "medusa")
        }  # fmt: skip
        told = "; ".join(f"{name} {percent(target)}" for name, (_, target) in found.items())
        conditions = (
            f"smollm2-135m fp32, {len(recipe.held_out)} held-out answers, free-running, {steps()} steps each; "
            f"top-1 of heads 1 to {HEADS} against the target's choice: {told}"
        )
        details = {
            name: {"text_top1_to_5": data.tolist(), "target_top1_to_5": target.tolist()}
            for name, (data, target) in found.items()
        }
        return self.finding(claim, paired_ratio(later["chimera"], later["medusa"]), conditions, details=details)

    def _trees(
        self, bench: Workbench, model: LanguageModel, trained: dict[str, Path], claims: dict[str, Claim]
    ) -> Iterator[Finding]:
        """The short Chimera over each of the others, on the card's tree."""
        racers = {
            name: (Short(name, place), ChimeraConfig(tree="card", drafter=name)) for name, place in trained.items()
        }
        records = race(model, racers, requests("chat-open", TESTS, 0), bench)
        tau = ", ".join(f"{name} {record.tau:.2f}" for name, record in records.items())
        conditions = (
            f"smollm2-135m bf16, chat-open, {TESTS} questions, greedy, the card's tree, {steps()} training steps of "
            f"each on the same texts; tokens per pass: {tau}"
        )
        for name, claim in claims.items():
            details = {"figures": {racer: record.figures for racer, record in records.items()}}
            yield self.finding(
                claim, further(records, "chimera", name), f"{conditions}; against {name}", details=details
            )


def steps() -> int:
    """Training steps of every drafter that is compared with another."""
    return max(1, PLAN.steps // SHORTER)


def train_all(model: LanguageModel, bench: Workbench) -> dict[str, Path]:
    """The checkpoints of all drafters, trained where they are not there yet."""
    plan = replace(PLAN, steps=steps(), warmup=max(1, PLAN.warmup // SHORTER), eval_every=steps())
    places: dict[str, Path] = {}
    for name in NAMES:
        place = adapters.cache_root() / "ablations" / f"{name}-{plan.steps}-{model.digest[:16]}"
        places[name] = place
        if not adapters.made_for(place, model):
            train(RECIPES.load(name)(model, None, plan), place, teller(name, bench))
    return places


def teller(name: str, bench: Workbench) -> Any:
    """Says how far a training is."""

    def tell(moment: Progress) -> None:
        bench.tick(f"training {name}, step {moment.step} of {moment.steps}, loss {moment.loss:.2f}")

    return tell


def drafter_bytes(method: Chimera, model: LanguageModel) -> int:
    """Bytes of weights that drafting reads in a round of all levels, trigrams from the table."""
    drafter, element = method.drafter, model.decoder.embedding.weight.element_size()
    assert isinstance(drafter, ChimeraDrafter)
    layer = sum(p.nbytes for p in drafter.context.parameters()) if drafter.context is not None else 0
    head = min(ChimeraConfig().vocab, model.config.vocab) * model.config.hidden * element
    return HEADS * (layer + head) + sum(p.nbytes for p in drafter.heads.parameters())


def explanation(record: Record, cost: VerifyCost, measured: Estimate | None) -> str:
    """The cost model's terms, in passes over one token, and how far it is off."""
    if measured is None:
        return ""
    step = cost.pass_s[1] + cost.rest_s[1]
    predicted = cost.predicted(record)
    gap = predicted / measured.value - 1
    told = (
        f"tau {record.tau:.2f} over drafting {record.draft_s / step:.2f} + verifying {record.width:.0f} tokens "
        f"{cost.ratio(record.width):.2f} predicts {predicted:.2f} ({gap:+.0%})"
    )
    return told if abs(gap) <= GAP else f"{told}: these terms do not explain it"


def top_later(accuracies: Tensor) -> float:
    """Mean top-1 accuracy of all heads but the first; above zero, so that it has a logarithm."""
    return max(float(accuracies[1:, 0].mean()), 1e-3)


def percent(accuracies: Tensor) -> str:
    """Top-1 of every head."""
    return " ".join(f"{value:.0%}" for value in accuracies[:, 0].tolist())
