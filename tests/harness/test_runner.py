"""Blocks are interleaved, one bad method does not stop the others, and a finished block is never measured again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from suite.errors import InputError, StoppedError
from suite.harness import block as block_module
from suite.harness.heap import quiet_heap
from suite.harness.plan import plan
from suite.harness.progress import Progress
from suite.harness.runner import pending, run_blocks, start_sweep
from suite.harness.store import Store
from suite.spec import Protocol, Sampling
from tests.harness import support
from tests.harness.support import bench, run, wishes
from workloads.schema import DataError, Request


def test_every_unit_gets_samples_scores_counts_and_conditions(store: Store) -> None:
    outcome = run(wishes("other"), store)
    assert [unit.spec.method.name for unit in outcome.units] == ["dense", "other"]
    for unit in outcome.units:
        assert unit.status in ("ok", "unstable")
        assert [one.request_id for one in unit.samples] == ["a/0", "a/1"]
        assert all(one.score == 1.0 and one.ttft_ms > 0 and len(one.itl_ms) == 5 for one in unit.samples)
        assert [count.phase for count in unit.counts] == ["prefill", "decode"]
        assert len(unit.kv) == 1
        assert unit.memory is not None
        assert unit.memory.process_peak_bytes > 1e6
        assert unit.machine_id
        assert unit.code_version
        assert unit.noise is not None
    assert store.units() == outcome.units
    assert set(store.machines()) == {outcome.units[0].machine_id}


def test_end_to_end_latency_is_first_token_plus_gaps(store: Store) -> None:
    (sample, *_) = run(wishes("dense"), store).units[0].samples
    assert sample.e2el_ms == pytest.approx(sample.ttft_ms + sum(sample.itl_ms))


def test_turns_are_interleaved_and_the_order_rotates(store: Store) -> None:
    run(wishes("other", protocol=Protocol(warmup=0, counted=0, repeats=2)), store)
    timed = [entry for entry in support.log if entry[1].startswith("a/")]
    first, second = [("exact", "a/0"), ("other", "a/0")], [("other", "a/1"), ("exact", "a/1")]
    assert timed == [*first, *second, *first, *second]


def test_samples_carry_their_place_in_the_order(store: Store) -> None:
    dense, other = run(wishes("other"), store).units
    assert [one.turn for one in dense.samples] == [0, 3]
    assert [one.turn for one in other.samples] == [1, 2]


def test_requests_of_a_batch_run_together(store: Store) -> None:
    unit = run(wishes("dense", limit=4, batch_size=3), store).units[0]
    assert [one.turn for one in unit.samples] == [0, 0, 0, 1]


def test_sampling_of_the_spec_reaches_the_requests(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    tokens = support.Exact.tokens
    monkeypatch.setattr(
        support.Exact, "tokens", lambda self, r: [seen.append((r.id, r.temperature)), *tokens(self, r)][1:]
    )
    run(wishes("dense", sampling=Sampling(temperature=0.7)), store)
    assert ("a/0", 0.7) in seen
    assert ("gate/long", 0.0) in seen


def test_garbage_collection_is_off_while_timing_and_on_afterwards() -> None:
    import gc

    with quiet_heap():
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("method", "error"),
    [
        pytest.param("failing", "RuntimeError: out of luck", id="fails while timed"),
        pytest.param("unprepared", "FileNotFoundError: no adapter", id="fails in preparation"),
        pytest.param("miscounting", "reported 8 tokens", id="reports other tokens than it returns"),
        pytest.param("mute", "mute returned no token for request gate/long", id="returns no token"),
        pytest.param("swapping", "swapping returned 1 completions for 1 requests, or out of order", id="wrong request"),
    ],
)
def test_a_failing_method_is_recorded_and_the_others_go_on(store: Store, method: str, error: str) -> None:
    dense, failed, other = run(wishes(method, "other"), store).units
    assert failed.status == "failed"
    assert error in (failed.error or "")
    assert failed.samples == ()
    assert dense.samples
    assert other.samples


def test_a_method_that_fails_in_preparation_fails_in_every_block(store: Store) -> None:
    units = run(wishes("unprepared", tasks=("a", "b")), store).units
    assert [unit.status == "failed" for unit in units] == [False, True, False, True]


def test_a_gated_method_gets_no_speed(store: Store) -> None:
    dense, wrong = run(wishes("wrong"), store).units
    assert wrong.status == "gated"
    assert wrong.samples == ()
    assert [gate.name for gate in wrong.gates if not gate.passed] == ["lossless"]
    assert dense.samples


def test_gates_run_once_per_method_and_not_per_block(store: Store) -> None:
    run(wishes("other", tasks=("a", "b", "c")), store)
    assert support.log.count(("other", "gate/forced")) == 1


def test_an_explicit_method_that_cannot_run_is_bad_input(store: Store) -> None:
    with pytest.raises(InputError, match="method refusing cannot run on fake: it needs rotary embeddings"):
        run(wishes("refusing"), store)


def test_without_explicit_methods_one_that_cannot_run_is_left_out(store: Store) -> None:
    made, _ = bench(plan(wishes()), store)
    assert "refusing" not in [method.name for method in made.methods]
    assert "refusing is left out: it needs rotary embeddings." in made.notes


def test_a_finished_block_is_taken_over_by_the_next_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "judge", lambda *_: support.quiet())
    first = run(wishes("other"), store)
    support.log.clear()
    second = run(wishes("other"), store)
    assert second.taken_over == 2
    assert second.units == first.units
    assert support.log == []


def test_a_fresh_plan_measures_again_what_is_settled_but_repeats_nothing_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_module, "judge", lambda *_: support.quiet())
    run(wishes("other"), store)
    made, ready = bench(plan(wishes("other")), store)
    fresh = made.model_copy(update={"fresh": True})
    sweep = start_sweep(store, fresh)
    assert run_blocks(fresh, sweep, ready).taken_over == 0
    assert run_blocks(fresh, sweep, ready).taken_over == 2


@pytest.mark.parametrize("status", ["failed", "unstable"])
def test_a_failed_or_unstable_unit_is_measured_again_by_a_new_run_only(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    reasons = ("the machine was busy.",) if status == "unstable" else ()
    monkeypatch.setattr(block_module, "judge", lambda *_: support.quiet(reasons=reasons))
    made, ready = bench(plan(wishes("failing" if status == "failed" else "other")), store)
    sweep = start_sweep(store, made)
    assert status in [unit.status for unit in run_blocks(made, sweep, ready).units]
    assert run_blocks(made, sweep, ready).taken_over == 2
    assert run_blocks(made, start_sweep(store, made), ready).taken_over == 0


def test_another_company_of_methods_is_another_block(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "judge", lambda *_: support.quiet())
    run(wishes("other"), store)
    run(wishes("selfish"), store)
    assert len(store.units(method="dense")) == 2
    assert len({unit.block for unit in store.units()}) == 2


def test_an_interrupted_run_keeps_its_blocks_and_resumes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made, ready = bench(plan(wishes("stopping", tasks=("a", "b", "c"))), store)
    with pytest.raises(StoppedError, match=r"after 1 of 3 blocks.*python -m suite resume"):
        run_blocks(made, start_sweep(store, made), ready)
    assert [unit.spec.workload.task for unit in store.units()] == ["a", "a"]
    monkeypatch.setattr(support.Stopping, "tokens", support.Exact.tokens)
    support.log.clear()
    sweep, again = pending(store)
    assert again == made
    outcome = run_blocks(again, sweep, ready)
    assert outcome.taken_over == 2
    assert [unit.spec.workload.task for unit in outcome.units] == ["a", "a", "b", "b", "c", "c"]
    assert not any(request.startswith("a/") for _, request in support.log)
    with pytest.raises(InputError, match="nothing to resume"):
        pending(store)


def test_progress_counts_blocks_and_estimates_the_rest(store: Store) -> None:
    events: list[Progress] = []
    run(wishes("other", tasks=("a", "b")), store, listener=events.append)
    assert (events[-1].blocks_done, events[-1].units_done) == (2, 4)
    assert events[-1].eta_s == pytest.approx(0.0, abs=0.01)
    halfway = next(event for event in events if event.blocks_done == 1)
    assert halfway.eta_s is not None
    assert halfway.eta_s > 0
    assert any("timing other" in event.activity for event in events)


def test_blocks_beyond_the_budget_are_left_out_and_said(store: Store) -> None:
    made, ready = bench(plan(wishes("dense", tasks=("a", "b", "c"))), store)
    blocks = tuple(block.limited(2, estimate_s=1.0) for block in made.blocks)
    made = made.model_copy(update={"blocks": blocks, "budget_s": 1e-6})
    outcome = run_blocks(made, start_sweep(store, made), ready)
    assert len(outcome.units) == 1
    assert outcome.notes == ["the budget was used up: 2 of 3 tasks left out."]


def test_data_that_turns_out_malformed_is_bad_input(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(support.Tasks().requests("a", 1, 0))

    def requests(*_: object) -> Iterator[Request]:
        yield first
        raise DataError("d.jsonl, line 7: field 'input' is missing.")

    made, ready = bench(plan(wishes("dense")), store)
    monkeypatch.setattr(support.Tasks, "requests", requests)
    with pytest.raises(InputError, match=r"d.jsonl, line 7: field 'input' is missing\."):
        run_blocks(made, start_sweep(store, made), ready)


def test_only_units_with_figures_count_as_measured(store: Store) -> None:
    outcome = run(wishes("wrong", "failing"), store)
    assert [unit.spec.method.name for unit in outcome.measured] == ["dense"]


def test_a_workload_without_items_is_bad_input(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support.Tasks, "requests", lambda *_: iter(()))
    with pytest.raises(InputError, match="has no item of task 'a'"):
        run(wishes("dense"), store)
