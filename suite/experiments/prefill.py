"""Prefill, dense beside sparse: times to the first token, plans raced in a layer, the attention mass they find."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor

from analysis.statistics import PairKey
from kernels.counting import counting
from suite.experiments.base import Workbench
from suite.experiments.clock import first_token_s, stamps
from suite.experiments.texts import prose
from suite.harness.contender import Contender
from suite.methods.attention.base import AttentionMethod, SelectedAttention
from suite.methods.attention.selection import Causal, Plan, Site
from suite.models.language_model import LanguageModel
from workloads.schema import Request

LENGTHS = {4096: 5, 8192: 4, 16384: 3, 32768: 1}
"""Rounds of the race to the first token by prompt length in tokens."""

Times = dict[int, dict[str, dict[PairKey, float]]]
"""Seconds by prompt length, contender, and what was timed of both (a round, a layer)."""


def race_prefill(bench: Workbench, model: LanguageModel, contenders: Mapping[str, Contender]) -> Times:
    """Seconds to the first token, interleaved; a length with several rounds warms up once."""
    for contender in contenders.values():
        contender.prepare()
    times: Times = {}
    for length, rounds in LENGTHS.items():
        prompt = model.tokenizer.decode(prose(model, length)[0].tolist())
        request = Request(
            id="r", task="t", prompt=prompt, metric="none", max_new_tokens=1, truncation="extend"
        )  # fmt: skip
        times[length] = {name: {} for name in contenders}
        for turn in range(0 if rounds > 1 else 1, rounds + 1):
            for name, contender in contenders.items():
                bench.tick(f"prefill of {length} tokens, round {turn}: {name}")
                taken = first_token_s(stamps(contender, request))
                if turn > 0:
                    times[length][name]["first token", turn] = taken
    return times


def told(times: Times) -> str:
    """Mean seconds of every contender by length: "4K 1.20 s dense, 0.80 s dhsa; 8K ..."."""
    rows = []
    for length, row in times.items():
        means = ", ".join(f"{fmean(values.values()):.3g} s {name}" for name, values in row.items())
        rows.append(f"{length // 1024}K {means}")
    return "; ".join(rows)


def seconds(times: Times) -> dict[int, dict[str, list[float]]]:
    """The raw seconds, for the ledger."""
    return {length: {name: [*values.values()] for name, values in row.items()} for length, row in times.items()}


def prepared(method: AttentionMethod, model: LanguageModel, config: Any) -> AttentionMethod:
    """Ready for one row."""
    method.prepare(model, config)
    method.begin_batch(model.config, config, 1)
    return method


def prefill(model: LanguageModel, method: AttentionMethod, config: Any, ids: Tensor) -> Tensor:
    """One pass over ids [1, T]; the logits [1, vocab] after the last."""
    attention = SelectedAttention(model.config, prepared(method, model, config))
    with torch.inference_mode():
        return cast(Tensor, model.decoder(ids, model.decoder.new_cache(1, ids.shape[1]), attention))


Result = tuple[Tensor, Tensor]


def in_turn(
    makers: Mapping[str, Callable[[], Plan]], q: Tensor, site: Site
) -> tuple[dict[str, Result], dict[str, float]]:
    """Every plan's result, in the order given, and the seconds that making and reading it took."""
    results, taken = {}, {}
    for name, make in makers.items():
        start = time.perf_counter()
        results[name] = make().attend(q, site)
        taken[name] = time.perf_counter() - start
    return results, taken


def attention_flops(plan: Plan, q: Tensor, site: Site) -> float:
    """FLOPs of reading a plan: 4 D for every pair of a query and a key."""
    with counting() as counter:
        plan.attend(q, site)
    return sum(cost.flops for name, cost in counter.costs.items() if name.endswith("prefill"))


@dataclass
class Found:
    """By plan, one value per layer and text: the attention mass it finds, and its share of all causal pairs."""

    recall: dict[str, list[float]] = field(default_factory=dict)
    density: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Beneath:
    """Plans whose log-sum-exps over some rows are compared with those of full attention, which counts."""

    plans: Mapping[str, Plan]
    positions: Tensor
    rows: slice
    found: Found

    def attend(self, q: Tensor, site: Site) -> Result:
        """The full result."""
        everything = Causal(self.positions)
        full, pairs = everything.attend(q, site), attention_flops(everything, q, site)
        for name, plan in self.plans.items():
            recall = (plan.attend(q, site)[1] - full[1])[self.rows].exp().clamp(max=1)
            self.found.recall.setdefault(name, []).append(float(recall.mean()))
            self.found.density.setdefault(name, []).append(attention_flops(plan, q, site) / pairs)
        return full
