"""Pass keys: format, range and exact match."""

from __future__ import annotations

import pytest

from tests.workloads.support import completion, take
from workloads.lengths import estimate_tokens
from workloads.passkey import LARGEST_KEY, Passkey, PasskeyConfig


@pytest.mark.parametrize("task", Passkey.tasks)
def test_prompt_fills_its_length(task: str) -> None:
    for request in take(Passkey(), task, 5):
        assert int(task) - 40 <= estimate_tokens(request.prompt) <= int(task)


def test_key_is_said_twice_and_only_in_its_sentence() -> None:
    for request in take(Passkey(), "512", 20):
        ((low, high),) = request.metadata["evidence_spans"]
        key = request.references[0]
        assert request.prompt[low:high] == f"The pass key is {key}. Remember it. {key} is the pass key."
        assert key not in request.prompt[:low] + request.prompt[high:]
        assert 1 <= int(key) <= LARGEST_KEY


def test_depths_are_spread() -> None:
    depths = {request.metadata["depth"] for request in take(Passkey(), "1024", 60)}
    assert min(depths) < 0.1
    assert max(depths) > 0.9


def test_lengths_are_the_tasks() -> None:
    assert Passkey(PasskeyConfig(lengths=(4096, 300))).tasks == ("300", "4096")
    assert Passkey(PasskeyConfig.model_validate({"lengths": "300,600"})).tasks == ("300", "600")


@pytest.mark.parametrize(("text", "expected"), [(" {key}.", 100.0), (" {key}5", 0.0), ("7 or {key}", 0.0), ("", 0.0)])
def test_first_number_must_be_the_key(text: str, expected: float) -> None:
    workload = Passkey()
    (request,) = take(workload, "256", 1)
    assert workload.score(completion(request, text.format(key=request.references[0])), request) == expected
