"""First Finish Search's claims on the lab's long thoughts: stored chains, the theory, and processes that race."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch

from analysis.length_theory import fit
from analysis.search import Outcome, Samples, first_finish, last_finish, majority
from analysis.statistics import CONFIDENCE, SEED, Estimate, mean_estimate
from suite.engines.base import EngineModel, Prompt
from suite.engines.first_finish import first_finish as race
from suite.engines.native import NativeEngine
from suite.experiments.base import Experiment, Workbench
from suite.experiments.thinking import (
    CHAINS,
    ONLINE,
    SUBSETS,
    TEMPERATURE,
    TOGETHER,
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
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.methods.base import Claim
from suite.methods.search.base import SearchMethod
from suite.methods.search.beam_search import BeamConfig, BeamSearch
from suite.methods.search.budget_forcing import BudgetForcing, BudgetForcingConfig
from suite.methods.search.first_finish_search import FirstFinishConfig, FirstFinishSearch
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.loaders.lab import CHECKPOINTS
from workloads.answers import correct
from workloads.generators.chain import ANS, WAIT, is_hard, parse
from workloads.schema import Completion, Request

POLICY, TASK = "chain-long", "long"
CONTROL = "chain-long-control"
LOSING = "chain-hasty"
"""Gives up when its candidates differ, so that its short thoughts are the wrong ones."""
N, LAST = 8, 3
SIZES = (1, 2, 4, 8, 16)  # in the details
WORKERS = 2
ANSWER_TOKENS = 4  # END ANS and a number, with the end token
RESAMPLES = 200  # of the questions, for the theory: each fits every bin again

ffs = partial(first_finish, counts="answered")
vote = partial(majority, most=SUBSETS)


class FirstFinishExperiment(Experiment):
    """All figures for n = 8, at the same n for every method."""

    slug: ClassVar[str] = "first_finish_search"
    shortfalls: ClassVar[Mapping[str, str]] = {
        "beam": "a slip is a rare token, so the policy's own probability finds the chains without one; it would hold "
        "where errors are as likely as what is right",
        "forcing": "one greedy chain of these short thoughts is less than what eight chains take until the first has "
        "ended; it would hold where the budget that is forced is several times as long as a chain",
    }

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        claims = {claim.id: claim for claim in FirstFinishSearch.card.claims}
        model = load_model(POLICY, "fp32")
        chains = pool(model, TASK, bench)
        asked = chains.whole
        ours, theirs, alone = rows(asked, ffs), rows(asked, vote), single(asked)
        text = (
            f"{POLICY} fp32, {len(asked)} questions of {TASK}, {CHAINS} chains at T={TEMPERATURE}, AUC "
            f"{shown(auc(asked), 2)}: single {fmean(alone):.1f} %, FFS@{N} {told(ours)}, majority@{N} {told(theirs)}"
        )
        details = {f"FFS@{n}": figures(asked, ffs, n) for n in SIZES}
        won = accuracies(ours)
        yield self.finding(claims["decoding"], differences(won, alone), text, null=0.0, details=details)
        for claim, name in (("tokens", "gen_tokens"), ("time", "seq_tokens")):
            less = savings(column(ours, name), column(theirs, name))
            yield self.finding(claims[claim], less, f"{text}; finished chains alone would be "
                               f"{fmean(column(ours, 'finished_only_tokens')):.0f} tokens", null=0.0)  # fmt: skip
        yield self.finding(claims["majority"], differences(won, accuracies(theirs)), text, null=-100.0)
        yield self._beam(claims["beam"], model, chains, won, bench)
        yield self._forcing(claims["forcing"], model, chains, ours, bench)
        falls = [100 * (a / b - 1) for a, b in zip(column(ours, "seq_tokens"), tokens(asked), strict=True)]
        yield self.finding(claims["falls"], mean_estimate(falls), f"{text}; majority's rise by "
                           f"{rise(theirs, asked):.0f} %", direction="at most", null=0.0)  # fmt: skip
        yield self._theory(claims["theory"], chains)
        last = rows(asked, partial(last_finish, m=LAST, most=SUBSETS))
        yield self.finding(claims["lfs"], differences(accuracies(last), accuracies(theirs)),
                           f"{text}; LFS-{LAST}@{N} {told(last)}", direction="at most", null=1.0)  # fmt: skip
        yield self._gain(claims["control"], CONTROL, bench, null=5.0)
        yield self._gain(claims["loses"], LOSING, bench, null=0.0)
        yield self._online(claims["online"], model, chains, bench)
        yield self._processes(claims["async"], chains.requests[:ONLINE], model, bench)

    def _beam(
        self, claim: Claim, model: LanguageModel, chains: Pool, won: Sequence[float], bench: Workbench
    ) -> Finding:
        config = BeamConfig(samples=N, beams=N // 2, temperature=TEMPERATURE, top_p=TOP_P, verifier="self")
        found = asked_once(model, BeamSearch(), config, chains.requests, bench)
        text = f"{POLICY}: {N} steps drawn, {N // 2} kept by the policy's own probability: {cost(found)}"
        return self.finding(claim, differences(won, [100.0 * right for _, right in found]), text, null=0.0)

    def _forcing(
        self, claim: Claim, model: LanguageModel, chains: Pool, ours: Sequence[Outcome], bench: Workbench
    ) -> Finding:
        config = BudgetForcingConfig(wait=f" {WAIT}", guide=f" {ANS}", answer_tokens=ANSWER_TOKENS)
        found = asked_once(model, BudgetForcing(), config, chains.requests, bench)
        sooner = savings(column(ours, "seq_tokens"), spent(found, "sequential"))
        text = (
            f"{POLICY}, greedy, to the limit of the task: {cost(found)}; FFS@{N} {told(ours)}, {shown(sooner)} % sooner"
        )
        return self.finding(claim, savings(column(ours, "gen_tokens"), spent(found, "generated")), text, null=0.0)

    def _theory(self, claim: Claim, chains: Pool) -> Finding:
        bins = binned(chains)
        error = [100 * (predicted(one) - fmean(ffs(s, N).accuracy for s in one)) for one in bins.values()]
        models = {hard: fit(one) for hard, one in bins.items()}
        text = "; ".join(
            f"{hard} hard steps ({len(bins[hard])} questions): right {m.right_mean:.0f} +- {m.right_sd:.0f}, wrong "
            f"{m.wrong_mean:.0f} +- {m.wrong_sd:.0f}, p {m.p:.2f}, predicted - measured {off:+.1f}"
            for (hard, m), off in zip(models.items(), error, strict=True) if m is not None
        )  # fmt: skip
        estimate = theory_error(list(bins.values()))
        return self.finding(claim, estimate, f"{POLICY}, by hard steps: {text}", direction="at most", null=100.0)

    def _gain(self, claim: Claim, policy: str, bench: Workbench, null: float) -> Finding:
        """FFS against one sample, with another policy."""
        asked = pool(load_model(policy, "fp32"), TASK, bench).whole
        won, alone = accuracies(rows(asked, ffs)), single(asked)
        text = f"{policy}, {len(asked)} questions of {TASK}: single {fmean(alone):.1f} %, FFS@{N} {fmean(won):.1f} %, "
        text += f"AUC {shown(auc(asked), 2)}"
        return self.finding(claim, differences(won, alone), text, direction="at most", null=null)

    def _online(self, claim: Claim, model: LanguageModel, chains: Pool, bench: Workbench) -> Finding:
        bench.tick("the method itself, question by question")
        config = FirstFinishConfig(samples=N, temperature=TEMPERATURE, top_p=TOP_P)
        one = config.model_copy(update={"samples": 1})
        asked = chains.requests[:ONLINE]
        many, few = (online(model, FirstFinishSearch(), options, asked) for options in (config, one))
        ratio = fmean(many.milliseconds) / fmean(few.milliseconds)
        text = f"{len(asked)} questions asked one by one: {N} chains take {ratio:.2f} times the wall time of one sample"
        return self.finding(claim, agreement(many, chains.whole, ffs, N), text, null=0.0)

    def _processes(self, claim: Claim, asked: Sequence[Request], model: LanguageModel, bench: Workbench) -> Finding:
        """Asynchronous: worker processes with different seeds, one core each."""
        bench.tick(f"{WORKERS} worker processes race")
        stored = EngineModel(POLICY, str(CHECKPOINTS / POLICY), "fp32", model.config.window)
        with ExitStack() as stack:
            engines = [stack.enter_context(NativeEngine(stored, threads=1)) for _ in range(WORKERS)]
            races = [race(engines, prompt(model, request)) for request in asked]
        shortest = [
            float(len(r.outputs[r.winner].token_ids) == min(len(o.token_ids) for o in r.outputs))
            for r in races
            if r.winner is not None
        ]
        text = (
            f"{WORKERS} native workers, {len(asked)} questions; {sum(r.winner == 0 for r in races)} won by the first "
            f"worker; winner {fmean(r.seconds for r in races) * 1e3:.0f} ms"
        )
        return self.finding(claim, mean_estimate(shortest), text, null=0.0)


def rows(asked: Sequence[Samples], rule: Any, n: int = N) -> list[Outcome]:
    """Of every question."""
    return [rule(one, n) for one in asked]


def column(outcomes: Sequence[Outcome], name: str) -> list[float]:
    """One figure of every question."""
    return [getattr(one, name) for one in outcomes]


def accuracies(outcomes: Sequence[Outcome]) -> list[float]:
    """In percent."""
    return [100 * one.accuracy for one in outcomes]


def told(outcomes: Sequence[Outcome]) -> str:
    """Accuracy, tokens in all and until the answer."""
    tokens, depth = fmean(column(outcomes, "gen_tokens")), fmean(column(outcomes, "seq_tokens"))
    return f"{fmean(accuracies(outcomes)):.1f} % ({tokens:.0f}, {depth:.0f})"


def figures(asked: Sequence[Samples], rule: Any, n: int) -> str:
    """The same at another n."""
    return told(rows(asked, rule, n))


def tokens(asked: Sequence[Samples]) -> list[float]:
    """Of one sample, by question."""
    return [float(one.lengths.mean()) for one in asked]


def rise(outcomes: Sequence[Outcome], asked: Sequence[Samples]) -> float:
    """By how many percent majority voting takes longer than one sample."""
    return 100 * (fmean(column(outcomes, "seq_tokens")) / fmean(tokens(asked)) - 1)


def asked_once(
    model: LanguageModel, method: SearchMethod, config: Any, asked: Sequence[Request], bench: Workbench
) -> list[tuple[Completion, bool]]:
    """A method that stored chains cannot stand for, on all questions: what it wrote, and whether that is right."""
    contender, found = Contender(method, config, model), list[tuple[Completion, bool]]()
    contender.prepare()
    for first in range(0, len(asked), TOGETHER):
        bench.tick(f"{method.card.slug}, {first} of {len(asked)} questions")
        some = asked[first : first + TOGETHER]
        for request, done in zip(some, contender.complete(some, RequestMeter()), strict=True):
            found.append((done, correct(request.metadata["answer"], done.text, request.references[0])))
    return found


def spent(found: Sequence[tuple[Completion, bool]], figure: str) -> list[float]:
    """One figure of the search's cost, by question."""
    return [float(getattr(done.search, figure)) for done, _ in found]


