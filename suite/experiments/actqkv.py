"""ActQKV's claims at the card's small scale: needle blocks found by each probe, bounded reads, time, and k by layer.

The question term of the released configuration (4 x the cosine with the question's query) is not built: a request here
does not say which of its tokens are the question. So no effect of it can be credited to the probe query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from analysis.statistics import mean_estimate, paired_ratio, ratio_of_means
from suite.experiments.base import Experiment, Workbench
from suite.experiments.clock import stamps, total_s
from suite.experiments.texts import passkeys
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.actqkv import ActQKV, ActQKVConfig
from suite.methods.attention.dense import Dense
from suite.methods.attention.selection import Plan
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.methods.base import Claim, Method, MethodConfig
from suite.models.attention import Step
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from workloads.schema import Request

SCALED = ActQKVConfig(block=16, n_init=16, n_local=128, window=64, topk=12, min_blocks=4, cached_blocks=48)
BUDGET = 336
PROMPTS, PROMPT_TOKENS = 24, 1024
LENGTHS = (1024, 4096)
SHARP = 0.01
"""A score temperature at which the entropies of layers differ."""


class Watched(ActQKV):
    """Remembers the blocks every layer chose for the last prompt window, and the k of every deal."""

    def __init__(self, chooser: str = "probe") -> None:
        self.chooser = chooser
        self.window: dict[int, list[int]] = {}
        self.deals: dict[int, list[int]] = {}
        self._draw = torch.Generator().manual_seed(0)

    def _probe(self, state: Any, h: Tensor) -> Tensor:
        if self.chooser == "last query":
            return h[-1].float()
        if self.chooser == "random":
            return torch.randn(h.shape[1], generator=self._draw)
        return super()._probe(state, h)

    def _choose(self, layer: int, row: int, probe: Tensor) -> tuple[list[int], int]:
        pages, fetched = super()._choose(layer, row, probe)
        self._chosen = [page - SCALED.n_init // SCALED.block for page in pages]
        self.deals.setdefault(layer, []).append(len(pages))
        return pages, fetched

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan:
        plan = super().plan(layer, q, row, first, step)
        self.window[layer] = self._chosen
        return plan


@dataclass
class Found:
    """By chooser: share of layers whose selection holds the needle's block, and exact answers, one per prompt."""

    share: dict[str, list[float]] = field(default_factory=dict)
    exact: dict[str, list[float]] = field(default_factory=dict)


