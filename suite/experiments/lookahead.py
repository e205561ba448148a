"""Lookahead's claims on the default model: the card's small experiment.

`rag-copy` is the workload whose answers copy from the context, `chat-open` the one without repetition. Warm tries know
the model's own answers to other prompts of the same kind, as in the paper; cold ones begin empty, and learn from the
requests as they come. Speeds are bf16 at batch 1, per token with the prompt's share of time, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from analysis.statistics import Estimate, mean_estimate
from suite.experiments.base import Experiment, Workbench
from suite.experiments.drafting import (
    CONTEXT,
    FREE,
    Agreement,
    Racers,
    Record,
    VerifyCost,
    agreement,
    decode_speedup,
    figure_table,
    further,
    race,
    speedup,
    verify_cost,
    with_interval,
)
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.attention.dense import Dense
from suite.methods.base import Claim, Method
from suite.methods.decoding.lookahead import Lookahead, LookaheadConfig
from suite.methods.decoding.ngram import Ngram
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.spec import WorkloadSpec
from workloads.schema import Request

WARM_UPS, TESTS = 200, 30  # prompts; of `rag-copy` half of each task
WARM_SEED, TEST_SEED = 1, 0
BATCH = 8  # of the answers that warm the tries
EXACT = 20  # requests of at most 128 tokens in fp32
LENGTHS = (4, 8, 16, 32, 64)
LENGTH, BRANCH = 16, 8  # a pass over 16 tokens costs hardly more than one over 8 (AVX-512, two cores)

KINDS = {"rag-copy": ("quote", "list"), "chat-open": ("questions",)}
COLD = ("cold", "prompt only", "ngram")
"""Racers whose tries are not filled beforehand."""


class LookaheadExperiment(Experiment):
    """Losslessness first; then one race on each workload, and the cost model beside both."""

    slug: ClassVar[str] = "lookahead"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        lossless, rag, chat, branches, warm, sources, free = Lookahead.card.claims
        yield self._lossless(bench, load_model("smollm2-135m", "fp32"), lossless)
        model = load_model("smollm2-135m", "bf16")
        cost = verify_cost(model, bench)
        copied = raced(model, "rag-copy", full_field(), bench)
        yield self._speed(bench, rag, copied, cost)
        yield self._speed(bench, chat, raced(model, "chat-open", small_field(), bench), cost, null=0.0)
        yield from self._drafts(branches, warm, sources, copied)
        yield self._free(bench, free, cost)

    def _lossless(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        found = compared(model, bench)
        conditions = (
            f"smollm2-135m fp32, {len(found.shares)} requests of both workloads, {found.tokens} greedy tokens, "
            f"all modes; {found.told}"
        )
        estimate, details = mean_estimate(found.shares), {"gaps": found.gaps}
        return self.finding(claim, estimate, conditions, null=0.0, reason=found.reason, details=details)

    def _speed(self, bench: Workbench, claim: Claim, found: Raced, cost: VerifyCost, null: float = 1.0) -> Finding:
        """The figure is that of warm tries with LENGTH tokens per pass; everything else stands beside it."""
        records, best = found.records, f"D={LENGTH}"
        told = ", ".join(f"{name} {with_interval(speedup(records, name))}" for name in records if name != "dense")
        measured = decode_speedup(records, best)
        predicted = cost.predicted(records[best])
        gap = predicted / measured.value - 1 if measured else 0.0
        conditions = (
            f"smollm2-135m bf16, batch 1, {bench.threads} threads, {found.workload}, {found.requests} requests after "
            f"{found.warm} others, prefill included, D={LENGTH}; speed-ups: {told}; decode alone "
            f"{with_interval(measured)} where the cost model says {predicted:.2f} ({gap:+.0%})"
        )
        details = {"contenders": figure_table(records, cost), "r": {w: cost.ratio(w) for w in cost.pass_s}}
        return self.finding(claim, speedup(records, best), conditions, null=null, details=details)

    def _drafts(self, branches: Claim, warm: Claim, sources: Claim, found: Raced) -> Iterator[Finding]:
        """Tokens per pass; they do not depend on the clock."""
        records = found.records
        tau = ", ".join(f"{name} {record.tau:.2f}" for name, record in records.items())
        conditions = f"smollm2-135m bf16, rag-copy, {found.requests} requests, D={LENGTH}; tokens per pass: {tau}"
        hier = f"D={LENGTH}"
        yield self.finding(branches, further(records, hier, "one branch"), conditions)
        yield self.finding(warm, further(records, hier, f"cold {hier}"), conditions)
        better = max(("prompt only", "answers only"), key=lambda name: records[name].tau)
        yield self.finding(sources, further(records, hier, better), f"{conditions}; against {better}")

    def _free(self, bench: Workbench, claim: Claim, cost: VerifyCost) -> Finding:
        ratios = ", ".join(f"{width}: {cost.ratio(width):.2f}" for width in cost.pass_s)
        conditions = (
            f"smollm2-135m bf16, {bench.threads} threads, context {CONTEXT}, passes over trees up to {FREE} times the "
            f"time of one token; r(T) {ratios}"
        )
        width = float(cost.free_width)
        return self.finding(claim, Estimate(width, width, width, 1, "the largest width measured"), conditions)


@dataclass(frozen=True)
class Raced:
    """A race, and what it was run on."""

    workload: str
    requests: int
    warm: int
    records: dict[str, Record]


def config(**options: Any) -> LookaheadConfig:
    """The experiment's setting, with something changed."""
    return LookaheadConfig(**{"decoding_length": LENGTH, "branch_length": BRANCH} | options)


