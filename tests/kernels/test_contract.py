"""The contract of every kernel on every backend: the naive reference in fp64 is right, whatever the shapes."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import CASES, SMALL_CASES, TEAM_CASES, Case, Outputs, Trial
from tests.kernels.conftest import INTERPRETED

DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]
# The interpreter of Triton 3.9 truncates to bf16 instead of rounding, in the queries, the weights and the output.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2 if INTERPRETED else 5e-3}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Of the finite values; those that are not must agree exactly."""
    actual, expected = actual.double(), expected.double()
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite), "unexpected or missing NaN or infinity"
    assert torch.equal(actual[expected.isinf()], expected[expected.isinf()])
    error, size = (actual - expected)[finite].norm(), expected[finite].norm()
    return float(error / size) if size > 0 else float(error)


@functools.cache
def prepared(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Trial, Outputs]:
    """The same inputs, and the expected outputs, for all backends on a device."""
    torch.manual_seed(0)
    trial = case.make(dtype)
    return trial, trial.expected()


def check(outputs: Outputs, expected: Outputs, dtype: torch.dtype) -> None:
    assert outputs.keys() == expected.keys()
    for name in outputs:
        error = relative_rms(outputs[name], expected[name])
        assert error <= TOLERANCE[dtype], f"{name}: relative RMS error {error:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL_CASES if INTERPRETED else CASES, ids=lambda case: case.id)
def test_agrees_with_fp64_reference(case: Case, dtype: torch.dtype, backend: str) -> None:
    trial, expected = prepared(case, dtype, torch.get_default_device())
    outputs = trial.run()
    assert all(output.dtype is (torch.float32 if "fp32" in name else dtype) for name, output in outputs.items())
    check(outputs, expected, dtype)


@pytest.mark.parametrize("backend", ["cpu", "portable"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", TEAM_CASES, ids=lambda case: case.id)
def test_any_number_of_threads_is_right_and_deterministic(
    case: Case, threads: int, dtype: torch.dtype, backend: str
) -> None:
    torch.set_num_threads(threads)
    trial, expected = prepared(case, dtype, torch.get_default_device())
    first = {name: output.clone() for name, output in trial.run().items()}
    check(first, expected, dtype)
    for name, again in trial.run().items():
        assert torch.equal(again.nan_to_num(), first[name].nan_to_num()), name