def cost(found: Sequence[tuple[Completion, bool]]) -> str:
    """Accuracy, tokens in all and until the answer."""
    right = 100 * fmean(right for _, right in found)
    return f"{right:.1f} % ({fmean(spent(found, 'generated')):.0f}, {fmean(spent(found, 'sequential')):.0f})"


def binned(chains: Pool) -> dict[int, list[Samples]]:
    """Questions by their number of hard steps."""
    found: dict[int, list[Samples]] = {}
    for request, one in zip(chains.requests, chains.whole, strict=True):
        found.setdefault(sum(map(is_hard, parse(request.prompt).operations)), []).append(one)
    return dict(sorted(found.items()))


def predicted(asked: Sequence[Samples]) -> float:
    """Accuracy of FFS by the normal model; where a bin has right or wrong chains alone, their share."""
    found = fit(asked)
    return found.accuracy(N) if found is not None else float(np.mean([one.correct.mean() for one in asked]))


def theory_error(bins: Sequence[Sequence[Samples]]) -> Estimate:
    """|predicted - measured| accuracy over all questions, points; intervals from questions drawn again in each bin."""
    measured = {id(one): ffs(one, N).accuracy for group in bins for one in group}

    def off(groups: Sequence[Sequence[Samples]]) -> float:
        gaps = [len(g) * (predicted(g) - fmean(measured[id(one)] for one in g)) for g in groups]
        return 100 * abs(sum(gaps)) / sum(map(len, groups))

    rng = np.random.default_rng(SEED)
    drawn = [[[g[i] for i in rng.integers(len(g), size=len(g))] for g in bins] for _ in range(RESAMPLES)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile([off(groups) for groups in drawn], [tail, 100 - tail])
    return Estimate(off(bins), float(low), float(high), sum(map(len, bins)))


def prompt(model: LanguageModel, request: Request) -> Prompt:
    """As an engine gets it."""
    ids, ends = model.encode(request).ids, model.config.eos_ids
    return Prompt(ids, request.max_new_tokens, ends, TEMPERATURE, top_p=TOP_P, seed=request.seed)
