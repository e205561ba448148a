"""Spec-Bench: its file, its turns, and generated questions whose answers copy more or less from the prompt."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from statistics import fmean
from typing import Any

import pytest

from suite.harness.options import requests_in_turn
from suite.spec import WorkloadSpec
from tests.workloads.support import SPEC_BENCH_RECORD, completion, take, write_jsonl
from workloads.generators.spec_bench import TASKS, TOPICS, gen_spec_bench
from workloads.schema import DataError, Request
from workloads.spec_bench import SpecBench, SpecBenchConfig

TALK = "conversation"


def record(number: int, category: str, *turns: str, reference: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {"question_id": number, "category": category, "turns": list(turns)}
    return {**found, "reference": list(reference)} if reference else found


def workload(tmp_path, *records: dict[str, Any], **options: Any) -> SpecBench:
    return SpecBench(SpecBenchConfig(data=write_jsonl(tmp_path / "question.jsonl", records), **options))


def copied(request: Request) -> float:
    """Share of the reference's word trigrams (or of itself, if it is shorter) that stand in the prompt."""
    prompt, answer = (re.findall(r"\w+", text) for text in (request.prompt, request.references[0]))
    size = min(3, len(answer))
    seen, wanted = ({tuple(words[at : at + size]) for at in range(len(words) - size + 1)} for words in (prompt, answer))
    return len(seen & wanted) / len(wanted)


@pytest.mark.parametrize("task", TASKS)
def test_records_have_the_public_schema_and_an_answer_to_every_turn(task: str) -> None:
    records = list(islice(gen_spec_bench(5, task, 400), 16))
    for one in records:
        assert set(one) == {"question_id", "category", "turns", "reference"}
        assert len(one["turns"]) == len(one["reference"]) == (2 if task == TALK else 1)
        assert all(text.strip() for text in one["turns"] + one["reference"])
        assert "{" not in one["turns"][0].replace("JSON", "")
    assert [one["category"] for one in records[:8]] == (list(TOPICS) if task == TALK else [task] * 8)


