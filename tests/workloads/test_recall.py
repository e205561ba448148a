"""The lab task: its vocabulary, its training batches and its items are one and the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.support import completion, take
from workloads.recall import ASK, DIGITS, FILLERS, KEYS, SPECIALS, Recall, training_batch, vocabulary
from workloads.schema import DataError


def words(ids: np.ndarray) -> list[str]:
    tokens = vocabulary()
    return [tokens[index] for index in ids]


def test_vocabulary_is_small_unique_and_begins_with_the_special_tokens() -> None:
    tokens = vocabulary()
    assert tokens[:4] == list(SPECIALS)
    assert len(set(tokens)) == len(tokens) < 128
    assert not any(any(blank in token for blank in " \n\t") for token in tokens)


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(29, 140), st.integers(1, 4))
def test_training_batch_asks_for_pairs_that_stand_in_it(seed: int, length: int, queries: int) -> None:
    ids, mask = training_batch(np.random.default_rng(seed), 3, length, queries)
    assert ids.shape == mask.shape == (3, length)
    for row, answers in zip(ids, mask, strict=True):
        text = words(row)
        body, tail = text[: length - 4 * queries], text[length - 4 * queries :]
        assert text[0] == "<bos>"
        assert [i for i in range(length) if answers[i]] == [i for i in range(length) if text[i] in DIGITS][
            -2 * queries :
        ]
        for start in range(0, 4 * queries, 4):
            mark, key, *digits = tail[start : start + 4]
            assert mark == ASK
            assert body.count(key) == 1
            assert body[body.index(key) + 1 : body.index(key) + 3] == digits


@given(st.integers(1, 6))
def test_body_holds_each_pair_once_and_filler_elsewhere(pairs: int) -> None:
    ids, _ = training_batch(np.random.default_rng(pairs), 1, 64, 1, pairs=pairs)
    body = words(ids[0])[1:-4]
    assert sum(token in KEYS for token in body) == pairs
    assert sum(token in DIGITS for token in body) == 2 * pairs
    assert sum(token in FILLERS for token in body) == len(body) - 3 * pairs


def test_pairs_may_stand_at_both_ends_of_the_body() -> None:
    rng = np.random.default_rng(0)
    bodies = [words(training_batch(rng, 1, 40, 1)[0][0])[1:-4] for _ in range(300)]
    assert any(body[0] in KEYS for body in bodies)
    assert any(body[-1] in DIGITS for body in bodies)


@pytest.mark.parametrize("task", Recall.tasks)
def test_item_is_a_training_sequence_of_that_length_without_its_answer(task: str) -> None:
    for request in take(Recall(), task, 3):
        prompt, answer = request.prompt.split(), request.references[0].split()
        assert 1 + len(prompt) + len(answer) == int(task)
        assert prompt[-2] == ASK
        needle = request.metadata["needle_token"] - 1  # counted with <bos>, which the prompt lacks
        assert prompt[needle : needle + 3] == [prompt[-1], *answer]
        assert request.metadata["needle_token"] in request.metadata["fact_tokens"]
        assert request.max_new_tokens == 2


def test_too_short_a_length_is_an_error() -> None:
    with pytest.raises(DataError, match=r"do not fit into 28 tokens; .*at least 29"):
        training_batch(np.random.default_rng(0), 1, 28, 4)


def test_more_queries_than_pairs_ask_again() -> None:
    ids, mask = training_batch(np.random.default_rng(0), 1, 100, 6, pairs=2)
    asked = [token for token in words(ids[0])[-24:] if token in KEYS]
    assert mask.sum() == 12
    assert len(asked) == 6
    assert len(set(asked)) <= 2


@pytest.mark.parametrize(("right", "expected"), [((0, 1), 100.0), ((0,), 50.0), ((1,), 50.0), ((), 0.0)])
def test_digits_count_at_their_own_place(right: tuple[int, ...], expected: float) -> None:
    workload = Recall()
    (request,) = take(workload, "128", 1)
    answer = [d if i in right else "w00" for i, d in enumerate(request.references[0].split())]
    assert workload.score(completion(request, " ".join(answer)), request) == expected


def test_guessing_scores_one_in_sixteen() -> None:
    workload, rng = Recall(), np.random.default_rng(0)
    scores = [
        workload.score(completion(request, " ".join(rng.choice(DIGITS, 2))), request)
        for request in take(workload, "128", 600)
    ]
    assert np.mean(scores) == pytest.approx(Recall.chance, abs=2.5)
