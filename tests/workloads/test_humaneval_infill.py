"""Infilling: the three parts make a function that runs, in the paper's order, in any model's marks."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.workloads.support import INFILL_RECORD, completion, take, write_jsonl
from workloads.generators.infilling import FUNCTIONS, Problem, problems
from workloads.humaneval_infill import HumanEvalInfill, InfillConfig
from workloads.schema import DataError

TASK = "single-line"


def asked(problem: Problem) -> str:
    return f"<fim_prefix>{problem.prefix}<fim_suffix>{problem.suffix}<fim_middle>"


def test_every_line_of_every_body_is_missing_once_and_the_whole_runs() -> None:
    sources: Counter[str] = Counter()
    for problem in problems(3):
        assert problem.prefix.endswith("\n")
        assert problem.solution.strip()
        assert "\n" not in problem.solution
        assert problem.suffix.startswith("\n")
        sources[problem.prefix + problem.solution + problem.suffix] += 1
    assert len(sources) == FUNCTIONS
    for source, missing in sources.items():
        names: dict[str, object] = {}
        exec(source, names)
        function = next(value for name, value in names.items() if name != "__builtins__")
        assert callable(function)
        assert isinstance(function(list(range(150))), int)
        assert isinstance(function([]), int)
        assert missing == source.split('"""')[2].count("\n") - 1


def test_a_function_changes_no_list_it_is_given() -> None:
    for problem in list(problems(0))[::20]:
        names: dict[str, object] = {}
        exec(problem.prefix + problem.solution + problem.suffix, names)
        function, given = list(names.values())[-1], list(range(30))
        assert callable(function)
        function(given)
        assert given == list(range(30))


def test_prompts_are_all_different_and_come_by_the_length_of_their_prefix() -> None:
    made = take(HumanEvalInfill(), TASK, 5000)
    expected = sorted(problems(0), key=lambda problem: len(problem.prefix))
    assert [request.prompt for request in made] == [asked(problem) for problem in expected]
    assert len({request.prompt for request in made}) == len(made) > 5 * FUNCTIONS
    assert {request.max_new_tokens for request in made} == {5}


def test_a_template_is_filled_once_however_the_code_looks(tmp_path) -> None:
    data = write_jsonl(tmp_path / "infill.jsonl", [INFILL_RECORD])
    config = InfillConfig(data=data, template="<SUF>{suffix}<PRE>{prefix}", new_tokens=20)
    (request,) = take(HumanEvalInfill(config), TASK, 9)
    assert request.prompt == f"<SUF>{INFILL_RECORD['suffix']}<PRE>{INFILL_RECORD['prompt']}"
    assert request.max_new_tokens == 20
    assert request.metadata["task_id"] == INFILL_RECORD["task_id"]
    alone = HumanEvalInfill(InfillConfig(data=data, template="{prefix}"))
    assert take(alone, TASK, 9)[0].prompt == INFILL_RECORD["prompt"]


def test_a_users_file_comes_by_length_too(tmp_path) -> None:
    data = write_jsonl(tmp_path / "i.jsonl", [{**INFILL_RECORD, "prompt": text} for text in ("ccc\n", "a\n", "bb\n")])
    made = take(HumanEvalInfill(InfillConfig(data=data, template="{prefix}")), TASK, 2)
    assert [request.prompt for request in made] == ["a\n", "bb\n"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    first = items", 100.0),
        ("\nfirst = items\n    return 1", 100.0),
        ("    first = items[0]", 0.0),
        ("    return\n    first = items", 0.0),
    ],
)
def test_the_first_line_must_be_the_missing_one(tmp_path, text: str, expected: float) -> None:
    workload = HumanEvalInfill(InfillConfig(data=write_jsonl(tmp_path / "i.jsonl", [INFILL_RECORD])))
    (request,) = take(workload, TASK, 1)
    assert workload.score(completion(request, text), request) == expected


@pytest.mark.parametrize("solution", ["a = 1\n    b = 2", " \n"])
def test_a_gap_of_several_lines_or_none_is_another_set(tmp_path, solution: str) -> None:
    data = write_jsonl(tmp_path / "i.jsonl", [{**INFILL_RECORD, "canonical_solution": solution}])
    with pytest.raises(DataError, match=r"i\.jsonl, line 1: field 'canonical_solution': .*one line of code"):
        HumanEvalInfill(InfillConfig(data=data))
