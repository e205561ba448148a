"""Chains side by side that vote, race or are told to go on: the rules of the cards, on scripted tokens.

The sampler, its cache and its ledger are the real ones; only which token comes next is set.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from suite.harness.meter import RequestMeter
from suite.methods.search import sampler
from suite.methods.search.asks import run
from suite.methods.search.base import Desk
from suite.methods.search.budget_forcing import BudgetForcing
from suite.methods.search.first_finish_search import FirstFinishSearch
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.self_consistency import SelfConsistency
from suite.methods.search.self_refine import SelfRefine
from suite.methods.search.short_m_at_k import ShortMAtK
from suite.methods.search.trace import Problem
from suite.methods.search.verifier import Verifier
from tests.methods.support import CONFIG, tiny_model

IDS = tuple(b"why is it so? ")
EOS = "\0"
CLOSE = "</t>"


@pytest.fixture(scope="module")
def model():
    return tiny_model(replace(CONFIG, eos_ids=(0,)))


@pytest.fixture
def search(model, monkeypatch):
    """Runs a method whose i-th chain writes the i-th script -> the answer and its ledger."""

    def searched(method, scripts, new=200, closing=None, **options):
        started = []

        def choose(logits, rows):
            return torch.tensor([_next(row, scripts, started) for row in rows], dtype=torch.int32)

        monkeypatch.setattr(sampler, "_choose", choose)
        desk, ledger = sampler.NativeSampler(model, RequestMeter()), Ledger()
        policy = Policy(Problem("p", "", IDS, new, closing=closing), 1.0, 1.0, ledger)
        desk.prefill([policy.root])
        found = method().search(policy, Verifier("prod", ledger), method.Config(**options))
        ((_, answer),) = run([found], Desk(desk, None).serve)
        return answer, ledger

    return searched


def _next(row, scripts, started):
    """Rows that begin take the scripts in turn; later pieces go on where the text so far is found."""
    if row.parent.parent is None:
        if row not in started:
            started.append(row)
        return ord(scripts[started.index(row)][len(row.ids)])
    before = "".join(map(chr, (*row.parent.all_ids, *row.ids)))
    known = [script[len(before)] for script in scripts if script.startswith(before) and len(script) > len(before)]
    assert known, f"no script goes on behind {before!r}"
    return ord(known[0])


def chain(name, thinking, answer, closing=CLOSE):
    """A chain of `thinking` tokens to the end of its thinking that answers `answer`."""
    return name.ljust(thinking - len(closing), ".") + closing + f"#### {answer}{EOS}"


def plain(name, tokens, answer):
    """A chain of so many tokens, its end token included."""
    tail = f"#### {answer}{EOS}" if answer is not None else EOS
    return name.ljust(tokens - len(tail), ".") + tail


# Self-consistency.


def test_most_answers_win_and_no_answer_never_does(search):
    scripts = [plain("a", 9, None), plain("b", 19, None), plain("c", 29, None), plain("d", 25, 7), plain("e", 20, 7.0)]
    answer, ledger = search(SelfConsistency, scripts, samples=5)
    assert answer.trace.text.endswith("#### 7")
    assert (ledger.generated, ledger.sequential, ledger.cancelled) == (sum(map(len, scripts)), 29, 0)


@pytest.mark.parametrize(("tie", "said"), [("first", "5"), ("shortest", "6")])
def test_ties_go_by_the_rule(search, tie, said):
    answer, ledger = search(SelfConsistency, [plain("a", 30, 5), plain("b", 20, 6)], samples=2, tie=tie)
    assert answer.trace.text.endswith(said)
    assert ledger.extra["tied"] == 1


def test_in_a_tie_a_class_is_as_short_as_its_shortest_member(search):
    scripts = [plain("a", 20, 5), plain("b", 60, 5), plain("c", 30, 6), plain("d", 40, 6)]
    answer, _ = search(SelfConsistency, scripts, samples=4, tie="shortest")
    assert answer.trace.text.endswith("5")


def test_random_ties_go_either_way_and_always_the_same_way(search):
    said = [
        search(SelfConsistency, [plain(f"a{i}", 30, 5), plain("b", 20, 6)], samples=2, tie="random")[0].trace.text[-1]
        for i in [*range(12), *range(12)]
    ]
    assert set(said) == {"5", "6"}
    assert said[:12] == said[12:]


def test_fresh_samples_come_only_when_nobody_answers(search):
    mute = [plain("a", 9, None), plain("b", 9, None)]
    answer, ledger = search(
        SelfConsistency, [*mute, *mute, plain("e", 20, 3), plain("f", 9, None)], samples=2, rounds=5
    )
    assert answer.trace.text.endswith("3")
    assert ledger.samples == 6


# short-m@k.


def test_chains_that_are_called_off_cost_what_they_had(search):
    """The card's example: 10, 20, 30 and m = 1 cost 30 tokens of thinking, not 10."""
    scripts = [chain("a", 20, 1), chain("b", 10, 2), chain("c", 30, 3)]
    answer, ledger = search(ShortMAtK, scripts, closing=CLOSE, samples=3, m=1)
    answering = len(f"#### 2{EOS}")
    assert answer.trace.text.endswith("2")
    assert ledger.generated - answering == 30
    assert ledger.sequential - answering == 10
    assert (ledger.cancelled, ledger.extra["finished_only_tokens"]) == (2, 10)


