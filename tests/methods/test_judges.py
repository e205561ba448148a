"""The judges of the search family, on what the lab's middle policy writes."""

from __future__ import annotations

import math

import pytest
import torch

from suite.errors import InputError
from suite.harness.meter import RequestMeter
from suite.harness.options import method_config
from suite.methods.search.asks import run
from suite.methods.search.base import Desk
from suite.methods.search.best_of_n import BestOfN
from suite.methods.search.judges.flipped import FlippedJudge, FlippedOptions
from suite.methods.search.judges.heads import OutcomeJudge, ProcessJudge
from suite.methods.search.judges.likelihood import LikelihoodJudge
from suite.methods.search.judges.oracle import OracleJudge
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Problem
from suite.methods.search.verifier import Judge, Verifier, aggregated, make_judge
from suite.models.loaders import lab, load_model
from suite.models.rewards import LikelihoodPRM, TokenReward, step_ends
from suite.spec import MethodSpec
from tests.methods.support import tiny_model
from workloads.chain import Chain, final_answer

REQUESTS = list(Chain().requests("arithmetic-24", 6, 0))


@pytest.fixture(scope="module")
def policy():
    return load_model("chain-mid", "fp32")


@pytest.fixture(scope="module", autouse=True)
def rewards():
    """The lab's reward models as they are before their training: what is read of them does not depend on it."""
    decoder = lab.chain_strong("fp32").decoder
    models = {
        "chain-likelihood": LikelihoodPRM(decoder), "chain-prm": TokenReward(decoder), "chain-orm": TokenReward(decoder)
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "reward", models.__getitem__)
        yield models


async def stepped(policy: Policy, verifier: Verifier):
    """Four traces, forked after every step, scored after every step."""
    traces = [policy.root] * 4
    while any(not trace.finished for trace in traces):
        traces = await policy.step(traces)
        await verifier.step_scores(traces)
        traces = [traces[0], traces[0], *traces[1:3]]
    return traces, await verifier.step_scores(traces), policy.ledger


def judged(judge: Judge, model, search=stepped):
    """The search on all problems, side by side."""
    judge.prepare(model)
    judge.begin(model)
    sampler = NativeSampler(model, RequestMeter())
    problems = [Problem.of(request, model.encode(request).ids) for request in REQUESTS]
    policies = [Policy(problem, 1.0, 1.0, Ledger()) for problem in problems]
    sampler.prefill([policy.root for policy in policies])
    searches = [search(policy, Verifier("prod", policy.ledger)) for policy in policies]
    return [result for _, result in sorted(run(searches, Desk(sampler, judge).serve))]


@pytest.mark.parametrize(
    ("judge", "name"),
    [(LikelihoodJudge, "chain-likelihood"), (ProcessJudge, "chain-prm"), (OutcomeJudge, "chain-orm")],
)
def test_what_is_read_piece_by_piece_scores_as_the_whole(judge, name, policy, rewards):
    for traces, scores, _ in judged(judge(), policy):
        for trace, steps in zip(traces, scores, strict=True):
            prompt = list(trace.problem.ids)
            ids = [*prompt, *trace.all_ids]
            with torch.no_grad():
                logits = rewards[name](torch.tensor([ids]), [len(prompt)])[0]
            ends = step_ends(ids, len(prompt))
            whole = logits[ends if judge is not OutcomeJudge else ends[-1:]].sigmoid().tolist()
            assert steps == pytest.approx(whole, abs=2e-4)


@pytest.mark.parametrize(("judge", "each"), [(LikelihoodJudge, True), (ProcessJudge, True), (OutcomeJudge, False)])
def test_a_prefix_has_a_score_for_each_of_its_steps(judge, each, policy):
    """Also where it ends with a step. A judge of outcomes has one score for all of it."""

    async def three_steps(policy, verifier):
        traces = [policy.root]
        for _ in range(3):
            traces = await policy.step(traces)
        return traces[0].depth, await verifier.step_scores(traces)

    for depth, (steps,) in judged(judge(), policy, three_steps):
        assert len(steps) == (depth if each else 1)


def test_the_likelihood_of_a_step_is_that_of_all_its_tokens():
    judge = LikelihoodJudge()
    judge._a, judge._b = 0.5, 2.0
    x = [-1.0, -2.0, -4.0]
    odds = [math.exp(0.5 + 2 * value) for value in (x[0] + x[1], x[2])]
    assert judge._steps(x, (1, 2)) == pytest.approx([one / (1 + one) for one in odds])


