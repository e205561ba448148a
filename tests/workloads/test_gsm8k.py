"""GSM8K: the number that counts, the prompt around a problem, and generated problems whose sums add up."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from tests.workloads.support import SHARED, completion, perfect, take, write_jsonl
from workloads.answers import final_number
from workloads.generators.seeding import item_rng
from workloads.generators.word_problems import PLOTS, word_problem
from workloads.gsm8k import Gsm8k, Gsm8kConfig
from workloads.schema import DataError, Request

TASK = "test"
SUM = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)")
NUMBER = re.compile(r"\d+")
WORDS = {2: "double", 100: "percent"}
"""Numbers that a story says in a word."""


def problem(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def made(count: int = 400) -> list[dict[str, str]]:
    return [word_problem(item_rng("test", index)) for index in range(count)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4 + 5 = 9\n#### 9", "9"),
        ("#### 1,234", "1234"),
        ("#### $70,000.", "70000"),
        ("#### -5", "-5"),
        ("####12", "12"),
        ("#### 2.50 dollars", "2.5"),
        ("#### 7\n\nQuestion: How many are 3 and 5?\nAnswer: #### 8", "7"),
        ("The answer is 18.", "18"),
        ("She pays $1,250.00 for 3 of them, so it is $1,250.00.", "1250"),
        ("It falls to -4", "-4"),
        ("The rest is 16-3", "3"),
        ("so \\boxed{42}", "42"),
        ("18.00", "18"),
    ],
)
def test_final_number(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no idea", "####", "$", "..."])
def test_no_number(text: str) -> None:
    assert final_number(text) is None


def test_strict_takes_a_marked_number_only() -> None:
    assert final_number("The answer is 18.", "strict") is None
    assert final_number("It is 3, no:\n#### 18", "strict") == 18


@pytest.mark.parametrize(
    ("text", "flexible", "strict"),
    [
        ("6 * 3 = 18\n#### 18", 100.0, 100.0),
        ("The answer is $18.00.", 100.0, 0.0),
        ("#### 18 and not 17", 100.0, 100.0),
        ("#### 180", 0.0, 0.0),
        ("so \\boxed{18} of the 20", 100.0, 0.0),
        ("18 or 19", 0.0, 0.0),
        ("eighteen", 0.0, 0.0),
    ],
)
def test_score(text: str, flexible: float, strict: float, tmp_path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [problem("What is 6 times 3?", "6*3=<<6*3=18>>18\n#### 18")])
    for extraction, expected in (("flexible", flexible), ("strict", strict)):
        workload = Gsm8k(Gsm8kConfig(data=data, extraction=extraction))
        (request,) = take(workload, TASK, 9)
        assert workload.score(completion(request, text), request) == expected


@pytest.mark.parametrize("answer", ["18", "#### eighteen", ""])
def test_a_record_without_a_marked_number_is_one_sentence(answer: str, tmp_path) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", [problem("q", "#### 1"), problem("q", answer)])
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: field 'answer': .*#### and a number") as caught:
        Gsm8k(Gsm8kConfig(data=data))
    assert "\n" not in str(caught.value)


def test_a_directory_gives_problems_and_examples(tmp_path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [problem("Asked?", "#### 1"), problem("And this?", "#### 2")])
    write_jsonl(tmp_path / "train.jsonl", [])
    with pytest.raises(DataError, match=r"train\.jsonl: holds no records"):
        Gsm8k(Gsm8kConfig(data=tmp_path))
    shown = [problem(f"Shown {n}?", f"1+{n}=<<1+{n}={1 + n}>>{1 + n}\n#### {1 + n}") for n in range(3)]
    write_jsonl(tmp_path / "train.jsonl", shown)
    workload = Gsm8k(Gsm8kConfig(data=tmp_path, shots=2))
    first, second = take(workload, TASK, 9)
    examples = "Question: Shown 0?\nAnswer: 1+0=1\n#### 1\n\nQuestion: Shown 1?\nAnswer: 1+1=2\n#### 2\n\n"
    assert first.prompt == f"{examples}Question: Asked?\nAnswer:"
    assert second.prompt.endswith("Question: And this?\nAnswer:")
    assert (first.chat, first.stop, first.question) == (False, ("\n\n", "Question:"), "Asked?")
    with pytest.raises(DataError, match=r"train\.jsonl: holds 3 records; 5 shots"):
        Gsm8k(Gsm8kConfig(data=tmp_path))
    before = workload.revision(0)
    write_jsonl(tmp_path / "train.jsonl", list(reversed(shown)))
    assert Gsm8k(Gsm8kConfig(data=tmp_path, shots=2)).revision(0) != before


def test_a_directory_without_problems(tmp_path) -> None:
    with pytest.raises(DataError, match=r"expected test\.jsonl"):
        Gsm8k(Gsm8kConfig(data=tmp_path))


def test_without_examples_the_problem_is_a_chat_message() -> None:
    (request,) = take(Gsm8k(Gsm8kConfig(shots=0)), TASK, 1)
    assert (request.chat, request.stop) == (True, ())
    assert request.prompt.startswith(request.question or "?")
    assert "####" in request.prompt


def test_generated_examples_are_the_same_for_every_seed_and_have_no_marks() -> None:
    ones = [take(Gsm8k(), TASK, 1, seed)[0] for seed in (0, 1)]
    examples = [request.prompt.split(request.question or "?")[0] for request in ones]
    assert examples[0] == examples[1]
    assert examples[0].count("#### ") == 5
    assert "<<" not in examples[0]


def test_problems_have_two_to_eight_sums_and_are_told_in_many_ways() -> None:
    counts = [len(SUM.findall(one["answer"])) for one in made()]
    assert set(counts) <= set(range(2, 9))
    assert len(set(counts)) >= 5
    assert len({one["question"] for one in made()}) > 390
    assert len({NUMBER.sub("#", one["question"]) for one in made()}) > 300
    assert len(PLOTS) >= 6


def test_every_sum_is_right_and_the_last_one_is_the_answer() -> None:
    calculate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for one in made():
        for left, sign, right, result, shown in SUM.findall(one["answer"]):
            assert result == shown == str(calculate[sign](int(left), int(right)))
            assert sign != "/" or int(left) % int(right) == 0
        assert one["answer"].split("\n")[-1] == f"#### {shown}"
        assert int(shown) > 0


def test_every_number_of_a_sum_is_told_or_worked_out_before() -> None:
    for one in made():
        told = {int(number) for number in NUMBER.findall(one["question"])}
        known = told | {number for number, word in WORDS.items() if word in one["question"]}
        used = set()
        for left, _, right, result, _ in SUM.findall(one["answer"]):
            used |= {int(left), int(right)}
            assert used <= known, one
            known.add(int(result))
        assert told <= used, one


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data beside the checkout")
def test_every_official_problem_is_read_and_right() -> None:
    workload = Gsm8k(Gsm8kConfig(data=SHARED / "gsm8k"))
    requests: list[Request] = take(workload, TASK, 5000)
    assert len(requests) == 1319
    assert requests[0].metadata["sums"] == 2
    assert all(workload.score(perfect(request), request) == 100.0 for request in requests)
