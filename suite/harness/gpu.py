"""Samples NVML in a background thread while turns are timed. Without a GPU there is no sampler and no thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from types import TracebackType
from typing import Any

from suite.harness.machine import gpu_names
from suite.harness.measurement import GpuTelemetry
from suite.harness.threads import available_cpus

INTERVAL_S = 0.1

Reading = tuple[float, float, float, float]  # utilisation (percent), SM clock (MHz), power (W), temperature (C)


class GpuSampler:
    """Asks every GPU ten times a second; what it hears goes to the unit whose turn it is, and to none between turns."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._names = gpu_names()
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unit: str | None = None
        self._readings: dict[tuple[str, int], list[Reading]] = {}

    def __enter__(self) -> GpuSampler:
        if self._names:
            self._thread = threading.Thread(target=self._run, daemon=True, name="gpu-telemetry")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def turn(self, unit: str) -> Iterator[None]:
        """Readings taken inside belong to `unit`."""
        self._unit = unit
        try:
            yield
        finally:
            self._unit = None

    def summary(self, unit: str) -> tuple[GpuTelemetry, ...]:
        """One record per GPU that was heard of during the unit's turns."""
        heard = [(index, self._readings.get((unit, index), [])) for index in range(len(self._names))]
        return tuple(self._record(index, readings) for index, readings in heard if readings)

    def _record(self, index: int, readings: list[Reading]) -> GpuTelemetry:
        utilisation, clock, power, temperature = zip(*readings, strict=True)
        return GpuTelemetry(
            index=index,
            name=self._names[index],
            samples=len(readings),
            utilisation_percent=fmean(utilisation),
            sm_clock_mhz=fmean(clock),
            power_w=fmean(power),
            temperature_max_c=max(temperature),
        )

    def _run(self) -> None:
        import pynvml

        if hasattr(os, "sched_setaffinity"):  # else it would sit on the pinned core of the main thread
            os.sched_setaffinity(0, available_cpus())
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(len(self._names))]
        while not self._stop.wait(self._interval_s):
            unit = self._unit
            if unit is None:
                continue
            for index, handle in enumerate(handles):
                self._readings.setdefault((unit, index), []).append(_read(pynvml, handle))


def _read(nvml: Any, handle: Any) -> Reading:
    """One reading of one GPU; a figure it does not have is 0."""
    queries: tuple[Callable[[], Any], ...] = (
        lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    )
    values = []
    for query in queries:
        try:
            values.append(float(query()))
        except nvml.NVMLError:
            values.append(0.0)
    return values[0], values[1], values[2], values[3]
