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
from suite.experiments.clock import first_token_s, stamps
from suite.experiments.memory import prefill_peak
from suite.experiments.texts import passkeys, prose
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.methods.attention.base import AttentionMethod, SelectedAttention
from suite.methods.attention.dense import Dense
from suite.methods.attention.dhsa import DHSA, DHSAConfig
from suite.methods.attention.dhsa_block import DHSABlock, DHSABlockConfig
from suite.methods.attention.selection import Causal, Plan, Site
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.methods.base import Claim, Method, MethodConfig
from suite.models.attention import Attention, DenseAttention, Step
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from workloads.schema import Request

LENGTHS = {4096: 5, 8192: 4, 16384: 3, 32768: 1}
"""Rounds of the race by prompt length in tokens."""
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
        times = race_prefill(bench, model)
        table = {n: {name: fmean(row.values()) for name, row in times[n].items()} for n in times}
        told = "; ".join(f"{n // 1024}K {row['dense']:.2f} s dense, {row['dhsa']:.2f} s" for n, row in table.items())
        conditions = (
            f"smollm2-135m bf16, {bench.threads} threads, budget {DENSITY:.1%} of the prompt, block 128, interleaved: "
            f"{told}; the figure is 16K"
        )
        seconds = {n: {name: [*values.values()] for name, values in row.items()} for n, row in times.items()}
        details: dict[str, Any] = {"seconds": seconds}
        half = times[16384]
        estimate = inverse(paired_ratio(half["dense"], half["dhsa"]))
        yield self.finding(latency, estimate, conditions, direction="at most", details=details)
        growth = ratio_of_means([*times[32768]["dhsa"].values()], [*half["dhsa"].values()])
        dense = table[32768]["dense"] / table[16384]["dense"]
        yield self.finding(longer, growth, f"{conditions}; dense grows {dense:.2f}x", direction="at most", null=dense)

    def _memory(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        ids, peaks = prose(model, MEMORY_TOKENS), {}
        attentions: dict[str, Attention] = {
            "dhsa": SelectedAttention(model.config, prepared(DHSA(), model, DHSAConfig(density=DENSITY))),
            "eager": EagerAttention(model.config),
            "dense": DenseAttention(model.config),
        }
        for name, attention in attentions.items():
            bench.tick(f"peak memory of {name}")
            peaks[name] = [prefill_peak(model, ids, attention, MEMORY_TOKENS) for _ in range(3)]
        mega = {name: min(values) >> 20 for name, values in peaks.items()}
        conditions = (
            f"smollm2-135m bf16, {MEMORY_TOKENS} tokens in one pass, resident set beyond weights and cache: dhsa "
            f"{mega['dhsa']} MB, eager (L x L scores) {mega['eager']} MB, this suite's dense path {mega['dense']} MB"
        )
        estimate = ratio_of_means(peaks["dhsa"], peaks["eager"])
        return self.finding(claim, estimate, conditions, direction="at most", details={"peak_bytes": peaks})

    def _scores(self, bench: Workbench, model: LanguageModel, accuracy: Claim, blocks: Claim) -> Iterator[Finding]:
        columns: dict[str, tuple[Method, MethodConfig]] = {
            "dense": (Dense(), Dense.Config()),
            "dhsa": (DHSA(), SMALL),
            "fixed blocks (dhsa_block topk)": (DHSABlock(), DHSABlockConfig(variant="topk", budget=SMALL_BUDGET)),
            "fixed blocks (dhsa_block vs)": (DHSABlock(), DHSABlockConfig(variant="vs", budget=SMALL_BUDGET)),
            "sinks and recent": (Streaming(), StreamingConfig(sinks=16, window=SMALL_BUDGET - 16)),
        }
        workload, requests = passkeys(PROMPT_TOKENS, PROMPTS)
        scores: dict[str, list[float]] = {name: [] for name in columns}
        for index, request in enumerate(requests):
            for name, (method, config) in columns.items():
                bench.tick(f"passkey {index + 1} of {PROMPTS}: {name}")
                contender = Contender(method, config, model)
                contender.prepare()
                scores[name].append(workload.score(contender.complete([request], RequestMeter())[0], request) / 100)
        means = ", ".join(f"{name} {fmean(values):.2f}" for name, values in scores.items())
        conditions = (
            f"smollm2-135m bf16, {PROMPTS} passkeys of {PROMPT_TOKENS} tokens, {SMALL_BUDGET} keys a query: {means}"
        )
        ours, fixed = scores["dhsa"], scores["fixed blocks (dhsa_block vs)"]
        by_recency = fmean(scores["sinks and recent"]) / fmean(scores["dense"])
        kept = ratio_of_means(ours, scores["dense"])
        yield self.finding(accuracy, kept, conditions, null=by_recency, details={"scores": scores})
        reason = "" if any(fixed) else "fixed blocks find no key at all"
        yield self.finding(blocks, ratio_of_means(ours, fixed), conditions, reason=reason)

    def _root(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        found = attention_recall(bench, model)
        means = ", ".join(f"{name} {fmean(values):.3f}" for name, values in found.items())
        conditions = (
            f"smollm2-135m bf16, prose of {RECALL_TOKENS} tokens, layers {RECALL_LAYERS}, {SMALL_BUDGET} keys a query; "
            f"attention recall: {means}"
        )
        return self.finding(claim, ratio_of_means(found["sqrt"], found["mean"]), conditions, details={"recall": found})


def race_prefill(bench: Workbench, model: LanguageModel) -> dict[int, dict[str, dict[tuple[str, int], float]]]:
    """Seconds to the first token by length, contender and round; each length warms up once."""
    contenders = {
        "dense": Contender(Dense(), Dense.Config(), model),
        "dhsa": Contender(DHSA(), DHSAConfig(density=DENSITY), model),
    }
    contenders["dhsa"].prepare()
    times: dict[int, dict[str, dict[tuple[str, int], float]]] = {}
    for length, rounds in LENGTHS.items():
        prompt = model.tokenizer.decode(prose(model, length)[0].tolist())
        request = Request(
            id="r", task="t", prompt=prompt, metric="none", max_new_tokens=1, truncation="extend"
        )  # fmt: skip
        times[length] = {name: {} for name in contenders}
        for turn in range(rounds + (length < 32768)):
            for name, contender in contenders.items():
                bench.tick(f"prefill of {length} tokens, round {turn}: {name}")
                times[length][name]["first token", turn] = first_token_s(stamps(contender, request))
        if length < 32768:  # the first round warmed up
            for row in times[length].values():
                del row["first token", 0]
    return times


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


def prepared(method: AttentionMethod, model: LanguageModel, config: Any) -> AttentionMethod:
    """Ready for one row."""
    method.prepare(model, config)
    method.begin_batch(model.config, config, 1)
    return method


@dataclass
class Compared(DHSA):
    """Reads everything, and notes the recall of what DHSA would have read in some layers."""

    fixed: bool = False
    recall: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan | None:
        plan = super().plan(layer, q, row, first, step)
        return None if plan is None or layer not in RECALL_LAYERS else Beneath(self, plan, step.positions[row])

    def _boundaries(self, keys: Tensor, row: int, step: Step) -> Tensor:
        edges = super()._boundaries(keys, row, step)
        if not self.fixed:
            return edges
        return torch.linspace(0, keys.shape[1], len(edges)).round().int()  # as many chunks, all of one length

    def note(self, sparse: Tensor, recent: Tensor, full: Tensor) -> None:
        """Log-sum-exps [T, H] of all three."""
        rows = slice(SMALL_BUDGET, len(sparse) - SMALL.instruction)
        for found, lse in ((self.recall, sparse), (self.recent, recent)):
            found.append(float((lse - full)[rows].exp().clamp(max=1).mean()))


@dataclass(frozen=True)
class Beneath:
    """A plan whose log-sum-exps are compared with those of full attention, which counts."""

    method: Compared
    plan: Plan
    positions: Tensor

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """The full result."""
        full = Causal(self.positions).attend(q, site)
        recent = Causal(self.positions, window=SMALL_BUDGET).attend(q, site)
        self.method.note(self.plan.attend(q, site)[1], recent[1], full[1])
        return full


def attention_recall(bench: Workbench, model: LanguageModel) -> dict[str, list[float]]:
    """By kind of chunk, one value per layer and text."""
    found: dict[str, list[float]] = {}
    kinds = {"sqrt": ("sqrt", False), "mean": ("mean", False), "sum": ("sum", False), "fixed chunks": ("sqrt", True)}
    for name, (vector, fixed) in kinds.items():
        for seed in (1, 2):
            bench.tick(f"attention recall: {name}")
            method = Compared(fixed)
            config = SMALL.model_copy(update={"chunk_vector": vector})
            attention = SelectedAttention(model.config, prepared(method, model, config))
            cache = model.decoder.new_cache(1, RECALL_TOKENS)
            with torch.inference_mode():
                model.decoder(prose(model, RECALL_TOKENS, seed), cache, attention)
            found.setdefault(name, []).extend(method.recall)
            if name == "sqrt":
                found.setdefault("most recent", []).extend(method.recent)
    return found
