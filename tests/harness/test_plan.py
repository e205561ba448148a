"""A wish becomes blocks, or one sentence that says what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suite.errors import InputError
from suite.harness.options import check_model
from suite.harness.plan import DEFAULT_BUDGET_S, Plan, Wishes, parse_budget, plan
from suite.spec import MethodSpec
from tests.harness.support import wishes


def planned(**changes: Any) -> Plan:
    return plan(replace(wishes("other"), **changes))


def test_a_block_is_one_task_under_all_methods_dense_first() -> None:
    made = plan(wishes("other", "wrong", "other", tasks=("b", "a", "b")))
    assert [block.workload.task for block in made.blocks] == ["b", "a"]
    assert [[unit.method.name for unit in block.units] for block in made.blocks] == [["dense", "other", "wrong"]] * 2
    assert made.explicit
    assert (made.limit, made.budget_s) == (2, None)


def test_without_tasks_and_methods_all_tasks_and_the_default_methods_are_planned() -> None:
    made = plan(Wishes("tasks", "fake", default_methods=[MethodSpec(name="other")]))
    assert [block.workload.task for block in made.blocks] == ["a", "b", "c", "d", "e"]
    assert [method.name for method in made.methods] == ["dense", "other"]
    assert not made.explicit
    assert made.budget_s == DEFAULT_BUDGET_S


def test_the_users_own_dense_is_the_baseline() -> None:
    dense = MethodSpec(name="dense", options={"delay_us": 7})
    made = planned(methods=[MethodSpec(name="other"), dense])
    assert made.methods == (dense, MethodSpec(name="other"))


def test_one_method_may_be_planned_with_several_options() -> None:
    methods = [MethodSpec(name="other", options={"delay_us": text}) for text in ("1", "2", 1)]
    made = planned(methods=methods)
    assert [method.options for method in made.methods] == [{}, {"delay_us": 1}, {"delay_us": 2}]


def test_a_plan_survives_the_store() -> None:
    made = planned(workload_options={"words": "7"})
    assert Plan.model_validate_json(made.model_dump_json()) == made
    assert made.blocks[0].workload.options == {"words": 7}


def method(**options: Any) -> dict[str, Any]:
    return {"methods": [MethodSpec(name="other", options=options)]}


NO_SPAN = "is not a time span; give a positive one, such as 90s, 3m or 1h."
BOUNDS = "it must be at least 0 and at most 1000000"

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown workload": ({"workload": "task"}, "unknown workload 'task'; did you mean 'tasks'?"),
    "unknown method": ({"methods": [MethodSpec(name="othr")]}, "unknown method 'othr'; did you mean 'other'?"),
    "unknown model": ({"model": "fke"}, "unknown model 'fke'; did you mean 'fake'?"),
    "unknown engine": ({"engine": "nativ"}, "unknown engine 'nativ'; did you mean 'native'?"),
    "another engine": (
        {"engine": "transformers"},
        "`run` does not measure methods through engine transformers, but in native, vllm and vllm-server; "
        "`python -m suite engines compare --engines native,transformers` sets that one beside the native one.",
    ),
    "an engine and no method": (
        {"engine": "vllm", "methods": ()},
        "--engine vllm runs search methods: name one with --method, as best_of_n.",
    ),
    "an engine and a budget": (
        {"engine": "vllm-server", "budget": "3m"},
        "--engine vllm-server knows no --budget: say how many items with --limit.",
    ),
    "unknown task": ({"tasks": ["z"]}, "workload tasks has no task 'z'; known: a, b, c, d, e."),
    "limit 0": ({"limit": 0}, "--limit 0 measures nothing; give at least 1 item per task."),
    "negative limit": ({"limit": -3}, "--limit -3 measures nothing; give at least 1 item per task."),
    "negative budget": ({"budget": "-3m"}, "--budget -3m " + NO_SPAN),
    "budget 0": ({"budget": 0}, "--budget 0 " + NO_SPAN),
    "budget of words": ({"budget": "soon"}, "--budget soon " + NO_SPAN),
    "method option too high": (
        method(delay_us=9999999),
        f"method other: option delay_us = 9999999 is not allowed; {BOUNDS}.",
    ),
    "method option of another type": (
        method(delay_us="much"),
        f"method other: option delay_us = 'much' is not allowed; {BOUNDS} and a whole number.",
    ),
    "method option outside its own bounds": (
        method(ratio=1.5),
        "method other: option ratio = 1.5 is not allowed; input should be less than 1.",
    ),
    "method option that is no choice": (
        method(mode="odd"),
        "method other: option mode = 'odd' is not allowed; choose one of plain, fancy.",
    ),
    "method options that do not fit together": (
        method(mode="fancy", delay_us=2000),
        "the options of method other do not fit together: Value error, a fancy delay is at most 1000.",
    ),
    "unknown method option": (method(delay=1), "method other has no option 'delay'; did you mean 'delay_us'?"),
    "unknown workload option": (
        {"workload_options": {"zzz": 1}},
        "workload tasks has no option 'zzz'; it has: data, words, tokens.",
    ),
    "workload option out of range": (
        {"workload_options": {"words": 0}},
        "workload tasks: option words = 0 is not allowed; input should be greater than or equal to 1.",
    ),
    "bad data": ({"workload_options": {"data": "d.jsonl"}}, "d.jsonl, line 3: field 'answers' is missing."),
    "negative seed": (
        {"seed": -1},
        "workload tasks: option seed = -1 is not allowed; input should be greater than or equal to 0.",
    ),
    "unknown dtype": (
        {"dtype": "fp16"},
        "the model: option dtype = 'fp16' is not allowed; input should be 'bf16' or 'fp32'.",
    ),
    "batch size 0": (
        {"batch_size": 0},
        "engine native: option batch_size = 0 is not allowed; input should be greater than or equal to 1.",
    ),
    "missing model file": (
        {"model": "./m.gguf"},
        "there is no model at ./m.gguf; give an existing directory or .gguf file, or a known name.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str) -> None:
    changes, sentence = BAD[name]
    with pytest.raises(InputError) as caught:
        planned(**changes)
    assert str(caught.value) == sentence
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("3m", 180), ("1.5h", 5400), ("45", 45), (2.5, 2.5), (" 3m ", 180), (None, None)],
    ids=str,
)
def test_budgets(text: str | float | None, seconds: float | None) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("name", ["fake", "owner/name", "a folder"])
def test_known_names_folders_and_hub_ids_are_models(name: str, tmp_path: Path) -> None:
    check_model(str(tmp_path) if name == "a folder" else name)
    assert True