def small_field() -> Racers:
    """What is compared on every workload."""
    return {
        "dense": (Dense(), Dense.Config()),
        "ngram": (Ngram(), Ngram.Config()),
        f"D={LENGTH}": (Lookahead(), config()),
        f"cold D={LENGTH}": (Lookahead(), config()),
    }


def full_field() -> Racers:
    """The card's sweep: lengths, modes, and what the tries know."""
    lengths = {f"D={length}": (Lookahead(), config(decoding_length=length)) for length in LENGTHS}
    return {
        **small_field(),
        **lengths,
        "parallel": (Lookahead(), config(mode="par")),
        "one branch": (Lookahead(), config(mode="one")),
        "prompt only": (Lookahead(), config(source="input")),
        "answers only": (Lookahead(), config(source="output")),
    }


def raced(model: LanguageModel, workload: str, racers: Racers, bench: Workbench) -> Raced:
    """The test requests through all racers, with tries that know the answers to the warm-up requests."""
    warm, tests = requests(workload, WARM_UPS, WARM_SEED), requests(workload, TESTS, TEST_SEED)
    check_disjoint(warm, tests)
    taught = answers(model, warm, bench)
    return Raced(workload, len(tests), len(warm), race(model, racers, tests, bench, partial(_teach, taught)))


def _teach(taught: Sequence[Sequence[int]], name: str, method: Method) -> None:
    if isinstance(method, Lookahead) and not name.startswith(COLD):
        for answer in taught:
            method.teach(answer)


def requests(workload: str, count: int, seed: int) -> list[Request]:
    """Of all tasks, in turn."""
    tasks = KINDS[workload]
    made = make_workload(WorkloadSpec(name=workload, task=tasks[0], limit=count, seed=seed))
    columns = [list(made.requests(task, -(-count // len(tasks)), seed)) for task in tasks]
    return [request for row in zip(*columns, strict=True) for request in row][:count]


def check_disjoint(warm: Sequence[Request], tests: Sequence[Request]) -> None:
    """Tries that have seen the answers would be a fraud."""
    seen = {request.prompt for request in warm} & {request.prompt for request in tests}
    if seen:
        raise ValueError(f"{len(seen)} test prompts were warm-up prompts too")


def answers(model: LanguageModel, asked: Sequence[Request], bench: Workbench) -> list[tuple[int, ...]]:
    """The model's own, in batches."""
    dense = Contender(Dense(), Dense.Config(), model)
    said: list[tuple[int, ...]] = []
    for first in range(0, len(asked), BATCH):
        bench.tick(f"answers to warm the tries, {first} of {len(asked)}")
        said += [done.token_ids for done in dense.complete(asked[first : first + BATCH], RequestMeter())]
    return said


def compared(model: LanguageModel, bench: Workbench) -> Agreement:
    """All modes in turn, on requests of both workloads."""
    kinds = [LookaheadConfig(decoding_length=LENGTH, mode=mode) for mode in ("hier", "par", "one")]
    ours = [Contender(Lookahead(), kind, model) for kind in (*kinds, config(source="output"))]
    asked = [one for name in KINDS for one in requests(name, EXACT // len(KINDS), TEST_SEED)]
    return agreement(model, ours, asked, bench)
