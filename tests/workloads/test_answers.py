"""What a text answers, which answers are the same, and the process that compares them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workloads.support import SHARED
from workloads import symbolic
from workloads.answers import KINDS, NO_ANSWER, boxed, classes, correct, equivalent, extract, normalise
from workloads.gsm8k import Gsm8kRecord
from workloads.loading import read_records

TRUNCATED = "Let us see.\n\n6 * 3 = "


@pytest.fixture
def worker() -> Iterator[symbolic.Worker]:
    made = symbolic.Worker(limit_s=0.2)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} follows", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"{\boxed{4}", "4"),
        (r"\boxed{5} then \boxed{6", "5"),
        (r"\boxed{6", None),
        (r"\boxed{ }", None),
        ("}{", None),
        ("", None),
    ],
)
def test_the_last_box_with_balanced_braces(text: str, found: str | None) -> None:
    assert boxed(text) == found


def test_ten_thousand_open_boxes_are_read_once() -> None:
    """A model that repeats itself must not stop the scoring: this is quadratic if every box is followed to the end."""
    assert boxed(r"\boxed{" * 200_000) is None


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("gsm8k", "6 * 3 = 18\n#### 18", "18"),
        ("gsm8k", "#### 7\n\nQuestion: 3 and 5?\nAnswer: #### 8", "7"),
        ("gsm8k", r"#### 7 so \boxed{\$1,250.00}", "1250.00"),
        ("gsm8k", "The final answer is 18 dollars, not 17.", "18"),
        ("gsm8k", "The final answer is clear: 3 + 15 = 18", "18"),
        ("gsm8k", r"\boxed{\text{none}} It is 3 or 4", "4"),
        ("gsm8k", "0", "0"),
        ("gsm8k", "no idea", NO_ANSWER),
        ("math", r"The final answer is $\frac12$. End of answer.", r"\frac{1}{2}"),
        ("math", "**Final answer is: 3.5**", "3.5"),
        ("math", "#### 7", "7"),
        ("math", "so it is 7", NO_ANSWER),
        ("math", r"\boxed{}", NO_ANSWER),
        ("aime", r"\boxed{0}", "0"),
        ("aime", r"\boxed{007}", "7"),
        ("aime", r"\boxed{n = 72}", "72"),
        ("aime", r"\boxed{204\text{ minutes}}", "204"),
        ("aime", r"\boxed{x+y = 72}", NO_ANSWER),  # the name of an unknown has two characters at most
        ("aime", r"\boxed{1000}", NO_ANSWER),
        ("aime", r"\boxed{-5}", NO_ANSWER),
        ("aime", r"\boxed{7.5}", NO_ANSWER),
        ("aime", "it is 72", NO_ANSWER),
        ("letter", r"\boxed{(B)}", "B"),
        ("letter", r"\boxed{\text{B}}", "B"),
        ("letter", r"\boxed{\textbf{(C)}\ 5}", "C"),
        ("letter", r"\boxed{A. water}", "A"),
        ("letter", "The final answer is (D).", "D"),
        ("letter", "Answer: A. No.\nAnswer: **C**", "C"),
        ("letter", r"\boxed{E}", NO_ANSWER),
        ("letter", r"\boxed{Deuterium}", NO_ANSWER),
        ("letter", "A good question", NO_ANSWER),
        *((kind, TRUNCATED, NO_ANSWER) for kind in ("math", "aime", "letter")),
    ],
)
def test_extraction(kind: str, text: str, found: str | None) -> None:
    assert extract(kind, text) == found


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_the_same_as_nothing(kind: str) -> None:
    assert extract(kind, "") is NO_ANSWER
    assert not equivalent(kind, NO_ANSWER, NO_ANSWER)
    assert not correct(kind, "", "")


def test_zero_is_an_answer() -> None:
    assert correct("aime", r"\boxed{0}", r"\boxed{000}")
    assert not correct("aime", "", r"\boxed{0}")


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (r"\left( 3 , \dfrac12 \right)", r"(3,\frac{1}{2})"),
        (r"\$ 5", "5"),
        (r"50\%", "50"),
        (r"60^\circ", "60"),
        (r"60^{\circ}", "60"),
        (r"12 \text{ cm}^2", "12"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"10,\!080", "10080"),
        (r"10{,}080", "10080"),
        (r"(1{,}2)", "(1,2)"),
        ("(1,234)", "(1,234)"),
        ("-.5", "-0.5"),
        ("3/4", r"\frac{3}{4}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\frac{1}2", r"\frac{1}{2}"),
        (r"2\pi r", r"2\pi r"),
        (r"1 \\ 2", r"1\\2"),
        ("7.", "7"),
    ],
)
def test_normalisation(written: str, normal: str) -> None:
    assert normalise(written) == normal
    assert normalise(normal) == normal


SAME = [
    ("12", "12.0"),
    (r"\frac{1}{2}", "0.5"),
    (r"3\sqrt2", r"\sqrt{18}"),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"3\frac12", r"\frac72"),
    (r"2\pi r", r"\pi\cdot r\cdot2"),
    ("3.1416", r"\pi"),
    (r"(1,\frac24)", r"\left(1, 0.5\right)"),
    (r"[0,\infty)", r"[0, \infty)"),
    (r"x\in[-2,7]", "[-2,7]"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("3, -5", "-5,3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\\frac42\end{pmatrix}"),
    ("y = 2x+3", "2x - y + 3 = 0"),
    ("x = 5", "5"),
    ("x < 3", "3 > x"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\sqrt[3]{16}", r"2\sqrt[3]{2}"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\log_2 8", "3"),
    (r"2^{-1}", r"\frac12"),
    (r"2516_8", r"2516_{8}"),
    (r"\text{east}", "east"),
]
DIFFERENT = [
    ("12", "120"),
    ("50", "0.5"),
    ("0.5", r"50\%"),
    ("123456", "123457"),
    ("3.14", r"\pi"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(1,2,3)"),
    ("1,2", "1,2,2"),
    ("1,1,2", "1,2,2"),
    (r"\{1\}", "1"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("y=2x+3", "y=2x-3"),
    ("x<3", "x>3"),
    (r"\infty", r"-\infty"),
    ("x", "y"),
    ("2516_8", "2516"),
    ("east", "seat"),
    (r"\frac{1}{0}", "1"),
    ("(3,4", "(3,4)"),
    (r"\foo", "3"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_mathematics(a: str, b: str) -> None:
    assert correct("math", rf"\boxed{{{a}}}", rf"so \boxed{{{b}}}.")
    assert correct("math", rf"\boxed{{{b}}}", rf"\boxed{{{a}}}")


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_other_mathematics(a: str, b: str) -> None:
    assert not correct("math", rf"\boxed{{{a}}}", rf"\boxed{{{b}}}")
    assert not correct("math", rf"\boxed{{{b}}}", rf"\boxed{{{a}}}")


@pytest.mark.parametrize("kind", ["gsm8k", "math", "aime"])
def test_12_does_not_match_120(kind: str) -> None:
    assert not correct(kind, "#### 120", "#### 12")
    assert not correct(kind, "#### 12", "#### 120")
    assert correct(kind, "#### 12", "#### 12")


def test_classes_are_named_by_their_first_member() -> None:
    found = [r"\frac12", None, "3", "0.5", "x", "3.0", None]
    assert classes("math", found) == [0, -1, 2, 0, 4, 2, -1]
    assert classes("math", []) == []


def test_members_of_a_class_equal_its_representative_not_each_other() -> None:
    """Equality with a tolerance is not transitive: 1.0001 and 0.9999 both equal 1.0."""
    assert not equivalent("math", "1.0001", "0.9999")
    assert classes("math", ["1.0", "1.0001", "0.9999"]) == [0, 0, 0]
    assert classes("math", ["1.0001", "0.9999", "1.0"]) == [0, 1, 0]
    assert classes("math", ["0.9999", "1.0", "1.0001"]) == [0, 0, 2]  # it equals a member, not the representative


def test_a_question_that_never_ends_is_no_equality_and_the_next_one_is_answered(worker: symbolic.Worker) -> None:
    assert worker.equal("9^{9^{9^9}}", "1") is None
    assert worker.equal(r"\sqrt{4}", "2") is True


def test_unreadable_is_told_from_unequal(worker: symbolic.Worker) -> None:
    assert worker.equal(r"\foo", "1") is None
    assert worker.equal("2", "1") is False


def test_one_process_answers_all_and_is_ended(worker: symbolic.Worker) -> None:
    worker.equal("1", "x")
    first = worker._process
    worker.equal("2", "x")
    assert worker._process is first
    assert first is not None
    worker.close()
    assert first.returncode == -signal.SIGKILL


def test_the_process_ends_with_a_killed_parent() -> None:
    """Also in the middle of a question: the limit is the child's own."""
    code = (
        "import threading, time; from workloads.symbolic import Worker; w = Worker(0.5); w.equal('1', 'x');"
        "print(w._process.pid, flush=True);"
        "threading.Thread(target=w.equal, args=('9^{9^{9^9}}', '1')).start(); time.sleep(0.3);"
        "import os; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if (
            Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        ):  # ended; nobody has waited for it
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent by a minute")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data beside the checkout")
def test_every_official_gsm8k_answer_is_its_own_class() -> None:
    records = read_records(SHARED / "gsm8k" / "test.jsonl", Gsm8kRecord)
    found = [extract("gsm8k", record.answer) for record in records]
    assert len(found) == 1319
    assert NO_ANSWER not in found
    assert all(
        correct("gsm8k", f"It comes to ${number}.", record.answer)
        for number, record in zip(found, records, strict=True)
    )
    assert not any(
        correct("gsm8k", f"#### {number}0", record.answer)
        for number, record in zip(found, records, strict=True)
        if number != "0"
    )
    kinds = classes("gsm8k", found)
    assert len(set(kinds)) == len({float(number) for number in found if number})
