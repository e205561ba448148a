"""DHSA's claims: prefill time and memory by length, and what the selection finds against fixed blocks and recency.

Times are those of the first token of one prompt, predictor and selection included, interleaved with dense. Attention
recall is exp(lse_sparse - lse_full) over the sparse rows of some layers on prose: of DHSA, of its two other chunk
vectors, of as many fixed chunks scored in the same way, and of the most recent tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from analysis.statistics import Estimate, paired_ratio, ratio_of_means
from suite.experiments.base import Experiment, Workbench
from suite.experiments.memory import prefill_peak
from suite.experiments.prefill import Beneath, Found, prefill, prepared, race_prefill, seconds, told
from suite.experiments.recall import Column, passkey_scores
from suite.experiments.texts import prose
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.methods.attention.base import SelectedAttention
from suite.methods.attention.dense import Dense
from suite.methods.attention.dhsa import DHSA, DHSAConfig
from suite.methods.attention.dhsa_block import DHSABlock, DHSABlockConfig
from suite.methods.attention.selection import Causal, Plan
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.methods.base import Claim
from suite.models.attention import Attention, DenseAttention, Step
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model

DENSITY = 0.125
MEMORY_TOKENS = 4096
PROMPTS, PROMPT_TOKENS, SMALL_BUDGET = 12, 1024, 256
RECALL_TOKENS, RECALL_LAYERS = 2048, (3, 9, 15, 21, 27)
SMALL = DHSAConfig(budget=SMALL_BUDGET, block=64, recent=64, sinks=16, instruction=32)


class DHSAExperiment(Experiment):
    """SmolLM2 with the committed boundary predictor."""

    slug: ClassVar[str] = "dhsa"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        latency, memory, longer, accuracy, blocks, root = DHSA.card.claims
        model = load_model("smollm2-135m", "bf16")
        yield from self._times(bench, model, latency, longer)
        yield self._memory(bench, model, memory)
        yield from self._scores(bench, model, accuracy, blocks)
        yield self._root(bench, model, root)

    def _times(self, bench: Workbench, model: LanguageModel, latency: Claim, longer: Claim) -> Iterator[Finding]:
        contenders = {
            "dense": Contender(Dense(), Dense.Config(), model),
            "dhsa": Contender(DHSA(), DHSAConfig(density=DENSITY), model),
        }
        times = race_prefill(bench, model, contenders)
        conditions = (
            f"smollm2-135m bf16, {bench.threads} threads, budget {DENSITY:.1%} of the prompt, block 128, interleaved: "
            f"{told(times)}; the figure is 16K"
        )
        details: dict[str, Any] = {"seconds": seconds(times)}
        half, whole = times[16384], times[32768]
        estimate = inverse(paired_ratio(half["dense"], half["dhsa"]))
        yield self.finding(latency, estimate, conditions, direction="at most", details=details)
        growth = ratio_of_means([*whole["dhsa"].values()], [*half["dhsa"].values()])
        dense = fmean(whole["dense"].values()) / fmean(half["dense"].values())
        yield self.finding(longer, growth, f"{conditions}; dense grows {dense:.2f}x", direction="at most", null=dense)

    def _memory(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        ids, peaks = prose(model, MEMORY_TOKENS), {}
        attentions: dict[str, Attention] = {
            "dhsa": SelectedAttention(model.config, prepared(DHSA(), model, DHSAConfig(density=DENSITY))),
            "eager": EagerAttention(model.config),
            "torch SDPA": TorchAttention(model.config),
            "dense": DenseAttention(model.config),
        }
        for name, attention in attentions.items():
            bench.tick(f"peak memory of {name}")
            peaks[name] = [prefill_peak(model, ids, attention, MEMORY_TOKENS) for _ in range(3)]
        told = ", ".join(f"{name} {min(values) / 2**20:.0f} MB" for name, values in peaks.items())
        conditions = (
            f"smollm2-135m bf16, {MEMORY_TOKENS} tokens in one pass, resident set beyond weights and cache: {told} "
            "(eager makes the L x L scores, dense is this suite's path)"
        )
        estimate = ratio_of_means(peaks["dhsa"], peaks["eager"])
        return self.finding(claim, estimate, conditions, direction="at most", details={"peak_bytes": peaks})

    def _scores(self, bench: Workbench, model: LanguageModel, accuracy: Claim, blocks: Claim) -> Iterator[Finding]:
        columns: dict[str, Column] = {
            "dense": (Dense(), Dense.Config()),
            "dhsa": (DHSA(), SMALL),
            "fixed blocks (dhsa_block topk)": (DHSABlock(), DHSABlockConfig(variant="topk", budget=SMALL_BUDGET)),
            "fixed blocks (dhsa_block vs)": (DHSABlock(), DHSABlockConfig(variant="vs", budget=SMALL_BUDGET)),
            "sinks and recent": (Streaming(), StreamingConfig(sinks=16, window=SMALL_BUDGET - 16)),
        }
        scores = passkey_scores(model, columns, PROMPT_TOKENS, PROMPTS, bench)
        means = ", ".join(f"{name} {fmean(values):.2f}" for name, values in scores.items())
        conditions = (
            f"smollm2-135m bf16, {PROMPTS} passkeys of {PROMPT_TOKENS} tokens, {SMALL_BUDGET} keys a query: {means}"
        )
        ours, dense, fixed = (scores[name] for name in ("dhsa", "dense", "fixed blocks (dhsa_block vs)"))
        recency = ratio_of_means(scores["sinks and recent"], dense)
        kept, null = ratio_of_means(ours, dense), recency.value if recency else 1.0
        reason = "" if kept else "the dense model finds no key at all"
        yield self.finding(accuracy, kept, conditions, null=null, reason=reason, details={"scores": scores})
        better = ratio_of_means(ours, fixed)
        reason = "" if better else "fixed blocks find no key at all"
        yield self.finding(blocks, better, conditions, reason=reason)

    def _root(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        found = attention_recall(bench, model)
        means = ", ".join(f"{name} {fmean(values):.3f}" for name, values in found.items())
        conditions = (
            f"smollm2-135m bf16, prose of {RECALL_TOKENS} tokens, layers {RECALL_LAYERS}, {SMALL_BUDGET} keys a query; "
            f"attention recall: {means}"
        )
        return self.finding(claim, ratio_of_means(found["sqrt"], found["mean"]), conditions, details={"recall": found})


def inverse(estimate: Estimate | None) -> Estimate | None:
    """The ratio the other way round."""
    if estimate is None:
        return None
    low, high = (None if x is None else 1 / x for x in (estimate.high, estimate.low))
    return Estimate(1 / estimate.value, low, high, estimate.n, estimate.note)


class EagerAttention(DenseAttention):
    """The textbook: all scores of a layer at once."""

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        keys, values = (x[layer][0, :, : step.stops[0]] for x in (step.cache.keys, step.cache.values))
        heads = q[0].transpose(0, 1).float()
        keys, values = (x.repeat_interleave(self.config.group, dim=0).float() for x in (keys, values))
        scores = heads @ keys.transpose(1, 2) * self.config.scale
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        weights = functional.softmax(scores.masked_fill_(future, float("-inf")), dim=-1)
        return (weights @ values).transpose(0, 1)[None].to(q.dtype)


class TorchAttention(DenseAttention):
    """torch's fused attention, for prompts of one row that begin the cache."""

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        keys, values = (x[layer][:, :, : step.stops[0]] for x in (step.cache.keys, step.cache.values))
        attended = functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, is_causal=True, scale=self.config.scale, enable_gqa=True
        )
        return attended.transpose(1, 2)