class ActQKVExperiment(Experiment):
    """SmolLM2 with the card's scaled constants."""

    slug: ClassVar[str] = "actqkv"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        quality, bounded, slower, layers = ActQKV.card.claims
        model = load_model("smollm2-135m", "bf16")
        yield self._quality(bench, model, quality)
        yield self._bounded(bench, model, bounded)
        yield self._slower(bench, model, slower)
        yield self._layers(bench, model, layers)

    def _quality(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        found = needle_grid(bench, model)
        share = {name: fmean(values) for name, values in found.share.items()}
        exact = {name: fmean(values) for name, values in found.exact.items()}
        conditions = (
            f"smollm2-135m bf16, {PROMPTS} passkey prompts of about {PROMPT_TOKENS} tokens, {BUDGET} tokens a query; "
            f"share of layers with the needle's block in the last window: {_listed(share)}; exact answers: "
            f"{_listed(exact)}; without the question term"
        )
        estimate = ratio_of_means(found.share["probe (window)"], found.share["mean"])
        details = {"needle_share": found.share, "exact": found.exact}
        return self.finding(claim, estimate, conditions, details=details)

    def _bounded(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        read: dict[int, list[float]] = {}
        for length in LENGTHS:
            bench.tick(f"counting reads at {length} tokens")
            meter = CountingMeter(model.config.kv_bytes_per_token(2))
            for request in passkeys(length, 4)[1]:
                several = request.model_copy(update={"max_new_tokens": 12})
                Contender(ActQKV(), SCALED, model).complete([several], meter)
            read[length] = [s.selected_retention_last * s.full_bytes for s in meter.kv_samples()]
        tokens = {n: fmean(v) / model.config.kv_bytes_per_token(2) for n, v in read.items()}
        conditions = "tokens read by the last query: " + ", ".join(f"{t:.0f} at {n}" for n, t in tokens.items())
        estimate = ratio_of_means(read[LENGTHS[-1]], read[LENGTHS[0]])
        return self.finding(
            claim, estimate, f"smollm2-135m bf16; {conditions}", direction="at most", null=LENGTHS[-1] / LENGTHS[0]
        )

    def _slower(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Total time of the same prompts, interleaved; the mean query is InfLLM's probe."""
        contenders = {
            "actqkv": Contender(ActQKV(), SCALED, model),
            "mean query": Contender(ActQKV(), SCALED.model_copy(update={"probe": "mean", "cutoff": False}), model),
            "dense": Contender(Dense(), Dense.Config(), model),
        }
        times: dict[str, dict[tuple[str, int], float]] = {name: {} for name in contenders}
        for index, request in enumerate(passkeys(LENGTHS[-1], 5)[1]):
            for name, contender in contenders.items():
                bench.tick(f"timing prompt {index + 1}: {name}")
                times[name]["total", index] = total_s(stamps(contender, request))
        over_dense = paired_ratio(times["actqkv"], times["dense"])
        conditions = (
            f"smollm2-135m bf16, prompts of {LENGTHS[-1]} tokens and their answers, {bench.threads} threads, "
            f"interleaved; against dense {over_dense.value if over_dense else 0:.2f}x the time"
        )
        estimate = paired_ratio(times["actqkv"], times["mean query"])
        seconds = {name: list(values.values()) for name, values in times.items()}
        return self.finding(claim, estimate, conditions, details={"seconds": seconds})

    def _layers(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        spread: dict[float, list[float]] = {}
        ks: dict[float, list[dict[int, float]]] = {}
        # short windows, so that every layer's history of entropies is full
        short = SCALED.model_copy(update={"window": 32})
        for temperature in (1.0, SHARP):
            for index, request in enumerate(passkeys(LENGTHS[-1], 3)[1]):
                bench.tick(f"k by layer at score temperature {temperature}, text {index + 1}")
                watched, config = Watched(), short.model_copy(update={"score_temperature": temperature})
                Contender(watched, config, model).complete([request], RequestMeter())
                found = {layer: fmean(deals[-20:]) for layer, deals in watched.deals.items()}
                ks.setdefault(temperature, []).append(found)
                spread.setdefault(temperature, []).append(max(found.values()) / min(found.values()))
        conditions = (
            f"smollm2-135m bf16, 3 texts of {LENGTHS[-1]} tokens, last 20 windows; score temperature 1, as released; "
            f"at {SHARP}: {fmean(spread[SHARP]):.2f}"
        )
        return self.finding(claim, mean_estimate(spread[1.0]), conditions, details={"k_by_layer": ks})


def needle_grid(bench: Workbench, model: LanguageModel) -> Found:
    """All choosers at one budget on the same prompts, and dense and recent-only answers beside them."""
    found = Found()
    choosers: dict[str, tuple[Watched, ActQKVConfig]] = {
        "probe (window)": (Watched(), SCALED),
        "probe (running)": (Watched(), SCALED.model_copy(update={"probe": "running"})),
        "mean": (Watched(), SCALED.model_copy(update={"probe": "mean"})),
        "last query": (Watched("last query"), SCALED),
        "random": (Watched("random"), SCALED),
    }
    others: dict[str, tuple[Method, MethodConfig]] = {
        "dense": (Dense(), Dense.Config()),
        "recent only": (Streaming(), StreamingConfig(sinks=16, window=BUDGET - 16)),
    }
    workload, requests = passkeys(PROMPT_TOKENS, PROMPTS)
    for index, request in enumerate(requests):
        bench.tick(f"needle blocks, prompt {index + 1} of {PROMPTS}")
        block = (needle_token(model, request) - SCALED.n_init) // SCALED.block
        for name, (method, config) in {**choosers, **others}.items():
            completion = Contender(method, config, model).complete([request], RequestMeter())[0]
            found.exact.setdefault(name, []).append(workload.score(completion, request) / 100)
        for name, (watched, _) in choosers.items():
            found.share.setdefault(name, []).append(fmean(block in blocks for blocks in watched.window.values()))
    return found


def needle_token(model: LanguageModel, request: Request) -> int:
    """The token at which the pass key itself first stands whole in the decoded prompt."""
    ids, key = model.encode(request).ids, request.references[0]
    low, high = 1, len(ids)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if key in model.tokenizer.decode(ids[:middle]) else (middle + 1, high)
    return low - 1


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in figures.items())
