"""Look-ups in a calibration: which measured ceiling holds for a working set, a data type and a number of threads."""

from __future__ import annotations

import math
from collections.abc import Iterable

from analysis.roofline.model import Machine
from analysis.roofline.operators import Precision
from suite.errors import InputError
from suite.harness.measurement import Calibration, Ceiling

DRAM = 1 << 40
"""A working set that fits no cache."""


class Ceilings:
    """The measured roofline of one machine. A look-up is None where nothing stable was measured."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration

    @property
    def llc_bytes(self) -> int:
        """What all last-level caches hold together; 0 in calibrations that do not say."""
        return int(self.calibration.conditions.get("llc_bytes", 0))

    def streams(self, kind: str, threads: int) -> list[Ceiling]:
        """ "read", "copy" or "triad" ceilings by rising working set."""
        found = [c for c in self.calibration.ceilings if c.kind == kind and c.threads == threads]
        return sorted(found, key=lambda ceiling: ceiling.size)

    def read(self, threads: int, working_set_bytes: float) -> Ceiling | None:
        """Read bandwidth for data of this size: that of the smallest measured set that holds it, else of the largest.

        A small model lives in a cache, and the DRAM figure would then make it look impossibly good.
        """
        sweep = self.streams("read", threads)
        sizes = [ceiling.size for ceiling in sweep]
        size = next((size for size in sizes if size >= working_set_bytes), max(sizes, default=0))
        return _highest(ceiling for ceiling in sweep if ceiling.size == size)

    def memory(self, threads: int) -> Ceiling | None:
        """Read bandwidth of the largest working set: DRAM."""
        return self.read(threads, math.inf)

    def gemm(self, dtype: str, threads: int) -> Ceiling | None:
        """The best GEMM of this data type over all measured shapes."""
        wanted = ("gemm", dtype, threads)
        return _highest(c for c in self.calibration.ceilings if (c.kind, c.dtype, c.threads) == wanted)

    def with_seen(self, seen: Iterable[Ceiling]) -> Ceilings:
        """These and ceilings seen later. A look-up takes the higher one of a kind: no machine is always at its best."""
        return Ceilings(self.calibration.model_copy(update={"ceilings": (*self.calibration.ceilings, *seen)}))

    def threads(self) -> list[int]:
        """Thread counts that were measured."""
        return sorted({ceiling.threads for ceiling in self.calibration.ceilings})

    def machine(self, dtype: str, threads: int, working_set_bytes: float) -> Machine | None:
        """Ceilings for a step-time prediction; None if the bandwidth or the peak is missing."""
        peak, read = self.gemm(dtype, threads), self.read(threads, working_set_bytes)
        if peak is None or read is None:
            return None
        name = f"measured, {dtype}, {threads} thread{'s' if threads > 1 else ''}"
        return Machine(name, peak.value * 1e9, read.value * 1e9, self.calibration.call_overhead_us * 1e-6)

    def whole_machine(self, precision: Precision) -> Machine:
        """All threads, and data that fit no cache; `InputError` where a ceiling is missing."""
        dtype = "fp32" if precision.activation > 2 else "bf16"
        found = self.machine(dtype, max(self.threads(), default=1), DRAM)
        if found is None:
            raise InputError(
                "the calibration lacks a stable ceiling; run `python -m suite roofline --calibrate` on an idle machine."
            )
        return found


def _highest(ceilings: Iterable[Ceiling]) -> Ceiling | None:
    return max(ceilings, key=lambda ceiling: ceiling.value, default=None)


def human_bytes(size: int) -> str:
    """Binary size with one unit: 16 KiB, 4 MiB."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
