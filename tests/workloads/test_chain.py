"""The chain tasks: hand-worked traces against the oracle, the generators' distributions, and what a request tells."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workloads.support import completion, take
from workloads.chain import TASKS, Chain, final_answer
from workloads.generators.chain import (
    EASY,
    HARD,
    LABELS,
    MODULUS,
    Family,
    Problem,
    Thought,
    apply,
    is_hard,
    judge,
    lines,
    parse,
    trace,
    vocabulary,
)
from workloads.lab import SPECIALS
from workloads.schema import DataError

PROBLEM = Problem(("5",), ("*7", "+1", "*3"))
RIGHT = "5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1 36 L2 *3 NL 11 L2 STOP NL CAND 11 NL END ANS 11"
STRING = Problem(tuple("abcdef"), ("left", "reverse", "swap12"))
ROUNDS = (
    "5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1 36 L2 *3 NL 12 L2 STOP NL CAND 12 NL "
    "WAIT 5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1 36 L2 *3 NL 11 L2 STOP NL CAND 11 12 DIFF NL "
    "WAIT 5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1 36 L2 *3 NL 11 L2 STOP NL CAND 11 11 SAME NL END ANS 11"
)


def verdicts(text: str, problem: Problem = PROBLEM) -> str:
    return "".join("y" if right else "n" for right in judge(problem, lines(text)))


def draws(family: Family, count: int = 2000) -> list[Problem]:
    rng = np.random.default_rng(0)
    return [family.draw(rng) for _ in range(count)]


def test_vocabulary_is_unique_words_and_begins_with_the_special_tokens() -> None:
    words = vocabulary()
    assert tuple(words[:4]) == SPECIALS
    assert len(set(words)) == len(words)
    assert not any(word.split() != [word] for word in words)


@pytest.mark.parametrize(
    ("operation", "before", "after"),
    [
        ("+1", "96", "0"), ("+2", "96", "1"), ("-1", "0", "96"), ("*7", "5", "35"), ("*89", "96", "8"),
        ("left", "a b c d e f", "b c d e f a"), ("right", "a b c d e f", "f a b c d e"),
        ("reverse", "a b c d e f", "f e d c b a"), ("swap12", "a b c d e f", "b a c d e f"),
        ("swap34", "a b c d e f", "a b d c e f"), ("swap56", "a b c d e f", "a b c d f e"),
    ],
)  # fmt: skip
def test_operations_by_hand(operation: str, before: str, after: str) -> None:
    assert apply(operation, tuple(before.split())) == tuple(after.split())


@pytest.mark.parametrize(("operation", "state"), [("left", "5"), ("+1", "a b c d e f"), ("*4", "5"), ("5", "5")])
def test_operations_that_do_not_fit_are_errors(operation: str, state: str) -> None:
    with pytest.raises(DataError, match="does not apply"):
        apply(operation, tuple(state.split()))


def test_a_trace_by_hand() -> None:
    assert PROBLEM.prompt == "5 L0 *7 L1 +1 L2 *3 |"
    assert PROBLEM.answer == ("11",)  # 36 * 3 = 108 = 97 + 11
    assert " ".join(trace(PROBLEM, Thought(), np.random.default_rng(0))) == f"{RIGHT} <eos>"
    assert " ".join(trace(PROBLEM, Thought(rounds=4), np.random.default_rng(0))) == (
        RIGHT.replace("END ANS 11", "WAIT ") + RIGHT.replace("CAND 11", "CAND 11 11 SAME") + " <eos>"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, "yyyyyy"),
        (f"{RIGHT} <eos>", "yyyyyy"),
        (RIGHT.replace("36", "37"), "yynnyy"),  # 37 is wrong, and 37 * 3 is not 11
        (RIGHT.replace("11", "12"), "yyynyy"),  # the answer follows from the wrong last step
        (RIGHT.replace("36 L1 36", "36 L1 37"), "yynnyy"),  # announces what it has not computed; 11 does not follow
        (RIGHT.replace("L1 +1", "L1 +2"), "ynnyyy"),  # another problem's operation: nothing follows from it
        (RIGHT.replace("5 L0 *7 NL 35", "4 L0 *7 NL 28"), "nnyyyy"),
        (RIGHT.replace("CAND 11", "CAND 12"), "yyyynn"),
        (RIGHT.replace("ANS 11", "ANS 12"), "yyyyyn"),
        (RIGHT.replace(" 36 L1 36 L2 *3 NL", ""), "yynyy"),  # a step left out
        (RIGHT.replace("END ", "NL "), "yyyyynn"),
        ("5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1", "yyy"),  # unfinished, right so far
        ("5 L0 *7 NL 35 L0 35 L1 +1 NL 37 L1", "yyn"),
        ("5 L0 *7 NL 35 L0 NL", "yn"),
        ("5 L0 *7 NL 35 L0 35 L1 +1 NL 36 L1 36 NL", "yyn"),
        ("NL NL END", "nnn"),
        ("END ANS 11", "n"),  # right by chance is no step
        ("", ""),
        (ROUNDS, "yyynyyyyyyyyyyyy"),
        (ROUNDS.replace("DIFF", "SAME"), "yyynyyyyynyyyyyy"),
        (ROUNDS.replace("CAND 11 12", "CAND 11 11"), "yyynyyyyynyyyyyy"),
    ],
)  # fmt: skip
def test_the_oracle_by_hand(text: str, expected: str) -> None:
    assert verdicts(text) == expected


def test_the_oracle_reads_strings() -> None:
    text = (
        "a b c d e f L0 left NL b c d e f a L0 b c d e f a L1 reverse NL a f e d c b L1 a f e d c b L2 swap12 NL "
        "f a e d c b L2 STOP NL CAND f a e d c b NL END ANS f a e d c b"
    )
    assert verdicts(text, STRING) == "yyyyyy"
    assert verdicts(text.replace("NL f a e", "NL a f e"), STRING) == "yyynny"
    assert final_answer(text) == " ".join(STRING.answer) == "f a e d c b"


@given(st.integers(0, 10**6), st.sampled_from(sorted(TASKS)), st.floats(0, 0.9))
def test_the_oracle_finds_every_slip_and_nothing_else(seed: int, task: str, slip: float) -> None:
    rng = np.random.default_rng(seed)
    problem = TASKS[task].family.draw(rng)
    assert parse(problem.prompt) == problem
    written = lines(" ".join(trace(problem, Thought(rounds=3, slip=slip), rng)))
    wrong = [line for line, right in zip(written, judge(problem, written), strict=True) if not right]
    assert all(is_hard(problem.operations[LABELS.index(line[1])]) for line in wrong)
    if not wrong:
        assert written[-1][2:-1] == problem.answer
    assert all(judge(problem, lines(" ".join(trace(problem, Thought(rounds=3), rng)))))


@pytest.mark.parametrize(("task", "lengths"), [("arithmetic-24", range(3, 7)), ("long", range(3, 6))])
def test_problems_are_drawn_as_the_card_says(task: str, lengths: range) -> None:
    problems = draws(TASKS[task].family)
    counts = Counter(len(problem.operations) for problem in problems)
    assert set(counts) == set(lengths)
    assert min(counts.values()) > 0.85 * len(problems) / len(lengths)
    operations = Counter(operation for problem in problems for operation in problem.operations)
    known = {*EASY, *HARD[: TASKS[task].family.multipliers]}
    assert set(operations) == known
    assert sum(n for op, n in operations.items() if is_hard(op)) / operations.total() == pytest.approx(0.5, abs=0.02)
    assert len({problem.start for problem in problems}) == MODULUS


@pytest.mark.parametrize(
    ("thought", "rounds", "solved"),
    [
        (Thought(rounds=4), (2, 2), 1.0),
        (Thought(rounds=4, slip=0.35), (3.2, 3.5), 0.6),
        (Thought(rounds=8, slip=0.15, stop_same=0.15), (6.2, 7.7), 0.81),
        (Thought(rounds=4, slip=0.35, stop_same=0.5, stop_different=0.5), (2.7, 2.8), 0.47),
    ],
    ids=["no slips", "long", "overthinking", "control"],
)
def test_thoughts_have_their_rounds_and_truth(thought: Thought, rounds: tuple[float, float], solved: float) -> None:
    rng = np.random.default_rng(0)
    problems = draws(TASKS["long"].family, 1500)
    texts = [" ".join(trace(problem, thought, rng)) for problem in problems]
    assert rounds[0] <= np.mean([text.count("CAND") for text in texts]) <= rounds[1]
    right = [f"ANS {p.answer[0]} <eos>" in text for p, text in zip(problems, texts, strict=True)]
    assert np.mean(right) == pytest.approx(solved, abs=0.05)


@pytest.mark.parametrize(
    ("text", "reading", "expected"),
    [
        (RIGHT, "chain", "11"), (RIGHT, "chain-mod4", "3"), (RIGHT, "chain-mod2", "1"), ("11", "chain", "11"),
        ("ANS 3 ANS 0", "chain", "0"), ("CAND 11 NL END", "chain", None), ("ANS", "chain", None),
        ("ANS 11 12", "chain", None), ("ANS L1", "chain", None), ("ANS 97", "chain", None), ("", "chain", None),
        ("ANS a b c d e f", "chain", "a b c d e f"), ("ANS a b c d e", "chain", None),
        ("ANS a b c d e f", "chain-mod4", None),
    ],
)  # fmt: skip
def test_the_answer_is_what_stands_behind_the_last_ans(text: str, reading: str, expected: str | None) -> None:
    assert final_answer(text, reading) == expected


@pytest.mark.parametrize("task", Chain.tasks)
def test_a_request_tells_the_question_and_keeps_the_answer_to_its_references(task: str) -> None:
    for request in take(Chain(), task, 30):
        problem = parse(request.prompt)
        assert request.prompt == problem.prompt
        assert request.metadata == {"step": "NL", "answer": TASKS[task].reading, "closing": "END"}
        assert (request.question, request.target) == (None, None)
        assert request.references == (final_answer(" ".join(problem.answer), TASKS[task].reading),)


@pytest.mark.parametrize("task", Chain.tasks)
def test_there_is_room_for_every_training_trace(task: str) -> None:
    rounds = {"long": 4, "long-mod4": 4, "overthinking": 8}.get(task, 1)
    rng = np.random.default_rng(0)
    most = max(
        len(trace(problem, Thought(rounds, 0.9, 0, 0), rng)) for problem in draws(TASKS[task].family, 200)
    )  # fmt: skip
    assert most <= TASKS[task].max_new_tokens


def test_only_the_right_answer_scores() -> None:
    workload = Chain()
    (request,) = take(workload, "arithmetic-24-mod4", 1)
    right = parse(request.prompt).answer[0]
    for value in range(MODULUS):
        expected = 100.0 if value % 4 == int(right) % 4 else 0.0
        assert workload.score(completion(request, f"{RIGHT} NL END ANS {value}"), request) == expected


@pytest.mark.parametrize(
    "prompt",
    ["", "5 |", "5 L0 *7", "5 L1 *7 |", "5 L0 *4 |", "5 L0 left |", "a b L0 left |", "97 L0 +1 |", "5 L0 *7 | 35"],
)
def test_what_is_no_problem_is_an_error(prompt: str) -> None:
    with pytest.raises(DataError):
        parse(prompt)