def test_it_is_the_thinking_that_is_short(search):
    """Chain a has the shorter text and the shorter answer, b the shorter thinking."""
    scripts = [chain("a", 20, 1), chain("b", 15, "1234567890123456789")]
    answer, _ = search(ShortMAtK, scripts, closing=CLOSE, samples=2, m=1)
    assert answer.trace.text.startswith("b")


def test_two_answers_of_two_are_the_shortest_chain_s(search):
    scripts = [chain("a", 30, 1), chain("b", 20, 2), chain("c", 40, 1), chain("d", 50, 1)]
    answer, ledger = search(ShortMAtK, scripts, closing=CLOSE, samples=4, m=2)
    assert answer.trace.text.endswith("2")
    assert ledger.extra["tied"] == 1
    assert len(answer.pool) == 2


def test_a_tie_goes_to_the_shortest_thinking_whatever_the_answers_take(search):
    scripts = [chain("a", 20, "1234567890123456789"), chain("b", 25, 2)]
    answer, ledger = search(ShortMAtK, scripts, closing=CLOSE, samples=2, m=2)
    assert answer.trace.text.startswith("a")
    assert ledger.extra["tied"] == 1


def test_the_m_vote_and_nobody_else_does(search):
    scripts = [chain("a", 20, 1), chain("b", 21, 2), chain("c", 22, 2), chain("d", 23, 1), chain("e", 24, 1)]
    assert search(ShortMAtK, scripts, closing=CLOSE, samples=5, m=3)[0].trace.text.endswith("2")
    assert search(ShortMAtK, scripts, closing=CLOSE, samples=5, m=5)[0].trace.text.endswith("1")


def test_of_chains_that_close_together_the_lower_index_is_first(search):
    scripts = [chain("a", 30, 1), chain("b", 20, 2), chain("c", 20, 3)]
    answer, _ = search(ShortMAtK, scripts, closing=CLOSE, samples=3, m=1)
    assert answer.trace.text.startswith("b")


def test_a_chain_that_runs_out_of_tokens_does_not_count(search):
    scripts = ["a" * 90, chain("b", 50, 2), "c" * 90]
    answer, _ = search(ShortMAtK, scripts, new=80, closing=CLOSE, samples=3, m=3)
    assert [trace.text[0] for trace in answer.pool] == ["b"]
    answer, _ = search(ShortMAtK, ["a" * 90, "b" * 90], new=80, closing=CLOSE, samples=2, m=1)
    assert answer.pool == ()
    assert "no chain finished" in answer.notes[0]


def test_a_chain_without_answer_holds_its_slot_unless_an_answer_is_required(search):
    scripts = [chain("a", 20, 1), chain("b", 10, ""), chain("c", 30, 3)]
    held, _ = search(ShortMAtK, scripts, closing=CLOSE, samples=3, m=1)
    assert held.trace.text.startswith("b")
    passed, ledger = search(ShortMAtK, scripts, closing=CLOSE, samples=3, m=1, require_answer=True)
    assert passed.trace.text.startswith("a")
    assert ledger.extra["skipped"] == 1


@pytest.mark.parametrize("m", [1, 2, 3])
def test_one_after_the_other_gives_the_same_answer_for_fewer_tokens(search, m):
    lengths = (25, 40, 12, 12, 60, 18)
    scripts = [chain("abcdef"[i], length, i % 2) for i, length in enumerate(lengths)]
    together, cost = search(ShortMAtK, scripts, closing=CLOSE, samples=6, m=m)
    alone, less = search(ShortMAtK, scripts, closing=CLOSE, samples=6, m=m, sequential=True)
    assert alone.trace.all_ids == together.trace.all_ids
    assert {trace.text for trace in alone.pool} == {trace.text for trace in together.pool}
    answering = m * len(f"#### 1{EOS}")
    assert less.generated == sum(_cost(lengths, i, m) for i in range(6)) + answering
    assert less.sequential > cost.sequential


