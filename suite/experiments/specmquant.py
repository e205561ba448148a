"""SpecMQuant's claims on the default model: speculation on int4 weights, and the hierarchy against trees and chains.

The compatibility study is also run on two layers of 4096 x 4096 matrices of random weights, where the traffic of
weights is nearly all there is: the default model's head, a fifth of its weights, stays in 16 bits. Speeds are batch 1,
greedy, per token; the paper's are without prefill, and both are told. Trees and chains are the best of a sweep on the
very requests they are judged on, HierSpec's settings too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from analysis.statistics import Estimate, mean_estimate, paired_ratio
from suite.experiments.base import Experiment, Workbench
from suite.experiments.drafting import (
    CONTEXT,
    Agreement,
    Passes,
    Racers,
    Record,
    VerifyCost,
    agreement,
    decode_speedup,
    figure_table,
    race,
    speedup,
    with_interval,
)
from suite.experiments.lookahead import requests
from suite.experiments.specmquant_cost import (
    PRECISIONS,
    at_paper_costs,
    at_precision,
    draft_parts,
    hier_parts,
    machines,
    race_precisions,
    ratios,
    roofline_ratio,
    wide_model,
)
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.methods.attention.dense import Dense
from suite.methods.base import Claim, Method, MethodConfig
from suite.methods.decoding.draft_model import DraftModelSpeculation
from suite.methods.decoding.eagle import Eagle
from suite.methods.decoding.specmquant import MiddleFigures, SpecMQuant
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.shapes import shape_of

TESTS, TEST_SEED = 16, 0
EXACT = 12  # requests of 128 tokens in fp32 at each precision
TREES = (8, 16, 24, 48)
CHAINS = (2, 4, 6)
HIERARCHIES = ((3, 10), (3, 30), (6, 10), (6, 30))  # shortest chain, nodes
TREE = 32  # tokens of the pass whose r(T) is judged
WORKLOAD = "chat-open"


@dataclass(frozen=True)
class Raced:
    """A race at one precision: what came of it, and what HierSpec's middle model did in it."""

    records: dict[str, Record]
    figures: dict[str, MiddleFigures]
    requests: int

    def best(self, kind: str) -> str:
        """The racer of this kind with the least time per token behind the first."""
        names = [name for name in self.records if name.startswith(kind)]
        return min(names, key=lambda name: sum(self.records[name].decode_s.values()))

    def over(self, ours: str, other: str) -> Estimate | None:
        """Decode time of the other over ours, one pair per request."""
        return paired_ratio(self.records[other].decode_s, self.records[ours].decode_s)

    def over_whole(self, ours: str, other: str) -> Estimate | None:
        """The same with prefill."""
        return paired_ratio(self.records[other].whole_s, self.records[ours].whole_s)


