"""short-m@k's claims on the lab's long thoughts: 20 chains of 500 questions, every curve from the same chains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import ClassVar

import torch

from analysis.budgets import Curve, budget_ratio, curve, difference
from analysis.search import Samples, first_finish, last_finish, majority
from analysis.statistics import Estimate
from suite.experiments.base import Experiment, Workbench
from suite.experiments.thinking import (
    CHAINS,
    ONLINE,
    SUBSETS,
    TEMPERATURE,
    TOP_P,
    Pool,
    agreement,
    auc,
    differences,
    online,
    pool,
    savings,
    shown,
    single,
)
from suite.harness.measurement import Finding
from suite.methods.base import Claim
from suite.methods.search.self_consistency import SelfConsistency, SelfConsistencyConfig
from suite.methods.search.short_m_at_k import ShortConfig, ShortMAtK
from suite.models.loaders import load_model

POLICY, CONTROL, TASK = "chain-long", "chain-long-control", "long"
COLLIDING = "chain-mod4"
"""The reading of answers in which wrong ones meet."""
SIZES = (1, 2, 3, 4, 5, 6, 9, 12, 16, 20)
K, M, BASE = 5, 3, 3
"""Where the paper's times are, its better m, and the majority vote that short-1@k's tokens are compared with."""
METHODS = ("short-1", "short-3", "majority")

short_3 = partial(first_finish, m=M, most=SUBSETS)


@dataclass(frozen=True)
class Curves:
    """The three methods on one set of chains."""

    short_1: Curve
    short_3: Curve
    majority: Curve

    def told(self, k: int) -> str:
        """Accuracy, and mean tokens in all and until the answer, at one size."""
        rows = []
        for name, found in zip(METHODS, (self.short_1, self.short_3, self.majority), strict=True):
            point = found.points()[found.sizes.index(k)]
            rows.append(f"{name}@{k} {point.accuracy.value:.1f} % ({point.gen_tokens:.0f}, {point.seq_tokens:.0f})")
        return ", ".join(rows)


class ShortMAtKExperiment(Experiment):
    """Accuracy, tokens and time from stored chains; then the real method on some of the questions."""

    slug: ClassVar[str] = "short_m_at_k"
    shortfalls: ClassVar[Mapping[str, str]] = {
        "short-3": "wrong answers scatter over 97 values, so a majority is almost never wrong; it would hold where "
        "wrong answers agree more often than right ones",
        "collide": "of four values as of 97 the right one is by far the most frequent; it would hold where one wrong "
        "answer is as frequent",
    }

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        shortest, short_1, better, time, time_1, collide, control, real = ShortMAtK.card.claims
        chains = pool(load_model(POLICY, "fp32"), TASK, bench)
        asked = chains.thinking
        curves = curves_of(asked)
        text = (
            f"{POLICY} fp32, {len(asked)} questions of {TASK}, {CHAINS} chains at T={TEMPERATURE}: single "
            f"{fmean(single(asked)):.1f} %, AUC {shown(auc(asked), 2)}; thinking tokens (in all, until the answer): "
            f"{curves.told(K)}"
        )
        details = {name: table(found) for name, found in zip(METHODS, vars(curves).values(), strict=True)}
        yield self.finding(shortest, ends(asked), text, null=0.0, details=details)
        yield self._cheaper(short_1, curves, text)
        gain = difference_at(curves.short_3, curves.majority, K)
        equal = difference(curves.majority, curves.short_3, "gen_tokens", curves.majority.sizes.index(K))
        yield self.finding(better, gain, f"{text}; at equal tokens {shown(equal)} points", null=0.0)
        for claim, found in ((time, curves.short_3), (time_1, curves.short_1)):
            yield self.finding(claim, sooner(found, curves.majority, K), text, null=0.0)
        yield self._colliding(collide, chains)
        yield self._control(control, bench)
        yield self._online(real, chains, bench)

    def _cheaper(self, claim: Claim, curves: Curves, text: str) -> Finding:
        at = curves.majority.sizes.index(BASE)
        ratio = budget_ratio(curves.majority, curves.short_1, "gen_tokens", at)
        points = curves.majority.points()[at]
        text += f"; against majority@{BASE} {points.accuracy.value:.1f} % ({points.gen_tokens:.0f})"
        reason = "" if ratio else f"short-1@k does not reach the accuracy of majority@{BASE} with {CHAINS} chains"
        return self.finding(claim, less(ratio), text, null=0.0, reason=reason)

    def _colliding(self, claim: Claim, chains: Pool) -> Finding:
        """The same chains, answers taken mod 4."""
        asked = chains.samples("thinking", COLLIDING)
        curves = curves_of(asked)
        text = f"the same chains, answers mod 4: single {fmean(single(asked)):.1f} %; {curves.told(K)}"
        return self.finding(claim, difference_at(curves.short_3, curves.majority, K), text, null=0.0)

    def _control(self, claim: Claim, bench: Workbench) -> Finding:
        asked = pool(load_model(CONTROL, "fp32"), TASK, bench).thinking
        alone, won = single(asked), accuracies(asked, K)
        text = f"{CONTROL}, {len(asked)} questions: single {fmean(alone):.1f} %, short-1@{K} {fmean(won):.1f} %, AUC "
        text += shown(auc(asked), 2)
        return self.finding(claim, differences(won, alone), text, direction="at most", null=5.0)

    def _online(self, claim: Claim, chains: Pool, bench: Workbench) -> Finding:
        """The first questions again, by the method itself; its chains have the seeds of the stored ones."""
        bench.tick("the method itself, and majority voting")
        model, asked = load_model(POLICY, "fp32"), chains.requests[:ONLINE]
        options = {"samples": K, "temperature": TEMPERATURE, "top_p": TOP_P}
        ours = online(model, ShortMAtK(), ShortConfig(m=M, **options), asked)
        first = online(model, ShortMAtK(), ShortConfig(m=1, **options), asked)
        vote = online(model, SelfConsistency(), SelfConsistencyConfig(**options), asked)
        cancelled = sum(done.search.cancelled for done in ours.completions if done.search)
        text = (
            f"{POLICY}, {len(asked)} questions asked one by one, {bench.threads} threads: {cancelled} of "
            f"{K * len(asked)} chains called off; wall time less than majority@{K}'s by "
            f"{shown(savings(ours.milliseconds, vote.milliseconds))} % (m={M}), "
            f"{shown(savings(first.milliseconds, vote.milliseconds))} % (m=1)"
        )
        return self.finding(claim, agreement(ours, chains.thinking, short_3, K), text, null=0.0)


def curves_of(asked: list[Samples]) -> Curves:
    """All three at all sizes; short-3@k needs three chains."""
    return Curves(
        curve("short-1", asked, first_finish, SIZES),
        curve("short-3", asked, short_3, [k for k in SIZES if k >= M]),
        curve("majority", asked, partial(majority, most=SUBSETS), SIZES),
    )


def table(found: Curve) -> dict[int, tuple[float, float, float]]:
    """By size: accuracy in percent, tokens, tokens until the answer."""
    return {point.size: (point.accuracy.value, point.gen_tokens, point.seq_tokens) for point in found.points()}


def ends(asked: list[Samples]) -> Estimate | None:
    """The shortest of all chains against the longest, points."""
    first, last = ([100 * rule(one, len(one)).accuracy for one in asked] for rule in (first_finish, last_finish))
    return differences(first, last)


def column(found: Curve, figure: str, k: int) -> list[float]:
    """One figure of every question at one size."""
    values: list[float] = found.figures(figure)[:, found.sizes.index(k)].tolist()
    return values


def difference_at(ours: Curve, theirs: Curve, k: int) -> Estimate | None:
    """Points at equal size."""
    first, second = ([100 * value for value in column(found, "accuracy", k)] for found in (ours, theirs))
    return differences(first, second)


def sooner(ours: Curve, theirs: Curve, k: int) -> Estimate | None:
    """Percent less time to the answer, in tokens."""
    return savings(column(ours, "seq_tokens", k), column(theirs, "seq_tokens", k))


def less(ratio: Estimate | None) -> Estimate | None:
    """A ratio of budgets as percent saved."""
    if ratio is None:
        return None
    low, value, high = (100 * (1 - 1 / x) if x else None for x in (ratio.low, ratio.value, ratio.high))
    assert value is not None
    return Estimate(value, low, high, ratio.n, ratio.note)


def accuracies(asked: list[Samples], k: int) -> list[float]:
    """Of short-1@k on every question, %."""
    return [100 * first_finish(one, k).accuracy for one in asked]