def _cost(lengths, place, m):
    """A chain is called off one token before the m-th shortest of those before it."""
    best = sorted(lengths[:place])[:m]
    return min(lengths[place], best[-1] - 1) if len(best) == m else lengths[place]


def test_the_stop_online_is_the_rule_offline(search):
    """Accuracy, tokens and time of one set of chains, as `analysis.search` has them."""
    from analysis.search import Samples, first_finish

    lengths, said = np.array([25, 40, 12, 14, 60, 18]), [3, 1, 2, 1, 1, 3]
    scripts = [chain("abcdef"[i], length, said[i]) for i, length in enumerate(lengths)]
    for m in (1, 2, 3, 4):
        answer, ledger = search(ShortMAtK, scripts, closing=CLOSE, samples=6, m=m)
        samples = Samples(lengths, np.array([0, 1, 2, 1, 1, 0]), np.array(said) == 1, np.ones(6, dtype=bool))
        offline = first_finish(samples, 6, m=m)
        answering = len(f"#### 1{EOS}")
        assert answer.trace.text.endswith("1") == (offline.accuracy == 1)
        assert ledger.generated - m * answering == offline.gen_tokens
        assert ledger.sequential - answering == offline.seq_tokens


@pytest.mark.parametrize("options", [{"m": 6}, {"sequential": True, "require_answer": True}])
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(ValidationError, match=r"at most samples|leave out sequential"):
        ShortMAtK.Config(samples=5, **options)


# First Finish Search.


def test_the_batch_stops_at_the_first_end(search):
    """The decode steps are the shortest chain's, and all rows paid for them."""
    scripts = [plain("a", 40, 1), plain("b", 25, 2), plain("c", 60, 3)]
    answer, ledger = search(FirstFinishSearch, scripts, samples=3)
    assert answer.trace.text.endswith("2")
    assert (ledger.generated, ledger.sequential, ledger.cancelled) == (3 * 25, 25, 2)
    assert ledger.extra["finished_only_tokens"] == 25


def test_a_capped_chain_has_not_finished(search):
    scripts = ["a" * 60, plain("b", 45, 2)]
    answer, _ = search(FirstFinishSearch, scripts, new=50, samples=2)
    assert answer.trace.text.endswith("2")
    answer, _ = search(FirstFinishSearch, ["a" * 60, "b" * 60], new=50, samples=2)
    assert answer.pool == ()


def test_a_chain_that_answers_nothing_is_skipped_or_returned(search):
    scripts = [plain("a", 20, None), plain("b", 30, 2), plain("c", 40, 3)]
    skipped, ledger = search(FirstFinishSearch, scripts, samples=3)
    assert skipped.trace.text.endswith("2")
    assert ledger.extra["skipped"] == 1
    assert search(FirstFinishSearch, scripts, samples=3, skip=False)[0].trace.text.startswith("a")


def test_the_first_k_vote_and_in_the_control_the_last_k(search):
    scripts = [plain("abcde"[i], 20 + i, said) for i, said in enumerate((1, 2, 2, 3, 3))]
    assert search(FirstFinishSearch, scripts, samples=5, k=3)[0].trace.text.endswith("2")
    last, ledger = search(FirstFinishSearch, scripts, samples=5, k=2, wait_for="last")
    assert last.trace.text.endswith("3")
    assert (ledger.sequential, ledger.cancelled) == (24, 0)


def test_of_chains_that_end_together_the_likelier_is_taken_where_asked(search):
    scripts = [plain("a", 30, 1), plain("b", 30, 2)]
    first, _ = search(FirstFinishSearch, scripts, samples=2)
    assert first.trace.text.startswith("a")
    means = {}
    for order in (scripts, scripts[::-1]):
        chosen, _ = search(FirstFinishSearch, order, samples=2, tie="likelier")
        means[chosen.trace.text[0]] = np.mean(chosen.trace.all_logprobs)
    assert len(means) == 1  # whichever index it has


def test_seeds_differ(model):
    """Rows of one problem are not one row many times."""
    desk, ledger = sampler.NativeSampler(model, RequestMeter()), Ledger()
    policy = Policy(Problem("p", "", IDS, 12), 0.6, 0.95, ledger)
    desk.prefill([policy.root])
    found = FirstFinishSearch().search(
        policy, Verifier("prod", ledger), FirstFinishSearch.Config(samples=4, skip=False)
    )
    ((_, _),) = run([found], Desk(desk, None).serve)
    assert ledger.samples == 4
    assert len({tuple(seed) for seed in policy._seeds(4)}) == 4


# Budget forcing.


