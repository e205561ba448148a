"""ChunkLLM's claims: quality at half of the cache, decode speed over long caches, and how often it selects.

Quality is that of the common frontier (`frontier`): the same items and budgets for all selection methods and controls.
Speed is that of decode steps over synthetic caches, with chunks of CHUNK tokens and the adapters' own arithmetic;
beside each ratio stands the bound (W + F) / (W + r F) that its retention r, the weights W and the cache F allow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch

from analysis.roofline.model import speedup_bound
from analysis.statistics import Estimate, mean_estimate, paired_ratio
from suite.experiments.base import Experiment, Workbench
from suite.experiments.chunkllm_ablation import VARIANTS, losses_on_the_way
from suite.experiments.frontier import SHARES, Point, at, frontier, table
from suite.experiments.synthetic import filled_cache, race_steps
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.methods.attention.base import SelectedAttention
from suite.methods.attention.chunkllm import ChunkLLM, ChunkLLMConfig
from suite.methods.attention.dense import Dense
from suite.methods.base import Claim
from suite.models.attention import Attention, DenseAttention, Step
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.recipes.activations import SUBJECTS
from workloads.schema import Request

NAMES = ("chunkllm", "longheads", "actqkv", "streaming", "uniform", "random", "oracle")
CONTROLS = ("uniform", "random", "streaming")
CACHES = (8192, 32768, 122880)
ROUNDS = 40
RETENTIONS = (0.125, 0.5)
CHUNK = 20
GENERATED = 200


class ChunkLLMExperiment(Experiment):
    """SmolLM2 with the committed adapters."""

    slug: ClassVar[str] = "chunkllm"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        quality, speed, short, selections = ChunkLLM.card.claims
        model = load_model("smollm2-135m", "bf16")
        yield self._speed(bench, model, speed)
        yield self._selections(bench, model, selections)
        yield self._short(bench, load_model("smollm2-135m", "fp32"), short)
        yield self._quality(bench, model, quality)

    def _quality(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        points = frontier(bench, model, NAMES, VARIANTS)
        half = {name: point for name, point in at(points, 0.5).items() if name not in VARIANTS}
        kept = ", ".join(f"{name} {perplexity_ratio(p, half['dense']):.3f}" for name, p in half.items())
        keys = ", ".join(f"{name} {fmean(p.keys):.2f}" for name, p in half.items())
        ours = half["chunkllm"]
        conditions = (
            f"smollm2-135m bf16, held-out texts of 1K tokens scored on the decode path, retention {ours.retention:.2f}"
            f"; perplexity dense / method at equal budget: {kept}; passkeys found: {keys}; "
            f"nats lost on the way from uniform to it {losses_on_the_way(points, SHARES[0])}"
        )
        logs = [d - m for d, m in zip(half["dense"].nats, ours.nats, strict=True)]
        estimate = exponential(mean_estimate(logs))
        by_chance = perplexity_ratio(half["random"], half["dense"])
        details = {"frontier": table([p for p in points if p.method not in VARIANTS]), "ablation": table(points)}
        return self.finding(claim, estimate, conditions, null=by_chance, reason=losses(points), details=details)

    def _speed(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        curve = {tokens: steps(bench, model, tokens) for tokens in CACHES}
        told = "; ".join(self._told(model, tokens, times) for tokens, times in curve.items())
        longest = curve[max(CACHES)]
        dense, ours = ({("step", i): ms for i, ms in enumerate(longest[n])} for n in ("dense", f"{RETENTIONS[0]}"))
        estimate = paired_ratio(dense, ours)
        conditions = (
            f"smollm2-135m bf16, synthetic cache, {bench.threads} threads, whole decode steps, {ROUNDS} in a row with "
            f"a selection every {CHUNK}; medians: {told}; the figure is the longest cache at {RETENTIONS[0]:.1%}"
        )
        return self.finding(claim, estimate, conditions, details={"step_ms": curve})

    def _told(self, model: LanguageModel, tokens: int, times: dict[str, list[float]]) -> str:
        weights, full = model.model_bytes, tokens * model.config.kv_bytes_per_token(2)
        dense = statistics.median(times["dense"])
        parts = []
        for share in RETENTIONS:
            ratio, bound = dense / statistics.median(times[f"{share}"]), speedup_bound(weights, full, share)
            parts.append(f"{ratio:.2f}x at {share:.1%} (bound {bound:.2f}x)")
        return f"{tokens // 1024}K: {dense:.1f} ms dense, {', '.join(parts)}"

    def _selections(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Boundaries met while generating for each selection but the prompt's: 1, or less if it selects more often."""
        method = Counted()
        contender = Contender(method, ChunkLLMConfig(budget=64, local=32), model)
        contender.prepare()
        ratios, lengths = [], []
        for index in range(4):
            bench.tick(f"counting selections, text {index + 1}")
            tokens = len(contender.complete([story(index, GENERATED)], RequestMeter())[0].token_ids)
            ratios.append(method.boundaries / (method.selections - 1))
            lengths.append(tokens / method.boundaries)
        every = fmean(lengths)
        conditions = f"smollm2-135m bf16, 4 texts of up to {GENERATED} tokens, one boundary in {every:.1f} tokens"
        at_every_token = 1 / every
        return self.finding(claim, mean_estimate(ratios), conditions, null=at_every_token, details={"ratios": ratios})

    def _short(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Greedy tokens that are those of dense, on texts that the smallest budget holds whole."""
        ours, dense = Contender(ChunkLLM(), ChunkLLMConfig(), model), Contender(Dense(), Dense.Config(), model)
        ours.prepare()
        equal = []
        for index in range(8):
            bench.tick(f"short texts, {index + 1} of 8")
            request = story(index, 96).model_copy(update={"temperature": 0.0})
            texts = [c.complete([request], RequestMeter())[0].token_ids for c in (ours, dense)]
            equal.append(fmean(a == b for a, b in zip(*texts, strict=False)))
        conditions = "smollm2-135m fp32, 8 answers of up to 96 tokens: share of greedy tokens that are the dense ones"
        return self.finding(claim, mean_estimate(equal), conditions, null=0.0, details={"equal": equal})


class Counted(ChunkLLM):
    """Counts the boundaries of generated tokens."""

    boundaries = 0

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        super().begin_batch(model, config, batch)
        self.boundaries = 0

    def _close(self, row: int, predicted: list[int], step: Step) -> None:
        before = len(self._rows[row].ends)
        super()._close(row, predicted, step)
        if step.width == 1:
            self.boundaries += len(self._rows[row].ends) - before


def story(index: int, tokens: int) -> Request:
    """A writing task."""
    prompt = f"Write a long story about {SUBJECTS[index % len(SUBJECTS)]}."
    return Request(
        id=str(index), task="t", prompt=prompt, chat=True, metric="none", max_new_tokens=tokens, temperature=0.8,
        seed=index,
    )  # fmt: skip


def steps(bench: Workbench, model: LanguageModel, tokens: int) -> dict[str, list[float]]:
    """Milliseconds of consecutive decode steps over a synthetic cache, dense and every retention in turn."""
    bench.tick(f"filling a cache of {tokens} tokens")
    methods = {}
    for share in RETENTIONS:
        config = ChunkLLMConfig(retention=share, longest=CHUNK, threshold=0.99)  # chunks end by their length
        methods[f"{share}"] = method = ChunkLLM()
        method.prepare(model, config)
        method.begin_batch(model.config, config, 1)
    attentions: dict[str, Attention] = {
        name: SelectedAttention(model.config, method) for name, method in methods.items()
    }
    cache = filled_cache(model, tokens, ROUNDS + 2, partial(index_piece, model, list(methods.values())))
    bench.tick(f"decoding over {tokens} tokens")
    return race_steps(model, cache, {"dense": DenseAttention(model.config), **attentions}, ROUNDS, grow=True)


def index_piece(
    model: LanguageModel, methods: Sequence[ChunkLLM], step: Step, layer: int, generator: torch.Generator
) -> None:
    """The methods themselves close chunks over random keys."""
    q = torch.randn(1, model.config.heads, model.config.head_dim, generator=generator).to(step.cache.dtype)
    hidden = torch.zeros(1, step.width, model.config.hidden, dtype=step.cache.dtype)
    for method in methods:
        method.learn(layer, q, 0, step)
        method.observe(layer, hidden, step)


def exponential(estimate: Estimate | None) -> Estimate | None:
    """Of a mean of logarithms."""
    if estimate is None:
        return None
    low, high = (None if x is None else math.exp(x) for x in (estimate.low, estimate.high))
    return Estimate(math.exp(estimate.value), low, high, estimate.n, estimate.note)


def perplexity_ratio(point: Point, dense: Point) -> float:
    """Perplexity of dense / of the method: 1 is as good."""
    return math.exp(fmean(dense.nats) - fmean(point.nats))


def losses(points: Sequence[Point]) -> str:
    """Where a control of the same budget has the lower perplexity."""
    found = []
    for share in SHARES:
        row = at(points, share)
        better = [n for n in CONTROLS if fmean(row[n].nats) < fmean(row["chunkllm"].nats)]
        if better:
            figures = ", ".join(f"{n} {perplexity_ratio(row[n], row['dense']):.2f}" for n in better)
            found.append(f"at {share:.1%} it keeps {perplexity_ratio(row['chunkllm'], row['dense']):.2f}, {figures}")
    return "behind controls of the same budget: " + "; ".join(found) if found else ""
