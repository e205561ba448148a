"""A budget chooses how many items of how many tasks are measured."""

from __future__ import annotations

from typing import Any

import pytest

from suite.errors import UnitError
from suite.harness import budget
from suite.harness.budget import Rates, fit, fit_rates
from suite.harness.contender import Contender
from suite.harness.plan import Plan, load_contenders, plan
from suite.spec import Protocol
from tests.harness import support
from tests.harness.support import FakeModel, wishes
from workloads.schema import Request

ONCE = 2 * 12 * 0.1  # seconds: two methods, 12 prompt tokens, 0.1 s each


def fitted(monkeypatch: pytest.MonkeyPatch, seconds: float, **changes: Any) -> Plan:
    """A plan for five tasks, of which one item costs `ONCE` and its counting as much again."""
    monkeypatch.setattr(budget, "probe", lambda contender, request: Rates(0.1, 0.0, 0.0))
    monkeypatch.setattr(budget, "GATE_RUNS", 0)
    model: Any = FakeModel()
    wished = wishes("other", tasks=support.Tasks.tasks, budget=seconds, **({"limit": None} | changes))
    made, contenders = load_contenders(plan(wished), model)
    return fit(made, contenders, model)


@pytest.mark.parametrize(
    ("seconds", "items"),
    [
        pytest.param(5 * 2 * ONCE + 0.01, 1, id="just one"),
        pytest.param(5 * 3 * ONCE - 0.01, 1, id="not quite two"),
        pytest.param(5 * 3 * ONCE + 0.01, 2, id="two: only the first is counted"),
        pytest.param(1e6, 4, id="as many as there are"),
    ],
)
def test_items_per_task(monkeypatch: pytest.MonkeyPatch, seconds: float, items: int) -> None:
    made = fitted(monkeypatch, seconds)
    assert [block.workload.limit for block in made.blocks] == [items] * 5
    assert all(block.estimate_s == pytest.approx((items + 1) * ONCE) for block in made.blocks)
    assert made.notes == (f"the budget of {seconds:.0f} s allows {items} items of each of 5 tasks.",)


def test_a_limit_holds_within_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, 1e6, limit=3).blocks[0].workload.limit == 3


def test_counted_decode_steps_cost_more_than_timed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    free_prefill = Rates(0.0, 0.0, 0.1)
    plain = fitted(monkeypatch, 1e6, limit=1, protocol=Protocol(warmup=0, counted=0)).blocks[0]
    monkeypatch.setattr(budget, "probe", lambda contender, request: free_prefill)
    model: Any = FakeModel()
    wished = wishes("other", tasks=("a",), budget=1e6, limit=1, protocol=Protocol(warmup=0, counted_steps=2))
    made, contenders = load_contenders(plan(wished), model)
    tokens = next(support.Tasks().requests("a", 1, 0)).max_new_tokens
    counted = budget.COUNTED_STEP_FACTOR * min(2, tokens)
    assert fit(made, contenders, model).blocks[0].estimate_s == pytest.approx(2 * 0.1 * (tokens + counted))
    assert plain.estimate_s == pytest.approx(ONCE)


def test_repeats_cost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fitted(monkeypatch, 5 * 4 * ONCE + 0.01, protocol=Protocol(warmup=0, counted=0, repeats=4))
    assert made.blocks[0].workload.limit == 1


@pytest.mark.parametrize(
    ("fits", "tasks"), [(4, "abde"), (3, "ace"), (2, "ae"), (1, "a")], ids=["four", "three", "two", "one"]
)
def test_too_small_for_all_tasks_takes_some_spread_over_the_list(
    monkeypatch: pytest.MonkeyPatch, fits: int, tasks: str
) -> None:
    made = fitted(monkeypatch, (2 * fits + 1) * ONCE)  # half of one more, for the time the test itself takes
    assert [block.workload.task for block in made.blocks] == list(tasks)
    assert f"allows 1 item of each of {fits} of the 5 tasks" in made.notes[-1]


def test_too_small_for_anything_still_measures_one_item_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fitted(monkeypatch, 0.5)
    assert len(made.blocks) == 1
    assert made.notes[-1].startswith("the budget of 0.5 s leaves 0.")
    assert made.notes[-1].endswith("the cheapest task takes about 4.8 s and is measured all the same.")


def test_a_prompt_the_model_refuses_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: FakeModel, request: Request) -> None:
        raise UnitError("too long")

    monkeypatch.setattr(FakeModel, "encode", encode)
    assert fitted(monkeypatch, 1.0).blocks[0].estimate_s == 0.0


def test_a_plan_without_a_budget_stays_as_it_is() -> None:
    made = plan(wishes("other"))
    assert fit(made, {}, FakeModel()) is made  # type: ignore[arg-type]


@pytest.mark.parametrize("quadratic", [0.0, 2e-6])
def test_rates_go_through_both_measurements(quadratic: float) -> None:
    truth = Rates(1e-3, quadratic, 0.02)
    rates = fit_rates((256, truth.seconds(256, 0)), (1024, truth.seconds(1024, 0)), 0.02)
    assert rates.seconds(8192, 10) == pytest.approx(truth.seconds(8192, 10))


def test_noise_makes_no_rate_negative() -> None:
    rates = fit_rates((256, 1.0), (1024, 0.5), 0.0)
    assert rates.quadratic_s == 0.0
    assert rates.linear_s == pytest.approx(0.5 / 1024)
    assert fit_rates((5, 1.0), (5, 1.0), 0.0).linear_s == pytest.approx(0.2)


def test_the_probe_measures_a_known_method() -> None:
    contender = Contender(support.Exact(), support.ExactConfig(delay_us=3000), FakeModel())  # type: ignore[arg-type]
    rates = budget.probe(contender, next(support.Tasks().requests("a", 1, 0)))
    assert 0.003 < rates.decode_s < 0.03
    assert rates.linear_s > 0


def test_a_method_is_prepared_before_it_is_probed_and_one_that_fails_costs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Adapters are loaded in `prepare`; and a broken method must not stop the run before its own units say so."""
    calls: list[str] = []

    class Prepared:
        def prepare(self) -> None:
            calls.append("prepare")

    def probed(contender: Any, request: Any) -> Rates:
        calls.append("probe")
        raise ZeroDivisionError

    monkeypatch.setattr(budget, "probe", probed)
    assert budget._rates(Prepared(), None) == Rates(0.0, 0.0, 0.0)  # type: ignore[arg-type]
    assert calls == ["prepare", "probe"]
