"""The lab's LongBench: every item has one answer, in the text once, and exactly the length of its task."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workloads.support import completion, take
from workloads import recall
from workloads.lab import SPECIALS, compose_batch
from workloads.lab_longbench import ASK_PASSAGE, ENDING, SCRIPTS, LabLongBench, LabLongBenchConfig, vocabulary
from workloads.recall import ASK, DIGITS, FILLERS, KEYS
from workloads.schema import DataError

TASKS = LabLongBench.tasks


def found(prompt: list[str], dataset: str, key: str) -> list[list[str]]:
    """What a reader with a finger on the text answers: the symbols next to every place of the key but the question."""
    places = [index for index, word in enumerate(prompt[:-2]) if word == key]
    if dataset == "qa":
        return [prompt[place + 1 : place + 3] for place in places]
    numbers = [[word for word in prompt[place : place + ENDING + 2] if word in DIGITS][:2] for place in places]
    assert all(len(number) == 2 for number in numbers)
    return numbers


def test_vocabulary_is_small_unique_and_begins_with_the_special_tokens() -> None:
    assert vocabulary()[:4] == list(SPECIALS)
    assert len(set(vocabulary())) == len(vocabulary()) < 128
    assert vocabulary()[:-1] == recall.vocabulary()


def test_there_are_tasks_from_the_trained_length_to_128k() -> None:
    assert {task.split("-")[0] for task in TASKS} == {"qa", "passage_retrieval"}
    assert {int(task.split("-")[1]) for task in TASKS} == {512 << n for n in range(9)}


@pytest.mark.parametrize("task", TASKS)
def test_the_question_has_one_answer_in_the_text_and_the_length_is_exact(task: str) -> None:
    dataset, length = task.split("-")
    for request in take(LabLongBench(), task, 1 if int(length) > 4096 else 5):
        prompt, answer = request.prompt.split(), request.references[0].split()
        assert 1 + len(prompt) + len(answer) == int(length) == request.metadata["length"]
        assert prompt[-2] == {"qa": ASK, "passage_retrieval": ASK_PASSAGE}[dataset]
        assert found(prompt, dataset, prompt[-1]) == [answer]
        assert request.max_new_tokens == len(answer)
        first = request.metadata["needle_token"] - 1  # counted with <bos>, which the prompt lacks
        fact = prompt[first : first + SCRIPTS[dataset].fact_tokens]
        assert prompt[-1] in fact
        assert fact[-2:] == answer


@pytest.mark.parametrize("dataset", SCRIPTS)
def test_a_text_holds_its_facts_once_and_filler_elsewhere(dataset: str) -> None:
    (request,) = take(LabLongBench(LabLongBenchConfig(facts=7)), f"{dataset}-1024", 1)
    body = request.prompt.split()[:-2]
    keys = [word for word in body if word in KEYS]
    assert len(keys) == len(set(keys)) == len(request.metadata["fact_tokens"]) == 7
    assert sum(word in DIGITS for word in body) == 2 * 7
    assert sum(word in FILLERS for word in body) == len(body) - 3 * 7


def test_the_evidence_is_spread_over_the_whole_text() -> None:
    depths = [request.metadata["depth"] for request in take(LabLongBench(), "qa-4096", 60)]
    assert np.histogram(depths, bins=4, range=(0, 1))[0].min() >= 5


@pytest.mark.parametrize("dataset", SCRIPTS)
def test_naming_some_fact_of_the_text_is_chance(dataset: str) -> None:
    """The symbols of a fact which the question does not ask for: what a model without the key can do at best."""
    workload, scores = LabLongBench(), []
    for request in take(workload, f"{dataset}-512", 100):
        prompt = request.prompt.split()
        keys = [word for word in prompt[:-2] if word in KEYS]
        scores += [
            workload.score(completion(request, " ".join(found(prompt, dataset, key)[0])), request) for key in keys
        ]
    assert np.mean(scores) == pytest.approx(100 / 16 + 15 / 16 * LabLongBench.chance, abs=1.5)


def test_training_batches_mark_the_answers_and_nothing_else() -> None:
    ids, mask = compose_batch(np.random.default_rng(0), SCRIPTS["passage_retrieval"], 3, 128, queries=5, facts=2)
    for row, answers in zip(ids, mask, strict=True):
        words = [vocabulary()[token] for token in row]
        for start in range(128 - 20, 128, 4):
            assert words[start] == ASK_PASSAGE
            assert found([*words[:108], *words[start : start + 2]], "passage_retrieval", words[start + 1]) == [
                words[start + 2 : start + 4]
            ]
        assert mask.shape == (3, 128)
        assert np.flatnonzero(answers).tolist() == [i for i in range(108, 128) if i % 4 in (2, 3)]


def test_more_facts_than_a_text_has_room_for_are_an_error() -> None:
    with pytest.raises(DataError, match="do not fit into 64 tokens"):
        compose_batch(np.random.default_rng(0), SCRIPTS["passage_retrieval"], 1, 64, queries=1, facts=16)
