"""The contract of every kernel on every backend: the naive reference in fp64 is right, whatever the shapes."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import pytest
import torch

from kernels.build import OPS
from kernels.contract import INTERPRETER_TOLERANCE, TOLERANCE, Case, Outputs, Trial, case_book, complaints
from tests.kernels.conftest import INTERPRETED

BOOKS = [case_book(op) for op in OPS]
CASES = [case for book in BOOKS for case in (book.small if INTERPRETED else book.cases)]
TEAM_CASES = [case for book in BOOKS for case in book.team]
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]
LIMITS = INTERPRETER_TOLERANCE if INTERPRETED else TOLERANCE


@functools.cache
def prepared(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Trial, Outputs]:
    """The same inputs, and the expected outputs, for all backends on a device."""
    torch.manual_seed(0)
    trial = case.make(dtype)
    return trial, trial.expected()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_agrees_with_fp64_reference(case: Case, dtype: torch.dtype, backend: str) -> None:
    if backend == "amx" and dtype is torch.float32:
        pytest.skip("the matrix unit multiplies bf16; fp32 is as with avx512")
    trial, expected = prepared(case, dtype, torch.get_default_device())
    assert complaints(trial.run(), expected, dtype, LIMITS[dtype]) == []


@pytest.mark.parametrize("backend", ["amx", "avx512", "portable"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", TEAM_CASES, ids=lambda case: case.id)
def test_any_number_of_threads_is_right_and_deterministic(
    case: Case, threads: int, dtype: torch.dtype, backend: str
) -> None:
    torch.set_num_threads(threads)
    trial, expected = prepared(case, dtype, torch.get_default_device())
    first = {name: output.clone() for name, output in trial.run().items()}
    assert complaints(first, expected, dtype, TOLERANCE[dtype]) == []
    for name, again in trial.run().items():
        assert torch.equal(again.nan_to_num(), first[name].nan_to_num()), name


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_every_kind_of_case(op: str) -> None:
    book = case_book(op)
    assert book.cases
    assert book.team
    assert book.small or not find_spec(f"kernels.{op}.triton")
    assert {case.op for case in (*book.cases, *book.team, *book.small, *book.speed)} <= {op, *ALIASES.get(op, ())}
    names = [case.id for case in book.cases]
    assert len(set(names)) == len(names)


ALIASES = {"gemv": ("gated_gemv",)}
