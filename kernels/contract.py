"""The contract of every kernel: named calls, their fp64 reference, and how near to it a backend has to come.

Each op's `cases.py` lists its `CASES` (odd shapes, empty and full selections, extreme values), the few `TEAM_CASES`
that are large enough for several threads, the `SMALL_CASES` that the interpreter of the Triton kernels can afford, and
`SPEED_CASES`, the realistic shapes that `suite kernels bench` times. Tests and commands run the same lists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cost import Cost

Outputs = dict[str, Tensor]
"""Outputs by name. Integer ones must be exact; a name that begins with "fp32" is fp32 whatever the inputs are."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
"""Largest relative RMS error by dtype of the inputs."""
INTERPRETER_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""The interpreter of Triton 3.9 truncates to bf16 instead of rounding, in the inputs, the weights and the output."""


@dataclass(frozen=True)
class Trial:
    """One call, repeatable: `run` asks the dispatcher, `expected` the naive reference in fp64."""

    run: Callable[[], Outputs]
    expected: Callable[[], Outputs]


@dataclass(frozen=True, eq=False)
class Case:
    """A named call of an op; `make(dtype)` draws the inputs."""

    op: str
    name: str
    make: Callable[[torch.dtype], Trial]

    @property
    def id(self) -> str:
        """For test names and tables."""
        return f"{self.op}-{self.name}"


@dataclass(frozen=True)
class Race:
    """One call to be timed against `peers` that give the same result, by name; `cost` is that of `run`."""

    run: Callable[[], object]
    cost: Cost
    peers: dict[str, Callable[[], object]]


@dataclass(frozen=True, eq=False)
class SpeedCase:
    """A realistic shape; `make(dtype)` draws fresh inputs each time, so that a bench can cycle through several sets."""

    op: str
    name: str
    make: Callable[[torch.dtype], Race]
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)


@dataclass(frozen=True)
class CaseBook:
    """All cases of one op."""

    cases: list[Case]
    team: list[Case]
    small: list[Case]
    speed: list[SpeedCase]


def case_book(op: str) -> CaseBook:
    """What `kernels/<op>/cases.py` lists."""
    module = importlib.import_module(f"kernels.{op}.cases")
    return CaseBook(module.CASES, module.TEAM_CASES, module.SMALL_CASES, module.SPEED_CASES)


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor of NaN: what a kernel leaves unwritten, or reads without being asked to, shows."""
    return torch.full(shape, torch.nan, dtype=dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, the rows further apart, poison between them."""
    wide = poisoned(*x.shape[:-1], x.shape[-1] + 9, dtype=x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Relative RMS error of the finite values; infinite where the others do not agree exactly."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual.to(expected.dtype), expected) else float("inf")
    actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    others = expected.isinf()
    if not torch.equal(actual.isfinite(), finite) or not torch.equal(actual[others], expected[others]):
        return float("inf")
    error, size = (actual - expected)[finite].norm(), expected[finite].norm()
    return float(error / size) if size > 0 else float(error)


def wanted_dtype(name: str, expected: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype an output must have: see `Outputs`."""
    if not expected.is_floating_point():
        return expected.dtype
    return torch.float32 if name.startswith("fp32") else dtype


def complaints(outputs: Outputs, expected: Outputs, dtype: torch.dtype, limit: float) -> list[str]:
    """What is wrong with a call, a sentence each; nothing if it is right."""
    if outputs.keys() != expected.keys():
        return [f"outputs are {sorted(outputs)}, not {sorted(expected)}"]
    found = []
    for name, output in outputs.items():
        wanted = wanted_dtype(name, expected[name], dtype)
        if output.dtype is not wanted:
            found.append(f"{name} is {output.dtype}, not {wanted}")
        error = relative_rms(output, expected[name])
        if not error <= limit:
            found.append(f"{name}: relative RMS error {error:.2e} exceeds {limit:.0e}")
    return found


def verdict(case: Case, dtype: torch.dtype, tolerance: dict[torch.dtype, float] = TOLERANCE) -> list[str]:
    """Runs a case on the backend that serves now; see `complaints`."""
    torch.manual_seed(0)
    trial = case.make(dtype)
    try:
        outputs = trial.run()
    except Exception as error:  # a kernel that raises is red, and the other cases still run
        return [f"{type(error).__name__}: {error}"]
    return complaints(outputs, trial.expected(), dtype, tolerance[dtype])
