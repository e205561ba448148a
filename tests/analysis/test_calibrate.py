"""The calibration: what is stored, what is refused, and that a tiny run of the real thing holds together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from analysis.roofline import calibrate as module
from analysis.roofline import probes
from analysis.roofline.probes import Probe

STEADY = [1.0] * 10
SHAKY = [1.0, 2.0] * 5


class Clock:
    """Stands in for the timing of a probe: each call gives the next list of seconds."""

    def __init__(self, *attempts: list[float]) -> None:
        self.attempts: Iterator[list[float]] = iter(attempts)
        self.calls = 0

    def __call__(self, call: Callable[[], object]) -> list[float]:
        self.calls += 1
        return next(self.attempts)


def measured(monkeypatch: pytest.MonkeyPatch, clock: Clock, overhead_s: float = 0.0) -> module._Session:
    monkeypatch.setattr(module, "_seconds", clock)
    session = module._Session(lambda done, total, message: None, 1)
    probe = Probe("read", "fp32", 2, 1 << 20, 4e9, {"only": lambda: None})
    module._measure(session, probe, overhead_s)
    return session


def test_a_steady_ceiling_is_stored_with_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    (ceiling,) = measured(monkeypatch, Clock(STEADY)).ceilings
    assert (ceiling.value, ceiling.spread, len(ceiling.samples)) == (4.0, 0.0, 10)


def test_a_shaky_ceiling_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(SHAKY, SHAKY, SHAKY, STEADY)
    session = measured(monkeypatch, clock)
    assert clock.calls == 4
    assert session.ceilings[0].value == 4.0
    assert session.refused == []


def test_a_ceiling_that_stays_shaky_is_refused_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    session = measured(monkeypatch, Clock(SHAKY, SHAKY, SHAKY, SHAKY))
    assert session.ceilings == []
    assert session.refused == ["read fp32 1 MiB, 2 threads: refused, 3.0 GB/s varies by 35% (limit 10%)."]


def test_in_a_hurry_nothing_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    clock = Clock(SHAKY, STEADY)
    assert len(measured(monkeypatch, clock).refused) == 1
    assert clock.calls == 1


def test_the_cost_of_a_call_comes_off(monkeypatch: pytest.MonkeyPatch) -> None:
    session = measured(monkeypatch, Clock(STEADY), overhead_s=0.2)
    assert session.ceilings[0].value == pytest.approx(5.0)


def test_a_call_that_costs_more_than_the_transfer_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = measured(monkeypatch, Clock(STEADY), overhead_s=0.6)
    assert "the call costs more than the transfer" in session.refused[0]


def test_the_fastest_variant_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", Clock([2.0] * 10, STEADY))
    session = module._Session(lambda done, total, message: None, 1)
    module._measure(session, Probe("gemv", "bf16", 1, 64, 2e9, {"slow": lambda: None, "fast": lambda: None}))
    assert session.ceilings[0].value == 2.0
    assert session.variants == {"gemv bf16 64, 1 thread": {"slow": 1.0, "fast": 2.0}}


def test_stream_bytes_are_what_the_arrays_hold() -> None:
    work = {probe.kind: probe.work for probe in probes.stream_probes(12 << 10, 1)}
    assert work == {"read": 12 << 10, "copy": 12 << 10, "triad": 12 << 10}


def test_streams_do_what_they_say() -> None:
    """Copy moves one half onto the other, triad writes a third from the other two: nothing is optimised away."""
    found = {probe.kind: probe for probe in probes.stream_probes(48 << 10, 1)}
    assert found["read"].variants["torch.sum"]().item() == 12 << 10
    assert found["triad"].variants["torch.add"]().sum().item() == pytest.approx(1.5 * (4 << 10))


def test_working_sets_span_from_l1_to_eight_times_the_llc() -> None:
    assert probes.working_sets(32 << 20, 1 << 40) == [16 << (10 + 2 * step) for step in range(7)] + [256 << 20]
    assert probes.working_sets(32 << 20, 100 << 20)[-1] == 100 << 20


def test_llc_is_summed_over_its_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CPUs share one 32 MB cache, two another; their L2 does not count."""
    for cpu in range(4):
        for index, (level, size, shared) in enumerate([(2, "1024K", f"{cpu}"), (3, "32768K", f"{cpu // 2 * 2}-")]):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    monkeypatch.setattr(module, "_CACHES", tmp_path)
    assert module.llc_bytes() == 64 << 20


def test_an_unknown_llc_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CACHES", tmp_path)
    assert module.llc_bytes() == module.UNKNOWN_LLC_BYTES


def test_a_tiny_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real probes, small: whatever the noise, each is either stored within the limit or refused with a reason."""
    monkeypatch.setattr(probes, "SQUARES", (64,))
    monkeypatch.setattr(probes, "TALL", (128, 32, 32))
    monkeypatch.setattr(probes, "GEMV_EDGE", 64)
    monkeypatch.setattr(module, "llc_bytes", lambda: 256 << 10)
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    found = module.calibrate([1], lambda done, total, message: seen.append((done, total)), machine_id="m")
    assert seen == [(step, len(seen)) for step in range(1, len(seen) + 1)]
    assert len(found.ceilings) + len(found.conditions["refused"]) == len(seen)
    assert all(ceiling.spread <= module.SPREAD_LIMIT and ceiling.value > 0 for ceiling in found.ceilings)
    assert {"gemm", "gemv"} & {ceiling.kind for ceiling in found.ceilings} or found.conditions["refused"]
    assert found.machine_id == "m"
    assert 0 < found.call_overhead_us < 1e4
    assert torch.get_num_threads() == before
