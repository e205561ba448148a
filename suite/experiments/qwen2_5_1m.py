"""Qwen2.5-1M's claims: recall beyond the trained length, sparse prefill against length, refinement, chunk memory.

Times are those of attention in a few layers of the default model over one long text: every segment is read by the full
and by the sparse plan in turn, estimation and list building included, and the model goes on with the full result. Times
at a length are sums over the segments up to it. What lies beyond the longest measured length is a fit, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from analysis.statistics import Estimate, mean_estimate, paired_ratio, ratio_of_means
from suite.engines.pipeline import ChunkCost, dynamic_chunks, fixed_chunks, simulate
from suite.experiments import step_loop
from suite.experiments.base import Experiment, Workbench
from suite.experiments.memory import prefill_peak
from suite.experiments.prefill import attention_flops, in_turn
from suite.experiments.recall import TRAINED, Column, long_retrieval, means, recall_grid
from suite.experiments.step_loop import race_loops
from suite.experiments.synthetic import filled_cache
from suite.experiments.texts import prose
from suite.harness.measurement import Finding
from suite.methods.attention.base import SelectedAttention
from suite.methods.attention.dense import Dense
from suite.methods.attention.dual_chunk import Region, whole
from suite.methods.attention.qwen2_5_1m import Qwen25Config, Qwen25OneM
from suite.methods.attention.refinement import refine_on
from suite.methods.attention.selection import Plan, Site
from suite.methods.base import Claim
from suite.models.attention import DenseAttention, Step
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model

LENGTHS = (TRAINED, 256, 512, 1024, 2048)
SEQUENCES = 40
LAB = Qwen25Config(chunk=96, local=16)
LAB_SPARSE = LAB.model_copy(
    update={"sparse_from": TRAINED, "verticals": 48, "slashes": 3, "near": 1, "sinks": 4, "pass_tokens": 256}
)
SERVED = Qwen25Config(sparse_from=0, verticals=128, slashes=128, near=64, pass_tokens=2048)
RACE_TOKENS, RACE_LAYERS = 32768, (5, 15, 25)
MILLION = 1_000_000
SEARCH_TOKENS, TARGET_TOKENS = 1024, 4096
MEMORY_TOKENS, MEMORY_CHUNK = 4096, 128
PASS_PREFIXES, PASS_TOKENS = (0, 2048, 8192, 16384), (256, 1024, 2048)
PIPELINE_TOKENS, STAGES, CHUNKS = 131072, 4, (4096, 8192, 16384, 32768)


class Qwen25Experiment(Experiment):
    """Lab model for the length, default model for the rest."""

    slug: ClassVar[str] = "qwen2_5_1m"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        far, plain, speed, refinement, memory, pipeline, retrieval, steps = Qwen25OneM.card.claims
        yield from self._lengths(bench, far, plain)
        yield self._long(bench, retrieval)
        model = load_model("smollm2-135m", "bf16")
        yield self._refinement(bench, model, refinement)
        yield self._speed(bench, model, speed)
        yield self._memory(bench, model, memory)
        yield self._pipeline(bench, model, pipeline)
        yield self._steps(bench, model, steps)

    def _lengths(self, bench: Workbench, far: Claim, plain: Claim) -> Iterator[Finding]:
        columns: dict[str, Column] = {
            "plain": (Dense(), Dense.Config()),
            "dual chunk": (Qwen25OneM(), LAB.model_copy(update={"temperature": False})),
            "dual chunk and temperature": (Qwen25OneM(), LAB),
            "sparse prefill too": (Qwen25OneM(), LAB_SPARSE),
        }
        grid = recall_grid(load_model("lab-recall", "fp32"), columns, LENGTHS, SEQUENCES, bench)
        ours, dense, last = grid["dual chunk and temperature"], grid["plain"], LENGTHS[-1]
        table = means(grid)
        conditions = (
            f"lab-recall (trained on {TRAINED}), {SEQUENCES} sequences per length, fp32, s={LAB.chunk}, l={LAB.local}; "
            f"at {last} tokens: " + ", ".join(f"{name} {row[last]:.2f}" for name, row in table.items())
        )
        details: dict[str, Any] = {"accuracy": table, "samples": grid}
        without = table["plain"][last] / table["plain"][TRAINED]
        kept = ratio_of_means(ours[last], ours[TRAINED])
        yield self.finding(far, kept, conditions, null=without, details=details)
        yield self.finding(plain, ratio_of_means(ours[last], dense[last]), conditions)

    def _long(self, bench: Workbench, claim: Claim) -> Finding:
        found = long_retrieval("dual chunk and temperature", (Qwen25OneM(), Qwen25Config()), bench)
        return self.finding(claim, found.kept, found.conditions, null=found.plain, details=found.details)

    def _refinement(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Heads searched on a short text, then refined on a long one; measured on another long one before and after."""
        ids, unseen = prose(model, TARGET_TOKENS), prose(model, TARGET_TOKENS, seed=1)
        bench.tick(f"searching heads at {SEARCH_TOKENS} tokens")
        config = SERVED.model_copy(update={"calibration": SEARCH_TOKENS, "verticals": 32, "slashes": 32, "near": 16})
        heads = refine_on(model, config, ids[:, :SEARCH_TOKENS])
        bench.tick(f"measuring them at {TARGET_TOKENS} tokens")
        before = refine_on(model, config, unseen, heads, steps=0).recall
        sizes = [float((heads.verticals + heads.slashes).float().mean())]
        bench.tick(f"refining them at {TARGET_TOKENS} tokens")
        refine_on(model, config.model_copy(update={"calibration": TARGET_TOKENS}), ids, heads)
        bench.tick("measuring the refined heads")
        after = refine_on(model, config, unseen, heads, steps=0).recall
        sizes.append(float((heads.verticals + heads.slashes).float().mean()))
        conditions = (
            f"smollm2-135m bf16, {before.numel()} heads, {TARGET_TOKENS} tokens of other prose than was refined on; "
            f"searched at {SEARCH_TOKENS}: mean recall {before.mean():.3f}, worst head {before.min():.3f}; refined: "
            f"worst head {after.min():.3f}; columns and diagonals per head {sizes[0]:.0f} -> {sizes[1]:.0f}"
        )
        details = {"before": before.tolist(), "after": after.tolist(), "verticals": heads.verticals.tolist()}
        estimate = mean_estimate(after.flatten().tolist())
        return self.finding(claim, estimate, conditions, null=float(before.mean()), details=details)

    def _speed(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        race = race_prefill(model, prose(model, RACE_TOKENS), bench)
        estimate = paired_ratio(race.seconds("full"), race.seconds("sparse"))
        curve, beyond = race.curve(), race.extrapolated(MILLION)
        points = ", ".join(f"{length // 1024}K {ratio:.2f}x" for length, ratio in curve.items())
        conditions = (
            f"smollm2-135m bf16, layers {RACE_LAYERS}, {bench.threads} threads, passes of {SERVED.pass_tokens}, "
            f"n_v={SERVED.verticals}, n_s={SERVED.slashes} for every head; whole prefill by length: {points}; pair "
            f"density {race.density:.4f} and attention recall {race.recall:.3f} in the last pass of layer "
            f"{RACE_LAYERS[-1]}; the figure is the last pass; fitted to 1M tokens (extrapolation): {beyond:.1f}x"
        )
        return self.finding(claim, estimate, conditions, details={"times": race.times, "curve": curve, "at_1M": beyond})

    def _memory(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        peaks = {}
        ids = prose(model, MEMORY_TOKENS)
        for chunk in (MEMORY_CHUNK, MEMORY_TOKENS):
            bench.tick(f"prefill of {MEMORY_TOKENS} tokens in chunks of {chunk}")
            peaks[chunk] = [prefill_peak(model, ids, DenseAttention(model.config), chunk) for _ in range(5)]
        saving = ratio_of_means(peaks[MEMORY_CHUNK], peaks[MEMORY_TOKENS])
        estimate = saving and Estimate(1 - saving.value, minus(saving.high), minus(saving.low), saving.n)
        whole, chunked = (peaks[chunk][0] >> 20 for chunk in (MEMORY_TOKENS, MEMORY_CHUNK))
        conditions = (
            f"smollm2-135m bf16, {MEMORY_TOKENS} tokens, resident set beyond weights and cache: {whole} MB whole, "
            f"{chunked} MB in chunks of {MEMORY_CHUNK} "
            f"(1 - x/L = {1 - MEMORY_CHUNK / MEMORY_TOKENS:.3f})"
        )
        return self.finding(claim, estimate, conditions, null=0.0, details={"peak_bytes": peaks})

    def _pipeline(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Measured passes of the default model, replayed in a simulated pipeline of four stages."""
        cost = ChunkCost.fitted(passes(bench, model))
        runs = {f"fixed {chunk}": simulate(fixed_chunks(PIPELINE_TOKENS, chunk), cost, STAGES) for chunk in CHUNKS}
        dynamic = {first: simulate(dynamic_chunks(PIPELINE_TOKENS, first, cost), cost, STAGES) for first in CHUNKS}
        best = min(dynamic.values(), key=lambda run: run.seconds)
        told = ", ".join(f"{name} {run.seconds:.1f} s ({run.bubble:.0%} waiting)" for name, run in runs.items())
        conditions = (
            f"SIMULATION: {STAGES} stages, {PIPELINE_TOKENS} tokens, cost of a pass fitted to measured ones of "
            f"smollm2-135m; {told}; dynamic {best.seconds:.1f} s ({best.bubble:.0%} waiting)"
        )
        estimate = Estimate(
            runs[f"fixed {CHUNKS[-1]}"].seconds / best.seconds, None, None, 1, "a simulation, no interval"
        )
        return self.finding(claim, estimate, conditions, details={"cost": asdict(cost)})

    def _steps(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """The suite's own two loops; nothing of the paper's system is in them but the idea."""
        race, rows = race_loops(bench, model), f"{step_loop.REQUESTS} requests through {step_loop.ROWS} rows"
        speed = race.speed_ratio()
        faster = "" if speed is None else f"{speed.value:.3f} [{speed.low or 0:.3f}, {speed.high or 0:.3f}]"
        conditions = (
            f"the suite's own two step loops on this CPU: smollm2-135m bf16, {rows}, {step_loop.ROUNDS} interleaved "
            f"rounds, runner on 1 thread; {race.told('synchronous')}; {race.told('asynchronous')}; tokens/s ratio "
            f"{faster}; outputs {'identical' if race.identical else 'DIFFER'}"
        )
        return self.finding(claim, race.idle_ratio(), conditions, direction="at most", details=race.details())


def passes(bench: Workbench, model: LanguageModel) -> list[tuple[int, int, float]]:
    """(tokens before, tokens, seconds) of dense passes over a synthetic cache, the second of two each."""
    rows = []
    cache = filled_cache(model, PASS_PREFIXES[-1], PASS_TOKENS[-1], lambda step, layer, generator: None)
    attention = DenseAttention(model.config)
    with torch.inference_mode():
        for before in PASS_PREFIXES:
            for tokens in PASS_TOKENS:
                bench.tick(f"a pass of {tokens} tokens after {before}")
                for _ in range(2):
                    cache.lengths[0] = before  # what lies behind is written anew
                    start = time.perf_counter()
                    model.decoder(torch.ones(1, tokens, dtype=torch.long), cache, attention)
                    seconds = time.perf_counter() - start
                rows.append((before, tokens, seconds))
    return rows


def minus(share: float | None) -> float | None:
    """What is left of 1."""
    return None if share is None else 1 - share


@dataclass
class Race:
    """Seconds of full and sparse attention per layer and segment; `times` rows are (layer, end, full, sparse).

    `density` (of pairs) and `recall` (of attention mass) are those of the last segment in the last raced layer.
    """

    times: list[tuple[int, int, float, float]] = field(default_factory=list)
    density: float = 1.0
    recall: float = 1.0

    def seconds(self, which: str) -> dict[tuple[str, int], float]:
        """Of the last pass, by layer."""
        last = max(end for _, end, _, _ in self.times) - SERVED.pass_tokens
        sums: dict[tuple[str, int], float] = {}
        for layer, end, full, sparse in self.times:
            if end > last:
                sums["layer", layer] = sums.get(("layer", layer), 0.0) + (full if which == "full" else sparse)
        return sums

    def totals(self, length: int) -> tuple[float, float]:
        """Full and sparse seconds of a whole prefill of that many tokens."""
        rows = [(full, sparse) for _, end, full, sparse in self.times if end <= length]
        return sum(full for full, _ in rows), sum(sparse for _, sparse in rows)

    def curve(self) -> dict[int, float]:
        """Speed-up of a whole prefill by length."""
        longest = max(end for _, end, _, _ in self.times)
        lengths = [length for length in (4096, 8192, 16384, 32768) if length <= longest] or [longest]
        return {length: full / sparse for length in lengths for full, sparse in [self.totals(length)]}

    def extrapolated(self, length: int) -> float:
        """The ratio of two quadratics in the length that are fitted to the totals."""
        ends = sorted({end for _, end, _, _ in self.times})
        totals = np.array([self.totals(end) for end in ends])
        fits = [np.polyfit(ends, totals[:, column], 2) for column in (0, 1)]
        return float(np.polyval(fits[0], length) / np.polyval(fits[1], length))


@dataclass(frozen=True)
class Raced:
    """One segment, read by both plans in turn; the full result counts."""

    method: Racing
    layer: int
    row: int
    regions: list[Region]
    step: Step

    def attend(self, q: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        """Which plan begins changes from segment to segment."""
        race, order = self.method.race, ("full", "sparse")
        if len(race.times) % 2 == 0:
            order = ("sparse", "full")
        results, taken = in_turn({which: partial(self._plan, which, q, site) for which in order}, q, site)
        race.times.append((self.layer, site.first + len(q), taken["full"], taken["sparse"]))
        race.recall = float((results["sparse"][1] - results["full"][1]).exp().clamp(max=1).mean())
        if site.first + len(q) == RACE_TOKENS:
            sparse, full = (attention_flops(self._plan(which, q, site), q, site) for which in ("sparse", "full"))
            race.density = sparse / full
        return results["full"]

    def _plan(self, which: str, q: Tensor, site: Site) -> Plan:
        if which == "sparse":
            return self.method.sparse(self.layer, q, self.row, site.first, self.regions, self.step)
        return whole(self.regions, site.first, len(q))


class Racing(Qwen25OneM):
    """Full attention everywhere, raced with the sparse plan in some layers."""

    def __init__(self) -> None:
        self.race = Race()

    def segment(self, layer: int, q: Tensor, row: int, first: int, regions: list[Region], step: Step) -> Plan:
        if layer in RACE_LAYERS:
            return Raced(self, layer, row, regions, step)
        return whole(regions, first, len(q))


def race_prefill(model: LanguageModel, ids: Tensor, bench: Workbench) -> Race:
    """One prefill of ids [1, T]."""
    method = Racing()
    method.begin_batch(model.config, SERVED, 1)
    attention, cache = SelectedAttention(model.config, method), model.decoder.new_cache(1, ids.shape[1])
    with torch.inference_mode():
        for start in range(0, ids.shape[1], SERVED.pass_tokens):
            bench.tick(f"racing prefill, {start} of {ids.shape[1]} tokens")
            model.decoder(ids[:, start : start + SERVED.pass_tokens], cache, attention)
    return method.race