def test_question_ids_differ_over_all_tasks() -> None:
    numbers = [one["question_id"] for task in TASKS for one in islice(gen_spec_bench(0, task, 400), 20)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_varied(task: str) -> None:
    prompts = [request.prompt for request in take(SpecBench(), task, 80)]
    assert len(set(prompts)) >= (60 if task == "qa" else 75)


def test_a_limit_is_balanced_over_the_categories() -> None:
    spec = WorkloadSpec(name="spec-bench", task="", limit=24)
    assert Counter(request.task for request in requests_in_turn(spec)) == dict.fromkeys(TASKS, 4)
    topics = Counter(request.metadata["category"] for request in take(SpecBench(), TALK, 32))
    assert topics == dict.fromkeys(TOPICS, 4)


def test_texts_and_passages_copy_much_translations_and_talk_little() -> None:
    share = {task: fmean(copied(request) for request in take(SpecBench(), task, 24)) for task in TASKS}
    open_talk = fmean(
        copied(request)
        for request in take(SpecBench(), TALK, 32)
        if request.metadata["category"] in ("writing", "roleplay", "stem", "humanities")
    )
    assert share["summarization"] > 0.8
    assert share["rag"] == 1.0
    assert share["translation"] < 0.05
    assert open_talk < 0.2


def test_the_length_of_texts_follows_the_option() -> None:
    short, long = (take(SpecBench(SpecBenchConfig(target_tokens=n)), "summarization", 1)[0].prompt for n in (300, 1500))
    assert 3 < len(long) / len(short) < 7


def test_both_languages_of_a_translation_have_the_same_sentences() -> None:
    for request in take(SpecBench(), "translation", 60):
        assert request.prompt.count(".") == request.references[0].count(".")
        assert "{" not in request.prompt + request.references[0]


@pytest.mark.parametrize(
    ("task", "metric", "right", "wrong"),
    [
        ("translation", "rouge_l", "{}", "something else"),
        ("summarization", "rouge_l", "{}", "something else"),
        ("rag", "named", "The passages say {}.", "They do not say."),
        ("qa", "named", "It is {}, I think.", "It is {}ville."),
        ("math_reasoning", "final_number", "So {}", "{}, or rather 1234567"),
        (TALK, "answered", "anything", " \n"),
    ],
)
def test_scores(task: str, metric: str, right: str, wrong: str) -> None:
    made = SpecBench()
    for request in take(made, task, 10):
        reference = request.references[0].split("#### ")[-1]
        assert request.metric == metric
        assert made.score(completion(request, right.format(reference)), request) == pytest.approx(100.0, abs=1e-5)
        assert made.score(completion(request, wrong.format(reference)), request) < 20


def test_a_later_turn_sees_the_earlier_ones_and_an_answer(tmp_path) -> None:
    made = workload(tmp_path, record(81, "writing", "Write it.", "Shorten it.", reference=("A long {text}.", "Text.")))
    first, second = take(made, TALK, 9)
    assert first.prompt == "Write it."
    assert [part in second.prompt for part in ("Write it.", "A long {text}.")] == [True, True]
    assert second.prompt.endswith("Shorten it.")
    assert second.question == "Shorten it."
    assert (first.references, second.references) == (("A long {text}.",), ("Text.",))
    assert [one.metadata["turn"] for one in (first, second)] == [1, 2]


def test_a_later_turn_without_a_known_answer_is_left_out(tmp_path) -> None:
    made = workload(tmp_path, record(81, "writing", "Write it.", "Shorten it."), record(82, "stem", "Why?", "How?"))
    requests = take(made, TALK, 9)
    assert [request.prompt for request in requests] == ["Write it.", "Why?"]
    assert {request.metric for request in requests} == {"answered"}
    assert {request.references for request in requests} == {()}


def test_a_models_own_answers_come_from_a_file(tmp_path) -> None:
    answers = [{"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["MINE", "LAST"]}]}]
    path = write_jsonl(tmp_path / "answers.jsonl", answers)
    question = record(81, "writing", "Write it.", "Shorten it.", reference=("GIVEN", "Text."))
    made = workload(tmp_path, question, answers=path)
    second = take(made, TALK, 9)[1]
    assert "MINE" in second.prompt
    assert "GIVEN" not in second.prompt
    assert made.revision(0) != workload(tmp_path, question).revision(0)
    write_jsonl(path, [{**answers[0], "choices": []}])
    with pytest.raises(DataError, match=r"answers\.jsonl, line 1: field 'choices'"):
        workload(tmp_path, question, answers=path)


def test_a_file_has_its_tasks_its_order_and_the_protocols_length(tmp_path) -> None:
    made = workload(
        tmp_path,
        record(81, "writing", "w1"),
        record(82, "writing", "w2"),
        record(91, "coding", "c1"),
        SPEC_BENCH_RECORD,
    )
    assert made.tasks == (TALK, "translation")
    assert [request.prompt for request in take(made, TALK, 9)] == ["w1", "c1", "w2"]
    (request,) = take(made, "translation", 9)
    assert (request.max_new_tokens, request.chat, request.temperature) == (1024, True, 0.0)
    assert take(SpecBench(), "translation", 1)[0].max_new_tokens == 192
    assert take(workload(tmp_path, SPEC_BENCH_RECORD, new_tokens=7), "translation", 1)[0].max_new_tokens == 7


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"category": "poetry"}, r"field 'category': .*'poetry' is not one of writing, .*rag"),
        ({"turns": []}, r"field 'turns'"),
        ({"turns": [""]}, r"field 'turns\.0'"),
        ({"question_id": "x"}, r"field 'question_id'"),
    ],
)
def test_a_bad_record_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path) -> None:
    with pytest.raises(DataError, match=rf"question\.jsonl, line 2: {sentence}") as caught:
        workload(tmp_path, SPEC_BENCH_RECORD, {**SPEC_BENCH_RECORD, **changes})
    assert "\n" not in str(caught.value)
