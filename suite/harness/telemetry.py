"""Peak memory, energy and disturbance of the timed turns of one unit. What a machine cannot tell is `None`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from suite.harness.measurement import Energy, Memory
from suite.harness.noise import Disturbance, Snapshot, snapshot

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_POWERCAP = Path("/sys/class/powercap")


def reset_peak_memory() -> bool:
    """Starts a new peak for this process; False where the kernel does not allow it (the peak is of its whole life)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def process_peak_bytes() -> int:
    """Largest resident set of this process since the last reset, in bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _cuda() -> Any | None:
    """torch.cuda when this process uses it; asking never initialises CUDA or imports torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def reset_device_peak() -> None:
    """Starts a new peak on every CUDA device in use."""
    if (cuda := _cuda()) is not None:
        for index in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(index)


def device_peak_bytes() -> int | None:
    """Peak of allocated bytes since the last reset, summed over the CUDA devices; `None` when none is in use."""
    if (cuda := _cuda()) is None:
        return None
    return sum(int(cuda.max_memory_allocated(index)) for index in range(cuda.device_count()))


class EnergyCounter(Protocol):
    """A hardware counter of energy."""

    @property
    def source(self) -> Literal["nvml", "rapl"]:
        """Which counter it is."""
        ...

    def joules(self, since: EnergyReading) -> float:
        """Energy between an earlier `read` and now."""
        ...

    def read(self) -> EnergyReading:
        """The raw counters now."""
        ...


EnergyReading = tuple[int, ...]


class Rapl:
    """RAPL through powercap: micro-joules of each package (and its DRAM where it is a domain of its own), wrapping."""

    source: Literal["rapl"] = "rapl"

    def __init__(self, folder: Path = _POWERCAP) -> None:
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if self._counts(zone)]
        self._files = [zone / "energy_uj" for zone in zones]
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        if not zones:
            raise OSError("no RAPL zone")
        self.read()

    @staticmethod
    def _counts(zone: Path) -> bool:
        """Packages and DRAM; core and uncore zones are parts of a package, psys contains it."""
        name = (zone / "name").read_text().strip()
        return name.startswith("package") or name == "dram"

    def read(self) -> EnergyReading:
        """Micro-joules of each zone."""
        return tuple(int(path.read_text()) for path in self._files)

    def joules(self, since: EnergyReading) -> float:
        """Energy since an earlier reading; a counter that wrapped once is put right."""
        deltas = zip(self.read(), since, self._ranges, strict=True)
        return sum((now - then) % (span + 1) for now, then, span in deltas) / 1e6


class Nvml:
    """NVML's total energy counter of every visible GPU, in milli-joules since the driver was loaded."""

    source: Literal["nvml"] = "nvml"

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        self.read()

    def read(self) -> EnergyReading:
        """Milli-joules of each GPU."""
        return tuple(int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles)

    def joules(self, since: EnergyReading) -> float:
        """Energy since an earlier reading."""
        return sum(now - then for now, then in zip(self.read(), since, strict=True)) / 1e3


def energy_counter() -> EnergyCounter | None:
    """The counter of what computes: NVML when this process uses CUDA, else RAPL; `None` where it cannot be read."""
    import pynvml

    try:
        return Nvml() if _cuda() is not None else Rapl()
    except (OSError, ValueError, pynvml.NVMLError):
        return None


class Elsewhere(Protocol):
    """Processes that compute for this one: an engine."""

    def cpu_seconds(self) -> float:
        """CPU time they have used so far."""
        ...

    def peak_memory_bytes(self) -> int | None:
        """Their largest memory so far; None for those on another machine."""
        ...


class UnitTelemetry:
    """Gathers memory, energy and disturbance over the timed turns of one unit, of `elsewhere` where that computes."""

    def __init__(self, counter: EnergyCounter | None, elsewhere: Elsewhere | None = None) -> None:
        self._elsewhere = elsewhere
        self.disturbance = Disturbance()
        self._counter = counter
        self._joules = 0.0
        self._process_peak = 0
        self._device_peak: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wraps one timed turn; a turn that fails leaves no trace."""
        reset_peak_memory()
        reset_device_peak()
        energy = self._counter.read() if self._counter is not None else ()
        before = self._snapshot()
        yield
        self.disturbance.add(before, self._snapshot())
        if self._counter is not None:
            self._joules += self._counter.joules(energy)
        self._process_peak = max(self._process_peak, process_peak_bytes())
        if (peak := device_peak_bytes()) is not None:
            self._device_peak = max(self._device_peak or 0, peak)

    def _snapshot(self) -> Snapshot:
        return snapshot(self._elsewhere.cpu_seconds() if self._elsewhere is not None else 0.0)

    def memory(self, model_bytes: int) -> Memory | None:
        """Peaks over all turns so far, in bytes; of an engine since its start, None where nobody knows them."""
        if self._elsewhere is not None:
            peak = self._elsewhere.peak_memory_bytes()
            return None if peak is None else Memory(process_peak_bytes=peak, model_bytes=model_bytes)
        return Memory(
            process_peak_bytes=self._process_peak, model_bytes=model_bytes, device_peak_bytes=self._device_peak
        )

    def energy(self) -> Energy:
        """Joules over all turns so far, or "not available"."""
        return Energy() if self._counter is None else Energy(joules=self._joules, source=self._counter.source)
