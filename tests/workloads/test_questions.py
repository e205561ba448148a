"""The question of a request: a part of its prompt, known where a workload can tell."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.workloads.support import take
from workloads.longbench import LongBench
from workloads.longbench_tasks import CODE, SUMMARY, TASKS
from workloads.needle import Needle
from workloads.passkey import Passkey
from workloads.ruler import Ruler
from workloads.schema import Request


@pytest.mark.parametrize("question", ["what else?", "", " "])
def test_a_question_is_a_part_of_the_prompt(question: str) -> None:
    with pytest.raises(ValidationError, match="a part of the prompt"):
        Request(id="r", task="t", prompt="a text. what? ", question=question, metric="m", max_new_tokens=1)


def test_generators_know_their_questions() -> None:
    assert take(Passkey(), "256", 1)[0].question == "What is the pass key?"
    needle = take(Needle(), "grid", 1)[0]
    assert needle.question is not None
    assert needle.prompt.endswith(f"Question: {needle.question}")


@pytest.mark.parametrize("task", Ruler.tasks)
def test_every_ruler_task_asks_in_its_last_line(task: str) -> None:
    question = take(Ruler(), task, 1)[0].question
    assert question is not None
    assert question.endswith("?")
    assert not question.startswith("Question")


@pytest.mark.parametrize("task", LongBench.tasks)
def test_longbench_asks_with_its_input_where_that_is_no_code(task: str) -> None:
    question = take(LongBench(), task, 1)[0].question
    silent = (TASKS[task].category in (CODE, SUMMARY) and task != "qmsum") or task == "passage_count"
    assert (question is None) == silent
