"""The search family itself: what is drawn together, called off, counted and told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from suite.cost import MethodCost, Situation
from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.search.asks import Sampling, run
from suite.methods.search.base import Desk
from suite.methods.search.best_of_n import BestOfN
from suite.methods.search.judges.random import RandomJudge
from suite.methods.search.ledger import Ledger
from suite.methods.search.marks import Marks
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.self_consistency import SelfConsistency
from suite.methods.search.trace import Problem
from suite.methods.search.verifier import Verifier, aggregated, logit
from tests.methods.support import CONFIG, CharTokenizer, tiny_model
from tests.methods.test_contract import request

IDS = tuple(b"why is it so? ")


class Table:
    """Problems on the tiny model, searched together."""

    def __init__(self, count: int = 1, new: int = 40, **fields) -> None:
        self.sampler = NativeSampler(tiny_model(), RequestMeter())
        problems = [Problem(f"p{i}", "", IDS, new, seed=i, **fields) for i in range(count)]
        self.policies = [Policy(problem, 1.0, 1.0, Ledger()) for problem in problems]
        self.sampler.prefill([policy.root for policy in self.policies])
        self.judge = RandomJudge()
        self.served = 0

    def run(self, search):
        desk = Desk(self.sampler, self.judge)

        def serve(asks):
            self.served += 1
            return desk.serve(asks)

        done = dict(run([search(policy) for policy in self.policies], serve))
        return [done[i] for i in range(len(self.policies))]


def test_what_several_searches_wait_for_is_done_in_one_batch():
    async def search(policy):
        chains = await policy.finish([policy.root] * 2, most=5)
        return await policy.finish(chains, most=3)

    table = Table(count=3)
    found = table.run(search)
    assert table.served == 2
    assert [[trace.length for trace in row] for row in found] == [[8, 8]] * 3
    alone = [[t.all_ids for t in row] for row in found][1]
    other = Table(count=3)
    other.policies = other.policies[1:2]
    assert [t.all_ids for t in other.run(search)[0]] == alone  # nobody's tokens depend on the batch


def test_children_of_one_parent_differ_and_leave_it_alone():
    async def search(policy):
        (parent,) = await policy.finish([policy.root], most=4)
        before = parent.all_ids
        children = await policy.finish([parent] * 4, most=6)
        assert parent.all_ids == before
        return children

    children = Table().run(search)[0]
    assert len({child.ids for child in children}) == 4
    assert len({child.all_ids[:4] for child in children}) == 1


def test_the_first_ones_call_the_others_off():
    """The ledger holds what all of them had produced by then, and only the first count as there."""

    async def search(policy):
        chains = await policy.first([policy.root] * 6, 2, until="e")
        return chains, policy.ledger

    chains, ledger = Table(new=200).run(search)[0]
    there = [chain for chain in chains if chain.reached]
    others = [chain for chain in chains if not chain.reached]
    assert len(there) == 2
    stop = max(chain.length for chain in there)
    assert all(chain.text.endswith("e") for chain in there)
    assert all(chain.length == stop and not chain.finished for chain in others)
    assert ledger.generated == sum(chain.length for chain in chains)
    assert (ledger.sequential, ledger.cancelled) == (stop, 4)


def test_of_those_that_arrive_together_the_lower_ones_count():
    async def search(policy):
        chains = await policy.greedy().first([policy.root] * 3, 2, most=5)
        return [chain.reached for chain in chains]

    assert Table().run(search) == [[True, True, False]]


def test_a_trace_that_runs_out_of_tokens_has_not_got_there():
    async def search(policy):
        return await policy.first([policy.root] * 2, 1, until="\x00 never \x00")

    assert [(chain.end, chain.reached, chain.length) for chain in Table(new=12).run(search)[0]] == [
        ("length", False, 12)
    ] * 2


def test_finished_traces_come_back_as_they_are():
    async def search(policy):
        chains = await policy.finish([policy.root] * 2)
        drawn = policy.ledger.generated
        again = await policy.step(chains)
        assert policy.ledger.generated == drawn
        return chains, again

    chains, again = Table(new=6).run(search)[0]
    assert again == chains


def test_text_that_is_written_counts_as_no_decode_step():
    async def search(policy):
        (chain,) = await policy.finish([policy.root], most=4)
        written = await policy.write(chain, "Wait")
        (longer,) = await policy.finish([written], most=3)
        return longer, policy.ledger

    longer, ledger = Table().run(search)[0]
    assert longer.text[4:8] == "Wait"
    assert longer.length == 11
    assert (ledger.generated, ledger.sequential, ledger.prefilled) == (7, 7, 4)
    assert ledger.flops == CONFIG.flops(len(IDS) - 1 + 11, 0) - CONFIG.flops(len(IDS) - 1, 0)  # the prompt comes later


def test_work_is_that_of_every_token_fed_and_of_what_it_sees():
    """Three chains of four tokens behind one prompt: each reads the prompt's last token again."""
    with SelfConsistency().attach(tiny_model(), SelfConsistency.Config(samples=3)) as generator:
        (done,) = generator.generate([request("a", 60, new=4)], RequestMeter())
    assert done.search.generated == 12
    assert done.search.flops == CONFIG.flops(59, 0) + 3 * CONFIG.flops(4, 59)