class SpecMQuantExperiment(Experiment):
    """Losslessness, r(T) by precision, then one race at each precision."""

    slug: ClassVar[str] = "specmquant"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        lossless, tree_cost, acceptance, gain, hier_tree, hier_chain = SpecMQuant.card.claims
        yield self._lossless(bench, load_model("smollm2-135m", "fp32"), lossless)
        model = load_model("smollm2-135m", "bf16")
        narrow, wide = race_precisions(model, bench), race_precisions(wide_model(model), bench)
        yield self._tree_cost(bench, tree_cost, model, narrow, wide)
        raced = {name: raced_at(name, model, bench) for name in PRECISIONS}
        yield self._acceptance(bench, acceptance, raced)
        yield self._gain(bench, gain, raced)
        yield from self._hierarchy(bench, (hier_tree, hier_chain), raced["int4"], narrow["int4"].cost(), wide)

    def _lossless(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        found = Agreement([], [], 0)
        for name in PRECISIONS:
            with at_precision(model, name):
                field = [Contender(method, config, model) for method, config in exact_field()]
                found += agreement(model, field, requests(WORKLOAD, EXACT, TEST_SEED), bench)
        conditions = (
            f"smollm2-135m fp32, weights as they are and in int4, {len(found.shares)} requests of {WORKLOAD}, "
            f"{found.tokens} greedy tokens, HierSpec and EAGLE; {found.told}"
        )
        details = {"gaps": found.gaps, "tokens": found.tokens}
        return self.finding(
            claim, mean_estimate(found.shares), conditions, null=0.0, reason=found.reason, details=details
        )

    def _tree_cost(
        self,
        bench: Workbench,
        claim: Claim,
        model: LanguageModel,
        narrow: Mapping[str, Passes],
        wide: Mapping[str, Passes],
    ) -> Finding:
        told = [ratio_sentence(name, passes) for name, passes in ((model.name, narrow), (WIDE_NAME, wide))]
        theory = roofline_sentence(wide["16 bit"])
        conditions = (
            f"bf16 activations, {bench.threads} threads, {CONTEXT} tokens of context, passes over trees, precisions in "
            f"turn; {'; '.join(told)}; roofline of the latter: {theory}; the figure is the latter's at T={TREE}"
        )
        details = {name: {w: c.ratio(w) for w in c.pass_s} for name, c in costs(narrow, wide).items()}
        return self.finding(
            claim, paired_ratio(*(ratios(wide[name], TREE) for name in ("int4", "16 bit"))), conditions, details=details
        )

    def _acceptance(self, bench: Workbench, claim: Claim, raced: Mapping[str, Raced]) -> Finding:
        int4, plain = raced["int4"], raced["16 bit"]
        tree = int4.best("tree")
        tau = ", ".join(
            f"{name} {plain.records[name].tau:.2f} and {int4.records[name].tau:.2f}" for name in drafting(int4)
        )
        conditions = f"{told_race(bench, int4)}; tokens per pass at 16 bit and in int4: {tau}; the figure is {tree}'s"
        ratio = paired_ratio(plain.records[tree].passes_per_token, int4.records[tree].passes_per_token)
        return self.finding(claim, ratio, conditions, null=0.0)

    def _gain(self, bench: Workbench, claim: Claim, raced: Mapping[str, Raced]) -> Finding:
        tree = raced["16 bit"].best("tree")
        gains = {name: gains_of(one.records, tree) for name, one in raced.items()}
        told = "; ".join(
            f"{name}: "
            + ", ".join(f"{racer} {with_interval(decode_speedup(one.records, racer))}" for racer in drafting(one))
            for name, one in raced.items()
        )
        conditions = (
            f"{told_race(bench, raced['int4'])}; decode speed-ups over plain decoding of the same weights: {told}"
        )
        return self.finding(
            claim, paired_ratio(gains["16 bit"], gains["int4"]), f"{conditions}; the figure is {tree}'s"
        )

    def _hierarchy(
        self, bench: Workbench, claims: Sequence[Claim], int4: Raced, cost: VerifyCost, wide: Mapping[str, Passes]
    ) -> Iterator[Finding]:
        hier, records = int4.best("hier"), int4.records
        rivals = [int4.best("tree"), int4.best("chain")]
        details: dict[str, Any] = {"contenders": figure_table(records, cost), "tau_m": middle_tau(int4.figures[hier])}
        rows = [f"{name}: {draft_parts(records[name], cost)}" for name in rivals]
        rows.append(f"{hier}: {hier_parts(records[hier], int4.figures[hier], cost)}")
        what_if = at_paper_costs(records[rivals[0]], records[hier], int4.figures[hier], wide["int4"].cost().ratio)
        for claim, rival in zip(claims, rivals, strict=True):
            conditions = (
                f"{told_race(bench, int4)}; {hier} against {rival}, each the best of its sweep, without prefill; with "
                f"prefill {with_interval(int4.over_whole(hier, rival))}; speed-ups over plain decoding with prefill "
                f"{with_interval(speedup(records, hier))} and {with_interval(speedup(records, rival))}; "
                f"{middle_sentence(int4, hier)}; cost model, in int4 steps: {'; '.join(rows)}; with the middle model "
                f"at 1/9 of the target and r of {WIDE_NAME} the same tau would give {what_if:.2f} over the tree"
            )
            yield self.finding(claim, int4.over(hier, rival), conditions, details=details)


WIDE_NAME = "two random layers of 4096 x 4096"


def exact_field() -> list[tuple[Method, MethodConfig]]:
    """The paper's hierarchy, a small one, and a tree."""
    small = SpecMQuant.Config.model_validate({"min_chain": 3, "nodes": 10})
    return [(SpecMQuant(), SpecMQuant.Config()), (SpecMQuant(), small), (Eagle(), Eagle.Config())]


def full_field() -> Racers:
    """Trees on the target, chains of the middle model and of the small draft model, and hierarchies."""
    field: dict[str, tuple[Method, MethodConfig]] = {"dense": (Dense(), Dense.Config())}
    for nodes in TREES:
        field[f"tree of {nodes}"] = (Eagle(), Eagle.Config.model_validate({"nodes": nodes}))
    for drafter, word in (("distilled-w4", "chain"), ("distilled", "small chain")):
        for length in CHAINS:
            options = {"drafter": drafter, "length": length}
            field[f"{word} of {length}"] = (
                DraftModelSpeculation(),
                DraftModelSpeculation.Config.model_validate(options),
            )
    for least, nodes in HIERARCHIES:
        options = {"min_chain": least, "nodes": nodes}
        field[f"hier of {least}, {nodes} nodes"] = (SpecMQuant(), SpecMQuant.Config.model_validate(options))
    return field


def raced_at(precision: str, model: LanguageModel, bench: Workbench) -> Raced:
    """All racers on the target in one precision."""
    field, asked = full_field(), requests(WORKLOAD, TESTS, TEST_SEED)
    with at_precision(model, precision):
        records = race(model, field, asked, bench)
    figures = {name: method.figures for name, (method, _) in field.items() if isinstance(method, SpecMQuant)}
    return Raced(records, figures, len(asked))


def drafting(raced: Raced) -> list[str]:
    """All racers that draft."""
    return [name for name in raced.records if name != "dense"]


def gains_of(records: Mapping[str, Record], name: str) -> dict[tuple[str, int], float]:
    """Decode speed-up over plain decoding, by request."""
    return {key: plain / records[name].decode_s[key] for key, plain in records["dense"].decode_s.items()}


def costs(narrow: Mapping[str, Passes], wide: Mapping[str, Passes]) -> dict[str, VerifyCost]:
    """By model and precision."""
    both = (("smollm2-135m", narrow), (WIDE_NAME, wide))
    return {f"{name}, {kind}": found.cost() for name, passes in both for kind, found in passes.items()}


def ratio_sentence(name: str, passes: Mapping[str, Passes]) -> str:
    """r(T) of one model by precision."""
    parts = []
    for kind, found in passes.items():
        cost = found.cost()
        parts.append(f"{kind} {', '.join(f'{width}: {cost.ratio(width):.2f}' for width in cost.pass_s if width > 1)}")
    return f"r(T) of {name}: {'; '.join(parts)}"


def roofline_sentence(passes: Passes) -> str:
    """What the analytic model says of r(TREE) on this machine and on the paper's."""
    shape, told = shape_of(passes.model.config), []
    for name, machine in machines(passes.model, passes.cost()).items():
        found = (f"{roofline_ratio(shape, machine, size, TREE):.2f} {kind}" for kind, size in PRECISIONS.items())
        told.append(f"{name} {', '.join(found)}")
    return "; ".join(told)


def told_race(bench: Workbench, raced: Raced) -> str:
    """The conditions all races share."""
    return f"smollm2-135m, bf16 activations, batch 1, {bench.threads} threads, {raced.requests} requests of {WORKLOAD}"


def middle_tau(figures: MiddleFigures) -> float:
    """Tokens per pass of the middle model over a tree, its own included."""
    return figures.emitted / max(1, figures.rounds)


def middle_sentence(raced: Raced, hier: str) -> str:
    """What the middle model did."""
    figures, record = raced.figures[hier], raced.records[hier]
    return (
        f"tau_t {record.tau:.2f}, tau_m {middle_tau(figures):.2f} in {figures.rounds / figures.chains:.2f} middle "
        f"rounds per chain of {figures.drafted / figures.chains:.1f}; the middle model's prefill takes "
        f"{figures.prefill_ns / raced.requests / 1e6:.1f} ms a request"
    )