def test_a_stop_becomes_wait_until_the_budget_is_used(search):
    first = "thinking" + CLOSE
    scripts = [first, "thinkingWaitmore" + CLOSE, "thinkingWaitmoreWait" + "." * 100]
    whole = "thinkingWaitmoreWait"
    forced = whole + "." * (60 - len(whole)) + CLOSE + " so"
    scripts.append(forced + "#### 4" + EOS)
    answer, ledger = search(
        BudgetForcing, scripts, new=80, closing=CLOSE, guide=" so", answer_tokens=20, temperature=1.0
    )
    assert answer.trace.text == forced + "#### 4"
    assert answer.trace.text.count(CLOSE) == 1
    assert ledger.extra["waits"] == 2
    assert answer.trace.written == 2 * len("Wait") + len(CLOSE + " so")
    discarded = 2 * len(CLOSE)  # the stops that were taken back
    assert ledger.generated == answer.trace.length - answer.trace.written + discarded


def test_without_closing_the_end_token_is_taken_back(search):
    scripts = [f"one #### 1{EOS}", f"one #### 1Wait no #### 2{EOS}", "one #### 1Wait no #### 2Wait" + "." * 99]
    answer, _ = search(BudgetForcing, scripts, new=40, guide="", answer_tokens=0, temperature=1.0)
    assert answer.trace.text.startswith("one #### 1Wait no #### 2Wait...")
    assert EOS not in "".join(map(chr, answer.trace.all_ids))


def test_what_follows_a_taken_back_stop_is_drawn_as_if_it_had_never_been(model):
    """The cache behind a cut is that of the shorter text: the next logits are those of a fresh prefill."""
    forest = sampler.Forest(model.decoder)
    long, fresh = forest.root(), forest.root()
    forest.feed([long], [list(IDS) * 3])
    cut = long.up_to(20)
    ours = forest.feed([cut], [[7, 8, 9]])
    theirs = forest.feed([fresh], [[*(IDS * 3)[:20], 7, 8, 9]])
    torch.testing.assert_close(ours, theirs)
    again = forest.feed([long], [[5]])
    other = forest.root()
    torch.testing.assert_close(again, forest.feed([other], [[*IDS * 3, 5]]))


def test_log_probabilities_behind_a_taken_back_stop_are_those_of_the_text(search, model):
    """One pass over the whole text gives every drawn token the log-probability that the search noted."""
    scripts = [f"one #### 1{EOS}", "one #### 1Wait no" + "." * 99]
    answer, _ = search(BudgetForcing, scripts, new=40, guide="", answer_tokens=0, temperature=1.0)
    ids = list(answer.trace.all_ids)
    forest = sampler.Forest(model.decoder)
    (logits,) = forest.feed_all([forest.root()], [[*IDS, *ids]])
    behind = logits[len(IDS) - 1 : -1].log_softmax(dim=-1)[range(len(ids)), ids]
    noted = torch.tensor(answer.trace.all_logprobs)
    drawn = torch.tensor([piece.drawn for piece in answer.trace.lineage for _ in piece.ids])
    torch.testing.assert_close(noted[drawn], behind[drawn], atol=1e-4, rtol=1e-4)


# Self-refine.


def test_the_criticism_is_read_when_the_answer_is_written_again(search):
    answer = "#### 1"
    reviewed = answer + "REVIEW" + " step 2 is wrong"
    scripts = [answer + EOS, reviewed + EOS, reviewed + "REVISE" + "#### 2" + EOS]
    scripts.append(reviewed + "REVISE#### 2REVIEW No error" + EOS)
    found, ledger = search(SelfRefine, scripts, review="REVIEW", revise="REVISE")
    assert found.trace.text == reviewed + "REVISE#### 2"
    assert [trace.text[-1] for trace in found.pool] == ["1", "2"]
    assert ledger.extra["rounds"] == 1


def test_no_error_ends_the_rounds(search):
    scripts = [f"#### 1{EOS}", f"#### 1REVIEW No error{EOS}"]
    found, ledger = search(SelfRefine, scripts, review="REVIEW", revise="REVISE")
    assert found.trace.text == "#### 1"
    assert ledger.extra["rounds"] == 0


def test_there_are_three_rounds_at_most(search):
    texts = ["#### 1"]
    for i in range(2, 6):
        texts.append(texts[-1] + "REVIEW" + "bad")
        texts.append(texts[-1] + "REVISE" + f"#### {i}")
    found, ledger = search(SelfRefine, [text + EOS for text in texts], review="REVIEW", revise="REVISE")
    assert found.trace.text.endswith("#### 4")
    assert ledger.extra["rounds"] == 3