def test_a_trace_is_scored_once():
    async def search(policy):
        verifier = Verifier("prod", policy.ledger)
        chains = await policy.finish([policy.root] * 3, most=4)
        first = await verifier.scores([*chains, chains[0]])
        assert await verifier.scores(chains) == first[:3]
        return policy.ledger.verifier_passes

    assert Table().run(search)[0] == 3


@pytest.mark.parametrize(("how", "value"), [("prod", 0.9 * 0.5 * 0.8), ("min", 0.5), ("last", 0.8), ("mean", 2.2 / 3)])
def test_aggregates(how, value):
    assert aggregated((0.9, 0.5, 0.8), how) == pytest.approx(value)


def test_odds_not_probabilities():
    from math import exp

    assert exp(logit(0.9) - logit(0.1)) == pytest.approx(81)


def test_marks_across_tokens():
    """A mark in one token, in several, and newlines that stand first."""
    marks = Marks(CharTokenizer(), ["\n\n"])
    text = b"\n\nab\nc\n\n"
    found = [i for i in range(1, len(text) + 1) if marks.found(list(text[:i]))]
    assert found == [len(text)]


def test_an_ask_waits_for_nothing_else():
    async def search(policy):
        return (await Sampling([policy.root], [(1,)], None, 2, 0.0, 1.0, 0, policy.ledger))[0].length

    assert Table().run(search) == [2]


def test_the_roofline_is_told_how_many_chains_run_side_by_side_and_that_the_prompt_is_there_once():
    at = Situation(1000, CONFIG.layers, CONFIG.hidden, CONFIG.heads, CONFIG.kv_heads, CONFIG.head_dim)
    best = BestOfN.Config(samples=16)
    assert BestOfN.cost(best, at) == MethodCost(chains=16, read=1 / 16, stored=1 / 16)
    share = (800 + 16 * 200) / 16_000
    assert BestOfN.cost(best, replace(at, prompt=800)) == MethodCost(chains=16, read=share, stored=share)


def test_keys_that_chains_share_are_read_once():
    """Four chains behind fourteen tokens: three passes in which each has one more token of its own."""

    async def search(policy):
        return await policy.finish([policy.root] * 4, most=3)

    per_token = CONFIG.kv_bytes_per_token(4)
    table = Table()
    table.sampler.meter = meter = CountingMeter(per_token)
    meter.start("p0", len(IDS))
    meter.phase("decode")
    table.run(search)
    assert meter.kv_samples()[0].read_bytes_per_step == pytest.approx((len(IDS) - 1 + 4 * 2) * per_token, rel=1e-3)
