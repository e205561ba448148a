"""What chains side by side cost: tokens per second of 16 against one, and the memory of the prompt they share."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from statistics import fmean
from typing import ClassVar

import torch

from analysis.statistics import Estimate, ratio_from_logs
from suite.experiments.base import Experiment, Workbench
from suite.harness.heap import quiet_heap
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.search.asks import run
from suite.methods.search.base import Desk
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.self_consistency import SelfConsistency
from suite.methods.search.trace import Problem, Trace
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.spec import WorkloadSpec

MODEL = "smollm2-135m"
CHAINS, TOKENS, ROUNDS = 16, 48, 7
TEMPERATURE = 0.8


class SelfConsistencyExperiment(Experiment):
    """One GSM8K prompt, one chain and sixteen in turn; the prompt's pass is not part of the time."""

    slug: ClassVar[str] = "self_consistency"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        model = load_model(MODEL, "bf16")
        problem = gsm8k(model)
        throughput, memory = SelfConsistency.card.claims
        speeds: dict[int, list[float]] = {1: [], CHAINS: []}
        for turn in range(-1, ROUNDS):
            bench.tick(f"chains side by side, round {turn + 1} of {ROUNDS}")
            for count, found in speeds.items():
                speed = tokens_per_second(model, problem, count)
                if turn >= 0:  # the first is a warm-up
                    found.append(speed)
        told = ", ".join(f"{n}: {fmean(found):.0f} tokens/s" for n, found in speeds.items())
        ratio = ratio_from_logs([math.log(many / one) for one, many in zip(*speeds.values(), strict=True)])
        text = f"{MODEL} bf16, {bench.threads} threads, prompt of {len(problem.ids)} tokens, {TOKENS} drawn behind it"
        yield self.finding(throughput, ratio, f"{text}; {told}")
        used, alone = memory_bytes(model, problem)
        shared = CHAINS * alone / used
        text += f"; {CHAINS} chains hold {used / 1e6:.1f} MB, one alone {alone / 1e6:.1f} MB"
        yield self.finding(memory, Estimate(shared, shared, shared, 1), text)


def gsm8k(model: LanguageModel) -> Problem:
    """The first question of the workload, as the search sees it."""
    (request,) = make_workload(WorkloadSpec(name="gsm8k", task="gsm8k", limit=1, seed=0)).requests("gsm8k", 1, 0)
    return Problem.of(request, model.encode(request).ids)


def drawn(model: LanguageModel, problem: Problem, count: int) -> tuple[NativeSampler, list[Trace], float]:
    """The sampler behind `count` chains of TOKENS tokens (fewer where one ends), the chains, and the seconds."""
    policy = Policy(problem, TEMPERATURE, 1.0, Ledger())
    sampler = NativeSampler(model, RequestMeter())
    sampler.prefill([policy.root])
    search = policy.finish([policy.root] * count, most=TOKENS)
    with quiet_heap():
        start = time.perf_counter()
        ((_, chains),) = run([search], Desk(sampler, None).serve)
        return sampler, chains, time.perf_counter() - start


def tokens_per_second(model: LanguageModel, problem: Problem, count: int) -> float:
    """Of all chains together."""
    _, chains, seconds = drawn(model, problem, count)
    return sum(chain.length for chain in chains) / seconds


def memory_bytes(model: LanguageModel, problem: Problem) -> tuple[int, int]:
    """Bytes of the pages that CHAINS chains hold together, and that one holds alone."""
    held = []
    for count in (CHAINS, 1):
        sampler, chains, _ = drawn(model, problem, count)
        held.append(sampler.forest.pool.used_bytes)
        assert len(chains) == count  # they hold their pages as long as they are there
    return held[0], held[1]
