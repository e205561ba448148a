"""The claims of DHSA's second version: attention and prefill time by length, and what its masks find.

Attention times are those of every layer of the default model but the first, which warms up: each layer's prefill is
read by the full and by the sparse plan in turn, mask building included, and the model goes on with the full result.
Accuracy and attention recall, exp(lse_sparse - lse_full) over the sparse rows, are those of all four masks. They are
given the same density, but do not read the same: `topk` spends a part of it on the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from analysis.statistics import paired_ratio, ratio_of_means
from suite.experiments.base import Experiment, Workbench
from suite.experiments.dhsa import PROMPT_TOKENS, PROMPTS, RECALL_LAYERS, RECALL_TOKENS
from suite.experiments.prefill import LENGTHS, Beneath, Found, Times, in_turn, prefill, race_prefill, seconds, told
from suite.experiments.recall import Column, passkey_scores
from suite.experiments.texts import prose
from suite.harness.contender import Contender
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Finding
from suite.methods.attention.block_masks import QUERIES
from suite.methods.attention.dense import Dense
from suite.methods.attention.dhsa_block import VARIANTS, DHSABlock, DHSABlockConfig
from suite.methods.attention.selection import Causal, Plan, Site
from suite.methods.base import Claim
from suite.models.attention import Step
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model

DENSITY = 0.125
MASKS = {
    f"{variant} {density:.1%}": DHSABlockConfig.model_validate({"variant": variant, "density": density})
    for density in (DENSITY, 0.25)
    for variant in VARIANTS
}
ROUNDS = 3
"""The fewest that a figure of the race to the first token is made of."""


class DHSABlockExperiment(Experiment):
    """SmolLM2; nothing is learned."""

    slug: ClassVar[str] = "dhsa_block"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        speed, first_token, blocks = DHSABlock.card.claims
        model = load_model("smollm2-135m", "bf16")
        yield self._attention(bench, model, speed)
        yield self._first_token(bench, model, first_token)
        yield self._blocks(bench, model, blocks)

    def _attention(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        times = race_attention(bench, model)
        longest = max(times)
        conditions = (
            f"{self._setting(bench)}, attention with mask building, mean layer of one prefill: {told(times)} (ratios "
            f"{ratios(times)}); the figure is {longest // 1024}K, its interval over {model.config.layers - 1} layers; "
            "128K is not measured, and nothing is extrapolated"
        )
        estimate = paired_ratio(times[longest]["dense"], times[longest]["sparse"])
        return self.finding(claim, estimate, conditions, details={"seconds": seconds(times)})

    def _first_token(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        contenders = {
            "dense": Contender(Dense(), Dense.Config(), model),
            "sparse": Contender(DHSABlock(), DHSABlockConfig(density=DENSITY), model),
        }
        times = race_prefill(bench, model, contenders)
        judged = max(length for length, row in times.items() if len(row["dense"]) >= ROUNDS)
        single = ", ".join(f"{length // 1024}K" for length in times if length > judged)
        conditions = (
            f"{self._setting(bench)}, interleaved: {told(times)} (ratios {ratios(times)}); the figure is "
            f"{judged // 1024}K" + (f"; {single} has too few rounds for an interval" if single else "")
        )
        estimate = paired_ratio(times[judged]["dense"], times[judged]["sparse"])
        return self.finding(claim, estimate, conditions, details={"seconds": seconds(times)})

    def _setting(self, bench: Workbench) -> str:
        return f"smollm2-135m bf16, {bench.threads} threads, vs, density {DENSITY:.1%}"

    def _blocks(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        columns: dict[str, Column] = {name: (DHSABlock(), config) for name, config in MASKS.items()}
        dense: Column = (Dense(), Dense.Config())
        scores = passkey_scores(model, {"dense": dense, **columns}, PROMPT_TOKENS, PROMPTS, bench)
        found = attention_recall(bench, model)
        keys = ", ".join(f"{name} {fmean(values):.2f}" for name, values in scores.items())
        mass = ", ".join(f"{n} {fmean(found.recall[n]):.3f} ({fmean(found.density[n]):.1%})" for n in found.recall)
        conditions = (
            f"smollm2-135m bf16, {PROMPTS} passkeys of {PROMPT_TOKENS} tokens: {keys}; attention recall (and share of "
            f"all causal pairs read) on prose of {RECALL_TOKENS} tokens, layers {RECALL_LAYERS}: {mass}; the figure is "
            f"{DENSITY:.1%}"
        )
        ours, plain = (scores[f"{variant} {DENSITY:.1%}"] for variant in ("vs", "topk"))
        estimate = ratio_of_means(ours, plain)
        reason = "" if estimate else f"topk finds no key at all, vs {fmean(ours):.2f} of them: there is no ratio"
        details: dict[str, Any] = {"scores": scores, "recall": found.recall, "density": found.density}
        return self.finding(claim, estimate, conditions, reason=reason, details=details)


def ratios(times: Times) -> str:
    """Dense over sparse by length."""
    pairs = {length: paired_ratio(row["dense"], row["sparse"]) for length, row in times.items()}
    return ", ".join(f"{length // 1024}K {ratio.value:.2f}x" for length, ratio in pairs.items() if ratio)


class Asked(DHSABlock):
    """Reads everything; masks are made when asked for."""

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        self._turned = q

    def sparse(self, config: DHSABlockConfig, layer: int, q: Tensor, row: int, step: Step) -> Plan:
        """What the method would read with this config."""
        self._config = config
        super().learn(layer, self._turned, row, step)
        return super().plan(layer, q, row, step.starts[row], step)


class Racing(Asked):
    """Full attention raced with the sparse one in every layer."""

    def __init__(self) -> None:
        self.times: dict[str, dict[tuple[str, int], float]] = {"dense": {}, "sparse": {}}

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan:
        makers: dict[str, Callable[[], Plan]] = {
            "dense": partial(Causal, step.positions[row]),
            "sparse": partial(self.sparse, self._config, layer, q, row, step),
        }
        return Raced(self, layer, makers)


@dataclass(frozen=True)
class Raced:
    """One layer, read by both plans in turn; the full result counts. Which begins changes from layer to layer."""

    method: Racing
    layer: int
    makers: dict[str, Callable[[], Plan]]

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """The first layer warms up."""
        order = sorted(self.makers, reverse=self.layer % 2 == 1)
        results, taken = in_turn({name: self.makers[name] for name in order}, q, site)
        if self.layer > 0:
            for name, spent in taken.items():
                self.method.times[name]["layer", self.layer] = spent
        return results["dense"]


def race_attention(bench: Workbench, model: LanguageModel) -> Times:
    """Seconds of attention by length, contender and layer, from one prefill of each length."""
    times: Times = {}
    for length in LENGTHS:
        bench.tick(f"racing attention over {length} tokens")
        method = Racing()
        with quiet_heap():
            prefill(model, method, DHSABlockConfig(density=DENSITY), prose(model, length))
        times[length] = method.times
    return times


class Compared(Asked):
    """Notes in some layers the recall of what each mask would have read."""

    def __init__(self) -> None:
        self.found = Found()

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan | None:  # type: ignore[override]
        if layer not in RECALL_LAYERS:
            return None
        plans = {name: self.sparse(config, layer, q, row, step) for name, config in MASKS.items()}
        widest = int(max(config.density for config in MASKS.values()) * len(q))
        return Beneath(plans, step.positions[row], slice(widest, len(q) - QUERIES), self.found)


def attention_recall(bench: Workbench, model: LanguageModel) -> Found:
    """Of every mask, one value per layer and text, over the rows that none of them reads densely."""
    method = Compared()
    for seed in (1, 2):
        bench.tick("attention recall of the masks")
        prefill(model, method, DHSABlockConfig(), prose(model, RECALL_TOKENS, seed))
    return method.found
