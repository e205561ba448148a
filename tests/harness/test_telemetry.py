"""Peaks, energy and GPU figures come from real counters, or are said to be missing."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from suite.harness import telemetry
from suite.harness.gpu import GpuSampler
from suite.harness.measurement import Energy
from suite.harness.telemetry import Rapl, UnitTelemetry, energy_counter, process_peak_bytes, reset_peak_memory

MIB = 1 << 20


TURNS = """
from suite.harness.telemetry import UnitTelemetry

def peak_after(mib):
    with unit.turn():
        bytearray(mib << 20)
    return unit.memory(0).process_peak_bytes >> 20

bytearray(64 << 20)
unit = UnitTelemetry(None)
print(-peak_after(32) + peak_after(96))
"""


@pytest.mark.skipif(not reset_peak_memory(), reason="the kernel does not let a process reset its peak memory")
def test_the_peak_is_of_the_turns_only() -> None:
    """In a fresh process: here the kernel may be merging pages of earlier tests, which moves the resident set."""
    done = subprocess.run([sys.executable, "-c", TURNS], capture_output=True, text=True, check=True)
    assert 48 < int(done.stdout) < 80


def test_without_the_kernels_help_the_peak_is_of_the_whole_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_STATUS", Path("/no/where"))
    monkeypatch.setattr(telemetry, "_CLEAR_REFS", Path("/no/where"))
    assert not reset_peak_memory()
    assert process_peak_bytes() > 10 * MIB


def test_what_is_not_there_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_POWERCAP", Path("/no/where"))
    monkeypatch.setattr(Rapl.__init__, "__defaults__", (Path("/no/where"),))
    monkeypatch.setattr(telemetry, "_cuda", lambda: None)
    unit = UnitTelemetry(energy_counter())
    with unit.turn():
        pass
    assert unit.energy() == Energy(joules=None, source="not available")
    assert unit.memory(5).device_peak_bytes is None
    assert unit.memory(5).model_bytes == 5


def zone(folder: Path, name: str, kind: str, start: int) -> Callable[[int], None]:
    """A powercap zone; the result sets its counter."""
    path = folder / name
    path.mkdir(exist_ok=True)
    (path / "name").write_text(kind + "\n")
    (path / "max_energy_range_uj").write_text("999999\n")
    (path / "energy_uj").write_text(f"{start}\n")
    return lambda value: void((path / "energy_uj").write_text(f"{value}\n"))


def void(_: object) -> None:
    """Drops a result."""


def test_rapl_adds_packages_and_memory_and_survives_a_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    unit = UnitTelemetry(Rapl(tmp_path))
    with unit.turn():
        package(100_000)
        core(500_000)
        memory(50_000)
    with unit.turn():
        package(300_000)
    assert unit.energy().source == "rapl"
    assert unit.energy().joules == pytest.approx(0.2 + 0.05 + 0.2)


def test_energy_between_turns_is_not_counted(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    unit = UnitTelemetry(Rapl(tmp_path))
    with unit.turn():
        package(100)
    package(900_000)
    assert unit.energy().joules == pytest.approx(1e-4)


class FakeNvml(SimpleNamespace):
    """Two GPUs; the second has no clock. Every energy reading is 1000 mJ above the last."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = 0
    energy = 0

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's own names

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"GPU {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        if handle:
            raise self.NVMLError
        return 1500

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return 250_000

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return 60 + handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self.energy += 1000
        return self.energy


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """NVML as on a machine with two GPUs."""
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpus_are_sampled_during_turns_only(nvml: FakeNvml) -> None:
    with GpuSampler(interval_s=0.005) as sampler:
        with sampler.turn("a"):
            time.sleep(0.1)
        time.sleep(0.05)
        counted = [one.samples for one in sampler.summary("a")]
        time.sleep(0.05)
        first, second = sampler.summary("a")
        assert [first.samples, second.samples] == counted
    assert (first.name, first.utilisation_percent, first.sm_clock_mhz, first.power_w) == ("GPU 0", 50, 1500, 250)
    assert (second.sm_clock_mhz, second.temperature_max_c) == (0, 61)
    assert sampler.summary("b") == ()


def test_gpu_energy_is_counted_when_this_process_uses_cuda(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(
        device_count=lambda: 1, reset_peak_memory_stats=lambda index: None, max_memory_allocated=lambda index: 77
    )
    monkeypatch.setattr(telemetry, "_cuda", lambda: cuda)
    unit = UnitTelemetry(energy_counter())
    with unit.turn():
        pass
    assert unit.energy() == Energy(joules=4.0, source="nvml")
    assert unit.memory(0).device_peak_bytes == 77


def test_without_a_gpu_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.harness.gpu.gpu_names", list)
    with GpuSampler() as sampler, sampler.turn("a"):
        assert sampler._thread is None
    assert sampler.summary("a") == ()


class Engine:
    """Processes elsewhere: they used a second of CPU time between two looks."""

    seconds = 0.0

    def cpu_seconds(self) -> float:
        self.seconds += 1.0
        return self.seconds

    def peak_memory_bytes(self) -> int | None:
        return 1234


def test_an_engine_is_no_disturbance_and_its_memory_is_the_units() -> None:
    alone, served = UnitTelemetry(None), UnitTelemetry(None, Engine())
    for unit in (alone, served):
        with unit.turn():
            pass
    assert served.disturbance.other_s < alone.disturbance.other_s - 0.9
    memory = served.memory(7)
    assert memory is not None
    assert (memory.process_peak_bytes, memory.model_bytes) == (1234, 7)
