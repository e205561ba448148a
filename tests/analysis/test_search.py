"""Estimators over stored answers: by hand, against enumeration, and the shortcuts that the cards warn of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.search import (
    FEWEST_SUBSETS,
    Counts,
    Outcome,
    Samples,
    Tie,
    best_of_n,
    first_finish,
    last_finish,
    length_auc,
    majority,
    pass_at_k,
    rank_weights,
    subsets,
    weighted_majority,
)


def stored(
    lengths: Sequence[int],
    answers: str,
    *,
    unfinished: Sequence[int] = (),
    rewards: Sequence[float] | None = None,
    right: str = "a",
) -> Samples:
    """One letter an answer, "-" for none; `right` is the right one."""
    return Samples(
        lengths=np.array(lengths),
        classes=np.array([-1 if letter == "-" else answers.index(letter) for letter in answers]),
        correct=np.array([letter == right for letter in answers]),
        finished=np.array([index not in unfinished for index in range(len(answers))]),
        rewards=None if rewards is None else np.array(rewards, dtype=float),
    )


@st.composite
def some_samples(draw: st.DrawFn) -> tuple[Samples, int]:
    n = draw(st.integers(1, 6))
    texts = draw(st.text("aabc-", min_size=n, max_size=n))
    lengths = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    rewards = draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n))
    unfinished = draw(st.sets(st.integers(0, n - 1)))
    made = stored(lengths, texts, unfinished=sorted(unfinished), rewards=rewards)
    return made, draw(st.integers(1, n))


def by_enumeration(samples: Samples, k: int, m: int, counts: Counts, tie: Tie) -> Outcome:
    """Early stopping by its words, one subset and one chain at a time."""
    rows = []
    for chosen in combinations(range(len(samples)), k):
        able = [
            i
            for i in chosen
            if samples.finished[i]
            and (counts != "answered" or samples.classes[i] >= 0)
            and (counts != "correct" or samples.correct[i])
        ]
        ended = sorted(able, key=lambda i: (samples.lengths[i], i))[:m]
        enough = len(ended) == m
        stop = max(samples.lengths[i] for i in (ended if enough else chosen))
        credit, tied = voted(samples, sorted(ended), tie)
        produced = sum(min(samples.lengths[i], stop) for i in chosen)
        rows.append([credit, produced, stop, sum(samples.lengths[i] for i in ended), tied])
    return Outcome(*(float(column) for column in np.mean(rows, axis=0)))


def voted(samples: Samples, chosen: Sequence[int], tie: Tie) -> tuple[float, bool]:
    groups: dict[int, list[int]] = {}
    for i in chosen:
        if samples.classes[i] >= 0:
            groups.setdefault(int(samples.classes[i]), []).append(i)
    if not groups:
        return 0.0, False
    most = max(map(len, groups.values()))
    best = {name: members for name, members in groups.items() if len(members) == most}
    if tie == "random":
        return float(np.mean([samples.correct[name] for name in best])), len(best) > 1
    key: Callable[[int], object] = (lambda i: i) if tie == "first" else (lambda i: (samples.lengths[i], i))
    first = min((i for members in best.values() for i in members), key=key)  # type: ignore[arg-type]
    return float(samples.correct[samples.classes[first]]), len(best) > 1


def assert_figures(outcome: Outcome, **figures: float) -> None:
    assert {name: getattr(outcome, name) for name in figures} == pytest.approx(figures)


def test_pass_at_k_is_the_unbiased_estimator() -> None:
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 2, 3) == 1.0
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(10, 3, 5) == pytest.approx(np.mean([min(s) < 3 for s in combinations(range(10), 5)]))
    with pytest.raises(ValueError, match="pass@5 of 4 answers"):
        pass_at_k(4, 2, 5)


def test_ranks_add_up_to_one() -> None:
    assert rank_weights(5, 2).tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert rank_weights(20, 5).sum() == pytest.approx(1)


def test_all_subsets_or_many_and_the_same_ones_every_time() -> None:
    assert subsets(5, 3).tolist() == [list(one) for one in combinations(range(5), 3)]
    drawn = subsets(30, 8, FEWEST_SUBSETS)
    assert drawn.shape == (FEWEST_SUBSETS, 8)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert np.bincount(drawn.ravel(), minlength=30) == pytest.approx(FEWEST_SUBSETS * 8 / 30, rel=0.3)
    with pytest.raises(ValueError, match="too few to average"):
        subsets(30, 8, 1)
    with pytest.raises(ValueError, match="no subsets of 4 among 3"):
        subsets(3, 4)


def test_a_majority_is_the_mean_over_subsets_not_one_draw() -> None:
    """Of abab two subsets are mostly a and two mostly b; one draw would say 0 or 1."""
    assert_figures(
        majority(stored([1, 2, 3, 4], "abab"), 3), accuracy=0.5, gen_tokens=7.5, seq_tokens=3.75, tie_rate=0.0
    )


@pytest.mark.parametrize(("tie", "accuracy"), [("first", 0.0), ("random", 1 / 3), ("shortest", 1.0)])
def test_tie_rules(tie: Tie, accuracy: float) -> None:
    assert_figures(majority(stored([30, 10, 20], "bac"), 3, tie=tie), accuracy=accuracy, tie_rate=1.0)


def test_no_answer_never_wins() -> None:
    assert_figures(majority(stored([1, 1, 1, 1], "---a"), 4), accuracy=1.0, tie_rate=0.0)
    assert_figures(majority(stored([1, 1], "--"), 2), accuracy=0.0, tie_rate=0.0)


def test_a_class_of_negative_weight_can_win_and_an_absent_one_cannot() -> None:
    assert_figures(weighted_majority(stored([1, 1, 1], "abb", rewards=[-1, -2, -3]), 3), accuracy=1.0)


def test_weighted_votes_and_their_normalised_variant_differ() -> None:
    """0.9 against 0.6 + 0.5; min-max makes it 1 against 0.25 + 0."""
    samples = stored([1, 1, 1], "abb", rewards=[0.9, 0.6, 0.5])
    assert_figures(weighted_majority(samples, 3), accuracy=0.0)
    assert_figures(weighted_majority(samples, 3, normalised=True), accuracy=1.0)


def test_equal_rewards_normalise_to_a_majority() -> None:
    samples = stored([1, 2, 3, 4], "abab", rewards=[0.3] * 4)
    for k in (1, 2, 3, 4):
        assert weighted_majority(samples, k, normalised=True) == majority(samples, k)


def test_a_verifier_must_have_scored() -> None:
    for method in (best_of_n, weighted_majority):
        with pytest.raises(ValueError, match="have no rewards"):
            method(stored([1], "a"), 1)


@given(some_samples())
def test_best_of_n_by_ranks_is_best_of_n_over_all_subsets(made: tuple[Samples, int]) -> None:
    samples, k = made
    assert samples.rewards is not None
    found = [
        samples.correct[max(s, key=lambda i: (samples.rewards[i], -i))] for s in combinations(range(len(samples)), k)
    ]  # type: ignore[index]
    assert best_of_n(samples, k).accuracy == pytest.approx(np.mean(found))
    assert best_of_n(samples, k).seq_tokens == pytest.approx(majority(samples, k).seq_tokens)


def test_random_scores_choose_like_a_single_sample() -> None:
    """The floor of self-evaluation: on average over orders the choice is any of the answers."""
    rng, samples = np.random.default_rng(0), stored(list(range(10)), "aaabbbcccd")
    chosen = [best_of_n(replace(samples, rewards=rng.random(10)), 4).accuracy for _ in range(2000)]
    assert np.mean(chosen) == pytest.approx(0.3, abs=0.02)


def test_compute_counts_cancelled_chains() -> None:
    """Three chains ran ten tokens each until the first ended: 30 tokens, not its 10."""
    outcome = first_finish(stored([10, 20, 30], "abc"), 3)
    assert_figures(outcome, accuracy=1.0, gen_tokens=30.0, seq_tokens=10.0, finished_only_tokens=10.0)
    assert_figures(
        first_finish(stored([10, 20, 30], "abc"), 3, m=2), gen_tokens=50.0, seq_tokens=20.0, finished_only_tokens=30.0
    )
    assert_figures(majority(stored([10, 20, 30], "abc"), 3), gen_tokens=60.0, seq_tokens=30.0)


@given(some_samples())
def test_compute_is_at_least_k_times_the_shortest(made: tuple[Samples, int]) -> None:
    samples, k = made
    for m in range(1, k + 1):
        assert first_finish(samples, k, m=m).gen_tokens >= k * samples.lengths.min() - 1e-9


def test_two_answers_tie_and_the_shortest_chains_wins() -> None:
    samples = stored([20, 10, 90], "bac")
    assert_figures(first_finish(samples, 3, m=2), accuracy=1.0, tie_rate=1.0)
    assert_figures(first_finish(samples, 3, m=2, tie="first"), accuracy=0.0, tie_rate=1.0)


def test_chains_that_end_together_are_admitted_by_index() -> None:
    assert_figures(first_finish(stored([5, 5, 5], "bac"), 3), accuracy=0.0)
    assert_figures(first_finish(stored([5, 5, 5, 9], "abba"), 4, m=3), accuracy=0.0, seq_tokens=5.0, gen_tokens=20.0)


def test_a_chain_that_the_limit_cut_off_never_finishes_first() -> None:
    samples = stored([10, 10, 12], "bba", unfinished=[0, 1])
    assert_figures(first_finish(samples, 3), accuracy=1.0, seq_tokens=12.0, gen_tokens=32.0)
    assert_figures(first_finish(samples, 3, m=2), accuracy=1.0, seq_tokens=12.0, finished_only_tokens=12.0)
    assert_figures(
        first_finish(stored([9, 9], "ab", unfinished=[0, 1]), 2), accuracy=0.0, seq_tokens=9.0, gen_tokens=18.0
    )
    assert_figures(majority(samples, 3), accuracy=0.0)


def test_a_chain_without_an_answer_takes_a_place_unless_answers_are_required() -> None:
    samples = stored([5, 7, 9], "-ab")
    assert_figures(first_finish(samples, 3), accuracy=0.0, seq_tokens=5.0)
    assert_figures(first_finish(samples, 3, counts="answered"), accuracy=1.0, seq_tokens=7.0, gen_tokens=19.0)


def test_the_oracle_stops_at_the_shortest_right_chain() -> None:
    samples = stored([5, 7, 9, 11], "baab")
    assert_figures(first_finish(samples, 4, counts="correct"), accuracy=1.0, seq_tokens=7.0)
    assert first_finish(samples, 2, counts="correct").accuracy == pytest.approx(pass_at_k(4, 2, 2))


def test_waiting_for_all_is_a_majority() -> None:
    samples = stored([4, 9, 2, 7, 7], "abacb")
    for k in (1, 2, 3, 4, 5):
        assert_figures(first_finish(samples, k, m=k, tie="first"), **vars(majority(samples, k)))
        assert_figures(last_finish(samples, k, m=k), **vars(majority(samples, k)))


def test_the_longest_vote_and_all_are_waited_for() -> None:
    assert_figures(last_finish(stored([1, 9, 5], "bac"), 3), accuracy=1.0, seq_tokens=9.0, gen_tokens=15.0)
    assert_figures(last_finish(stored([1, 9, 5], "bca", unfinished=[1]), 3), accuracy=1.0, seq_tokens=9.0)


@given(
    some_samples(),
    st.sampled_from(["finished", "answered", "correct"]),
    st.sampled_from(["first", "random", "shortest"]),
)
def test_early_stopping_follows_its_words(made: tuple[Samples, int], counts: Counts, tie: Tie) -> None:
    """m = 1 by the rank formula, the others by votes over subsets: both are what happens, chain by chain."""
    samples, k = made
    for m in range(1, k + 1):
        assert_figures(
            first_finish(samples, k, m=m, counts=counts, tie=tie), **vars(by_enumeration(samples, k, m, counts, tie))
        )


@pytest.mark.parametrize(
    "method",
    [majority, partial(first_finish, m=3), weighted_majority, partial(last_finish, m=2)],
    ids=["majority", "short-3", "weighted", "longest"],
)
def test_drawn_subsets_agree_with_all_of_them(method: Callable[..., Outcome]) -> None:
    rng = np.random.default_rng(1)
    letters = "".join(rng.choice(list("aabc-"), 16))
    samples = stored(rng.integers(5, 60, 16).tolist(), letters, unfinished=[2], rewards=rng.random(16).tolist())
    drawn, every = method(samples, 6, most=4000), method(samples, 6)
    assert drawn != every
    assert drawn.accuracy == pytest.approx(every.accuracy, abs=0.03)
    assert drawn.gen_tokens == pytest.approx(every.gen_tokens, rel=0.02)


def test_shuffled_lengths_lose_the_gain() -> None:
    """Short chains are right here; once lengths say nothing, the first to end is any."""
    rng, samples = np.random.default_rng(3), stored(list(range(20)), "aaaaaaaabbbbbbbccccc")
    assert first_finish(samples, 5).accuracy > 0.9
    shuffled = [first_finish(replace(samples, lengths=rng.permutation(20)), 5).accuracy for _ in range(500)]
    assert np.mean(shuffled) == pytest.approx(0.4, abs=0.03)


def test_length_auc_is_within_a_question() -> None:
    assert length_auc(stored([1, 2, 3], "aab")) == 1.0
    assert length_auc(stored([3, 2, 3], "aba")) == 0.0
    assert length_auc(stored([2, 2], "ab")) == 0.5
    assert length_auc(stored([2, 2], "aa")) is None
    easy, hard = stored([1, 2, 1], "aab"), stored([8, 9, 8], "bba")
    assert [length_auc(easy), length_auc(hard)] == [0.25, 0.75]


def test_arrays_must_fit() -> None:
    with pytest.raises(ValueError, match="one value of each kind for every answer"):
        replace(stored([1, 2], "ab"), rewards=np.zeros(3))
    for classes in ([1, 0], [1, 1], [0, 2]):
        with pytest.raises(ValueError, match="index of its first member"):
            replace(stored([1, 2, 3], "ab-"), classes=np.array([*classes, -1]))
    with pytest.raises(ValueError, match="m is between 1 and k"):
        first_finish(stored([1, 2], "ab"), 1, m=2)