def test_a_judge_reads_every_token_once(policy):
    """A fork costs what is new in it: the likelihood of a piece needs no pass over its last token."""
    drawn = {}

    async def watched(policy, verifier):
        found = await stepped(policy, verifier)
        drawn[policy.problem.id] = policy.ledger.generated
        return found

    for traces, _, ledger in judged(LikelihoodJudge(), policy, watched):
        problem = traces[0].problem
        assert ledger.verifier_tokens == drawn[problem.id] + len(problem.ids) - 1


@pytest.mark.parametrize(("judge", "behind"), [(LikelihoodJudge, 1), (ProcessJudge, 0)])
def test_work_of_a_judge_is_that_of_its_own_model(judge, behind, policy, rewards):
    """One trace, read in two pieces."""

    async def two_steps(policy, verifier):
        traces = await policy.step([policy.root])
        await verifier.scores(traces)
        traces = await policy.step(traces)
        await verifier.scores(traces)
        return traces, policy.ledger

    config = lab.chain_strong("fp32").config if judge is LikelihoodJudge else rewards["chain-prm"].decoder.config
    for (trace,), ledger in judged(judge(), policy, two_steps):
        assert ledger.verifier_flops == config.flops(len(trace.problem.ids) + trace.length - behind, 0)


def test_the_oracle_knows_right_steps_from_wrong_ones(policy):
    right = wrong = 0
    for request, (traces, scores, _) in zip(REQUESTS, judged(OracleJudge(), policy), strict=True):
        for trace, steps in zip(traces, scores, strict=True):
            correct = final_answer(trace.text) in request.references
            right, wrong = right + correct, wrong + (not correct)
            assert aggregated(steps, "prod") == pytest.approx(float(correct), abs=1e-3)
    assert right
    assert wrong


@pytest.mark.parametrize("name", ["oracle", "likelihood", "prm", "orm", "flipped"])
def test_judges_of_chains_refuse_other_models(name):
    method, config = BestOfN(), BestOfN.Config(verifier=name)
    reason = method.refusal(tiny_model(), config)
    assert reason is not None
    assert "workload chain only" in reason
    assert method.refusal(load_model("chain-mid", "fp32"), config) is None


def test_rows_of_the_oracle_say_so(policy):
    method, config = BestOfN(), BestOfN.Config(verifier="oracle", samples=2)
    method.prepare(policy, config)
    with method.attach(policy, config) as generator:
        (done,) = generator.generate(REQUESTS[:1], RequestMeter())
    assert any("oracle" in note for note in done.notes)


def test_a_share_of_scores_is_flipped_and_stays_so(policy):
    kept = flips = steps_seen = 0
    plain = {
        t.text: s for traces, scores, _ in judged(OracleJudge(), policy) for t, s in zip(traces, scores, strict=True)
    }
    options = FlippedOptions(share=0.3, of="oracle")
    first, again = (judged(FlippedJudge(options), policy) for _ in range(2))
    assert [scores for _, scores, _ in first] == [scores for _, scores, _ in again]
    for traces, scores, _ in first:
        for trace, steps in zip(traces, scores, strict=True):
            for mine, theirs in zip(steps, plain[trace.text], strict=True):
                flips += math.isclose(mine, 1 - theirs)
                kept += mine == theirs
                steps_seen += 1
    assert kept + flips == steps_seen
    assert 0.15 < flips / steps_seen < 0.45


def test_a_step_keeps_its_flip_when_the_trace_goes_on(policy):
    found = []

    async def growing(policy, verifier):
        (trace,) = await policy.step([policy.root])
        before = await verifier.step_scores([trace])
        (longer,) = await policy.step([trace])
        found.append((before[0], (await verifier.step_scores([longer]))[0]))

    judged(FlippedJudge(FlippedOptions(share=0.5, of="oracle")), policy, growing)
    assert all(after[: len(before)] == before for before, after in found)


def test_judges_are_named_with_their_options():
    assert make_judge("flipped:share=0.5:of=oracle").options.share == 0.5
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        method_config(MethodSpec(name="best_of_n", options={"verifier": "orcle"}))
    with pytest.raises(InputError, match=r"flipped:shar=1.*its options: share, of"):
        make_judge("flipped:shar=1")