@dataclass
class Compared(DHSA):
    """Reads everything, and notes in some layers the recall of what DHSA, and recency, would have read."""

    kind: str
    fixed: bool = False
    found: Found = field(default_factory=Found)

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan | None:
        plan, positions = super().plan(layer, q, row, first, step), step.positions[row]
        if plan is None or layer not in RECALL_LAYERS:
            return None
        plans: dict[str, Plan] = {self.kind: plan, "most recent": Causal(positions, window=SMALL_BUDGET)}
        return Beneath(plans, positions, slice(SMALL_BUDGET, len(q) - SMALL.instruction), self.found)

    def _boundaries(self, keys: Tensor, row: int, step: Step) -> Tensor:
        edges = super()._boundaries(keys, row, step)
        if not self.fixed:
            return edges
        return torch.linspace(0, keys.shape[1], len(edges)).round().int()  # as many chunks, all of one length


def attention_recall(bench: Workbench, model: LanguageModel) -> dict[str, list[float]]:
    """By kind of chunk, one value per layer and text."""
    found: dict[str, list[float]] = {}
    kinds = {"sqrt": ("sqrt", False), "mean": ("mean", False), "sum": ("sum", False), "fixed chunks": ("sqrt", True)}
    for name, (vector, fixed) in kinds.items():
        method = Compared(name, fixed)
        for seed in (1, 2):
            bench.tick(f"attention recall: {name}")
            prefill(model, method, SMALL.model_copy(update={"chunk_vector": vector}), prose(model, RECALL_TOKENS, seed))
        found |= method.found.recall
    return found
