"""Each gate fails on a method that breaks its promise, and passes on one that keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from suite.harness.contender import Contender
from suite.harness.gates import GateRequests, Gates, finite, perplexity, resident, same_tokens
from suite.harness.measurement import Gate
from tests.harness import support
from workloads.schema import Completion, CostLedger, Request


def gates_of(kind: type[support.Exact]) -> list[Gate]:
    """All gates of a method, with `Exact` as the baseline."""
    model: Any = support.FakeModel()
    request = next(support.Tasks().requests("a", 1, 0)).model_copy(update={"temperature": 0.9, "stop": ("x",)})
    baseline = Contender(support.Exact(), support.ExactConfig(), model)
    contender = baseline if kind is support.Exact else Contender(kind(), support.ExactConfig(), model)
    return list(Gates(GateRequests.of(request, model), baseline).run(contender))


@pytest.mark.parametrize(
    ("kind", "names", "failed", "detail"),
    [
        pytest.param(support.Exact, ["finite", "deterministic"], [], "", id="the baseline"),
        pytest.param(support.Other, ["finite", "deterministic", "short"], [], "", id="a sound method"),
        pytest.param(
            support.Wrong,
            ["finite", "deterministic", "short", "lossless"],
            ["lossless"],
            "token 3 of 8 is 999 where dense gave 4",
            id="lossless by its card only",
        ),
        pytest.param(
            support.Poisoned, ["finite", "deterministic", "short"], ["finite"], "token 0 is nan (8 of 8", id="NaN"
        ),
        pytest.param(
            support.Selfish,
            ["finite", "deterministic", "short"],
            ["short"],
            "token 0 of 4 is 0 where dense on a short request gave 1",
            id="no dense fallback",
        ),
        pytest.param(
            support.Restless,
            ["finite", "deterministic", "short"],
            ["deterministic", "short"],
            "where its first run gave",
            id="never twice the same",
        ),
    ],
)
def test_gates(kind: type[support.Exact], names: list[str], failed: list[str], detail: str) -> None:
    gates = gates_of(kind)
    assert [gate.name for gate in gates] == names
    assert [gate.name for gate in gates if not gate.passed] == failed
    assert any(detail in gate.detail for gate in gates)


def test_gate_requests_are_greedy_short_and_never_stop_early() -> None:
    model: Any = support.FakeModel(window=400)
    prompt = " ".join(f"w{i}" for i in range(500))
    request = Request(
        id="r", task="t", prompt=prompt, metric="m", max_new_tokens=99, temperature=1.0, stop=("x",), chat=True
    )
    made = GateRequests.of(request, model)
    for one in (made.long, made.short, made.forced):
        assert (one.temperature, one.stop) == (0.0, ())
        assert one.max_new_tokens <= 8
    assert len(made.long.prompt.split()) in (199, 200)  # the two halves may join into one word
    assert made.short.prompt == "w0 w1 w2 w3 w4 w5 w6 w7"
    assert made.forced.target == " w496 w497 w498 w499"
    assert made.long.target is None


def test_text_without_spaces_makes_short_requests_too() -> None:
    request = Request(id="r", task="t", prompt="字" * 3000, metric="m", max_new_tokens=9)
    made = GateRequests.of(request, support.FakeModel())  # type: ignore[arg-type]
    assert len(made.short.prompt) == 48
    assert len(made.forced.target or "") == 25


def completion(*logprobs: float) -> Completion:
    return Completion("r", (1,), "", 0, (1,), "scored", CostLedger(1, 1), target_logprobs=logprobs)


@pytest.mark.parametrize(
    ("logprobs", "passed"),
    [
        ((-1.0, -0.0), True),
        ((-1.0, 1e-4), True),
        ((-math.inf,), False),
        ((-1.0, math.nan), False),
        ((0.1,), False),
        ((), False),
    ],
    ids=str,
)
def test_log_probabilities_are_numbers_not_above_zero(logprobs: tuple[float, ...], passed: bool) -> None:
    assert finite(completion(*logprobs)).passed is passed


@pytest.mark.parametrize(
    ("got", "detail"),
    [
        pytest.param((1, 2), "token 2 of 3 is nothing where dense gave 3", id="too few"),
        pytest.param((1, 2, 3, 4), "token 3 of 3 is 4 where dense gave nothing", id="too many"),
        pytest.param((9, 2, 3), "token 0 of 3 is 9 where dense gave 1", id="different"),
    ],
)
def test_the_first_difference_is_named(got: tuple[int, ...], detail: str) -> None:
    assert same_tokens("lossless", "dense", got, (1, 2, 3)) == Gate(name="lossless", passed=False, detail=detail)


@pytest.mark.parametrize(
    ("resident_bytes", "stored", "passed", "remark"),
    [
        pytest.param(1000, 1000, True, False, id="as much as it says"),
        pytest.param(1900, 1000, True, False, id="room to grow"),
        pytest.param(500, 1000, False, False, id="less than it says it stores"),
        pytest.param(1000, 100, True, True, id="evicted and not given back"),
    ],
)
def test_resident_bytes_against_the_formula(resident_bytes: int, stored: float, passed: bool, remark: bool) -> None:
    gate = resident(resident_bytes, stored, 1000)
    assert gate.passed is passed
    assert ("not given back" in gate.detail) is remark


def test_a_scored_text_without_a_prompt_makes_gate_requests_from_the_text() -> None:
    request = Request(id="r", task="t", prompt="", target="one two three four five", metric="m", max_new_tokens=1)
    made = GateRequests.of(request, support.FakeModel())  # type: ignore[arg-type]
    assert (made.long.prompt, made.long.target) == ("one two three four five", None)
    assert made.forced.target == " two three four five"


class Numbers:
    """A tokenizer of numbers; every other word is 0."""

    def encode(self, text: str) -> list[int]:
        return [int(word) if word.isdigit() else 0 for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Scorer:
    """Stands for a contender: greedy tokens, and a log-probability for every token of a forced text."""

    inside = True

    def __init__(self, tokens: tuple[int, ...], scores: dict[int, float]) -> None:
        self.model: Any = support.FakeModel(tokenizer=Numbers())  # type: ignore[arg-type]
        self.tokens, self.scores = tokens, scores

    def complete(self, requests: Any, meter: Any) -> list[Completion]:
        target = requests[0].target
        ids = self.tokens if target is None else tuple(self.model.tokenizer.encode(target))
        scores = tuple(self.scores.get(token, -9.0) for token in ids) if target is not None else ()
        return [Completion("r", ids, "", 0, (), "length", CostLedger(1, 1), target_logprobs=scores)]


@pytest.mark.parametrize("name", ["short", "lossless"])
@pytest.mark.parametrize(
    ("scores", "dtype", "passed"),
    [
        ({2: -1.0, 7: -1.1}, "bf16", True),
        ({2: -1.0, 7: -1.2}, "bf16", False),
        ({2: -1.0, 7: -1.1}, "fp32", False),
        ({2: -1.0}, "bf16", False),
    ],
    ids=["a tie", "no tie", "fp32 has none", "another token"],
)
def test_tokens_may_differ_where_dense_has_a_tie(scores: dict[int, float], dtype: str, passed: bool, name: str) -> None:
    dense, method = Scorer((1, 2, 3, 4), scores), Scorer((1, 7, 3, 4), {})
    method.model.dtype = dtype
    requests = GateRequests.of(next(support.Tasks().requests("a", 1, 0)), dense.model)
    gates: Any = Gates(requests, dense)  # type: ignore[arg-type]
    gate = gates._short(method) if name == "short" else gates._lossless(method, method.tokens)
    assert (gate.name, gate.passed) == (name, passed)
    assert "token 1 of 4 is 7" in gate.detail


@pytest.mark.parametrize("unreadable", [2, 7])
def test_tokens_whose_text_has_other_ids_are_no_tie(unreadable: int) -> None:
    """What dense thinks of them cannot be asked; that must not pass for agreement, on either side."""

    class Lossy(Numbers):
        def encode(self, text: str) -> list[int]:
            return [99 if i == unreadable else i for i in super().encode(text)]

    dense, method = Scorer((1, 2, 3, 4), {2: -1.0, 7: -1.0}), Scorer((1, 7, 3, 4), {})
    requests = GateRequests.of(next(support.Tasks().requests("a", 1, 0)), dense.model)
    dense.model.tokenizer = Lossy()
    assert not Gates(requests, dense)._short(method).passed  # type: ignore[arg-type]


@pytest.mark.parametrize(("lost", "passed"), [(0.5, True), (1.0, True), (1.01, False), (math.nan, False)])
def test_a_changed_model_may_lose_some_nats_per_token(lost: float, passed: bool) -> None:
    gate = perplexity([-2.0 - lost] * 4, [-2.0] * 4, 1.0)
    assert (gate.name, gate.passed) == ("perplexity", passed)
