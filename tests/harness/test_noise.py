"""Each disturbance beyond its limit makes a reason of one sentence; a quiet unit has none."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

import pytest

from suite.harness import noise
from suite.harness.noise import Disturbance, Snapshot, judge, reasons, snapshot, spread
from tests.harness.support import quiet, timing

STEPS = (1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03, 0.97, 1.0)


def test_a_quiet_unit_has_no_reason() -> None:
    assert reasons(quiet(), cores=2) == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"threads": 4}, "4 threads share 2 cores", id="oversubscribed"),
        pytest.param({"threads": 2, "pinned": False}, "the 2 OpenMP threads are not bound", id="not pinned"),
        pytest.param({"steal_share": 0.021}, "the hypervisor took 2.1% of the CPU time (limit 1%)", id="steal"),
        pytest.param({"other_load": 0.5}, "other processes kept 0.50 cores busy (limit 0.10)", id="other load"),
        pytest.param({"spread": 0.4}, "the normalised times spread by 40% (limit 15%)", id="spread"),
    ],
)
def test_what_is_wrong_by_how_much_and_what_to_do(changes: dict[str, Any], sentence: str) -> None:
    (reason,) = reasons(quiet(**changes), cores=2)
    assert sentence in reason
    assert "run again" in reason


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"threads": 2}, id="as many threads as cores"),
        pytest.param({"threads": 1, "pinned": False}, id="one thread, not pinned"),
        pytest.param({"steal_share": noise.STEAL_LIMIT}, id="steal at the limit"),
        pytest.param({"other_load": noise.LOAD_LIMIT}, id="other load at the limit"),
        pytest.param({"spread": noise.SPREAD_LIMIT}, id="spread at the limit"),
    ],
)
def test_what_is_no_reason(changes: dict[str, Any]) -> None:
    assert reasons(quiet(**changes), cores=2) == ()


def test_several_reasons_are_all_given() -> None:
    assert len(reasons(quiet(threads=4, pinned=False, steal_share=1, other_load=1, spread=1), cores=2)) == 5


def test_shares_come_from_sums_over_the_turns() -> None:
    disturbance = Disturbance()
    disturbance.add(Snapshot(0, 0, 0, 0), Snapshot(1, 0.9, 1.0, 0.0))
    disturbance.add(Snapshot(10, 5, 50, 2), Snapshot(12, 6.5, 52.0, 2.5))
    assert disturbance.other_load == pytest.approx((0.1 + 0.5) / 3)
    assert disturbance.steal_share == pytest.approx(0.5 / 3.5)


def test_a_tick_or_two_is_not_evidence_of_another_process() -> None:
    disturbance = Disturbance()
    disturbance.add(Snapshot(0, 0, 0, 0), Snapshot(0.05, 0.05, 0.07, 0))
    assert disturbance.other_load == 0.0
    assert Disturbance().steal_share == 0.0


@pytest.mark.parametrize(
    ("samples", "low", "high"),
    [
        pytest.param([timing("a", itl_ms=STEPS)], 0.01, 0.05, id="even steps"),
        pytest.param([timing("a", itl_ms=(1.0, 2.0) * 6)], 0.3, 1.0, id="uneven steps"),
        pytest.param(
            [timing("a", itl_ms=STEPS), timing("b", itl_ms=[50 * s for s in STEPS])], 0.01, 0.05, id="two lengths"
        ),
        pytest.param(
            [timing("a", itl_ms=[g for s in STEPS for g in (s, 0.001, 0.002)])], 0.01, 0.05, id="three tokens a step"
        ),
        pytest.param([timing("a", itl_ms=(*STEPS, 90.0))], 0.01, 0.06, id="one long pause"),
        pytest.param([timing("a", itl_ms=(1.0, 9.0))], 0.0, 0.0, id="too few to tell"),
        pytest.param([timing("a", itl_ms=())] * 9, 0.0, 0.0, id="one token each"),
        pytest.param(
            [timing(r, itl_ms=(), ttft_ms=t) for r in "abc" for t in (5, 5.1)], 0.005, 0.02, id="even repeats"
        ),
        pytest.param([timing(r, itl_ms=(), ttft_ms=t) for r in "abc" for t in (5, 9)], 0.3, 1.0, id="uneven repeats"),
        pytest.param([], 0.0, 0.0, id="nothing"),
    ],
)
def test_spread(samples: Any, low: float, high: float) -> None:
    assert low <= spread(samples) <= high


def _busy(stop: Any) -> None:
    while not stop.is_set():
        sum(range(10_000))


def test_another_busy_process_is_seen() -> None:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_busy, args=(stop,))
    process.start()
    try:
        time.sleep(1.0)  # until it computes
        disturbance = Disturbance()
        before = snapshot()
        time.sleep(0.6)
        disturbance.add(before, snapshot())
    finally:
        stop.set()
        process.join()
    assert disturbance.other_load > noise.LOAD_LIMIT
    assert any("cores busy" in reason for reason in judge(disturbance, [], threads=1).reasons)


def test_own_work_is_not_another_process() -> None:
    before = snapshot()
    while time.process_time() - before.own_s < 0.2:
        sum(range(10_000))
    after = snapshot()
    own_share = (after.own_s - before.own_s) / max(after.busy_s - before.busy_s, 0.01)
    assert own_share > 0
    assert after.busy_s - before.busy_s >= 0.15
